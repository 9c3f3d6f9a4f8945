/*
 * weighbridge for C++17: thin, header-only classes over weighbridge.h. A member function has the
 * name of its C function without the prefix: wb_buffer_get_info is Buffer::get_info. What C calls
 * *_new is make(), and wb_buffer_register is Buffer::register_memory(): new and register are
 * keywords of C++.
 *
 *   Ownership  Device, Buffer, View, Safetensors, Plan, Offloader, Arbiter, Quantizer and ExpertCache
 *              each own one reference: they are moved, and share() makes another reference. Children hold their
 *              parents, so objects may be destroyed in any order. Calls on an empty object (moved
 *              from, released or default-constructed) fail with WB_ERR_INVALID_ARGUMENT.
 *   Threading  Any function may be called from any thread. A single object may be moved, assigned
 *              or released by one thread at a time: give every thread its own share().
 *   Errors     A function that can fail returns Result<T>: test it, or call value(), which throws
 *              an Exception if there is an error. With -fno-exceptions value() prints the error and
 *              aborts.
 *   Callbacks  A progress callback may throw: the call is cancelled and the exception reaches the
 *              caller. An exception from a deleter or a stream function ends the process.
 *   Streams    Are passed as void*, for instance a CUstream. Stream creates one.
 *   Constants  Options and arguments take enumerations (enums.hpp); statuses, dtypes and the fields
 *              of C's info structs are compared with C's WB_* constants.
 */

#ifndef WEIGHBRIDGE_HPP
#define WEIGHBRIDGE_HPP

#include "weighbridge/language.hpp"

#include "weighbridge/arbiter.hpp"
#include "weighbridge/buffer.hpp"
#include "weighbridge/codec.hpp"
#include "weighbridge/device.hpp"
#include "weighbridge/device_memory.hpp"
#include "weighbridge/experts.hpp"
#include "weighbridge/offloader.hpp"
#include "weighbridge/plan.hpp"
#include "weighbridge/quantizer.hpp"
#include "weighbridge/safetensors.hpp"
#include "weighbridge/stream.hpp"
#include "weighbridge/view.hpp"

#endif  // WEIGHBRIDGE_HPP
