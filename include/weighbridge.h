/*
 * weighbridge carries model weights between host memory and an accelerator.
 *
 * These conventions hold for every function; its own comment says only what is particular to it.
 *
 * - Handles. A function that fills a handle gives the caller one reference to it.
 *   `wb_<noun>_retain` adds a reference and `wb_<noun>_release` drops one; to release NULL does
 *   nothing, to retain it is an error for the log callback. An object holds what it uses, so any
 *   order of release is legal. Using a handle after its last release is undefined; a debug build of
 *   the library fails with WB_ERR_HANDLE.
 * - Threads. Every function may be called from any thread, and several threads may use a handle
 *   at once.
 * - Errors. A function that can fail returns WB_OK or a WB_ERR_*. Its last argument, a wb_error
 *   that may be NULL, receives the status, the code of the driver or the kernel, and a message.
 *   Outputs are written only on success. Every function may fail with WB_ERR_INVALID_ARGUMENT,
 *   WB_ERR_STRUCT_SIZE or WB_ERR_INTERNAL, and one that uses a device with WB_ERR_DRIVER or
 *   WB_ERR_FORKED; a comment names further errors.
 * - NULL. A pointer must not be NULL unless a comment says otherwise, except that of an options
 *   struct, which then has its defaults.
 * - Structs. Every struct begins with its size. The caller initializes it, also for outputs, by
 *   its WB_*_INIT, which sets the size and zeros. Zero is the default of every field. A smaller
 *   struct of an older header is accepted. Fields named `reserved` must be zero.
 * - Constants. A type with named constants is an int32_t; another value fails with
 *   WB_ERR_INVALID_ARGUMENT.
 * - Strings are UTF-8 and end in NUL; a path may have any bytes. Strings and arrays that a
 *   function returns or puts into a struct belong to the object and stay valid until its last
 *   reference is dropped, unless a comment says otherwise.
 * - Streams. A stream is a CUstream as `void *`, or a stream of the host device. NULL is CUDA's
 *   legacy default stream, or the default stream of the host device. A stream that is being
 *   captured may only be passed to a function whose comment says that it is capturable.
 * - Callbacks must return: no exception, longjmp or pthread_exit may pass through the library.
 * - Cancellation. pthread_cancel of a thread that is in a call waits until the call has ended.
 * - Forks. A forked child may release what it inherited, and may use views and plans; work on
 *   an inherited device fails with WB_ERR_FORKED, and CUDA is left alone. The child may open
 *   devices of its own: the host always, CUDA devices if CUDA was not initialized before the fork.
 * - Exit. Nothing needs to be released before the process ends, and exit handlers may call the
 *   library, which stays loaded after dlclose.
 * - Units are bytes unless a name says otherwise; strides count elements.
 * - Platform. Linux, 64 bits. Everything is available since 0.1.0 unless its comment names a
 *   later version.
 *
 * Generated from the Rust sources; change those and run `make header`.
 */
#ifndef WEIGHBRIDGE_H
#define WEIGHBRIDGE_H

#include "weighbridge/version.h"
#include "weighbridge/status.h"
#include "weighbridge/error.h"
#include "weighbridge/dtype.h"
#include "weighbridge/device.h"
#include "weighbridge/buffer.h"
#include "weighbridge/view.h"
#include "weighbridge/dlpack.h"
#include "weighbridge/parameter.h"
#include "weighbridge/safetensors.h"
#include "weighbridge/plan.h"
#include "weighbridge/offloader.h"
#include "weighbridge/arbiter.h"
#include "weighbridge/quantizer.h"
#include "weighbridge/codec.h"
#include "weighbridge/experts.h"

#endif
