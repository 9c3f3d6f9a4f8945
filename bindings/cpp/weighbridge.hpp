/*
 * weighbridge for C++17: thin, header-only classes over weighbridge.h, by the same words.
 *
 * How to read it
 *   Ownership  Device, Buffer, View, Safetensors, Plan and Offloader hold one reference each: moved;
 *              share() makes another. Children hold their parents: destroy in any order. An empty
 *              object (moved from, released, default) may be asked, and answers WB_ERR_INVALID_ARGUMENT.
 *   Threading  Any function from any thread. One object is changed (moved, assigned, released) by
 *              one thread at a time: give every thread its own share().
 *   Errors     What can fail returns Result<T>: test it, or take its value(), which throws an
 *              Exception for an error. With -fno-exceptions value() prints the error and aborts.
 *   Callbacks  A progress callback may throw: the call is cancelled, nothing is made, and the
 *              exception goes on to the caller. Deleters and stream functions must not throw: that
 *              ends the process.
 *   Streams    are the engine's own, as void*; Stream makes one where there is no engine.
 */

#ifndef WEIGHBRIDGE_HPP
#define WEIGHBRIDGE_HPP

#include "weighbridge/buffer.hpp"
#include "weighbridge/device.hpp"
#include "weighbridge/device_memory.hpp"
#include "weighbridge/offloader.hpp"
#include "weighbridge/plan.hpp"
#include "weighbridge/quantizer.hpp"
#include "weighbridge/safetensors.hpp"
#include "weighbridge/stream.hpp"
#include "weighbridge/view.hpp"

#endif  // WEIGHBRIDGE_HPP
