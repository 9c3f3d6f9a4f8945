/* Views as tensors of DLPack, and tensors of DLPack as views.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_DLPACK_H
#define WEIGHBRIDGE_DLPACK_H

#include "buffer.h"
#include "device.h"
#include "error.h"
#include "status.h"
#include "view.h"

#ifdef __cplusplus
extern "C" {
#endif

struct DLManagedTensor;
struct DLManagedTensorVersioned;

/**
 * Exports a view as a DLManagedTensor: kDLCUDA for a view for a CUDA device, otherwise kDLCPU.
 *
 * The tensor holds a reference to the view until its deleter is called, which may be on any
 * thread. No stream is waited for, since the library queues no work of its own on the memory.
 * Fails with WB_ERR_DLPACK for read-only memory, because this kind of tensor cannot say that it
 * must not be written.
 */
wb_status wb_view_to_dlpack(const wb_view *view, struct DLManagedTensor **tensor, wb_error *error);

/**
 * As wb_view_to_dlpack, also for read-only memory: for a consumer that never writes, such as JAX.
 *
 * The tensor cannot say that it must not be written. A write would end the process, or fail on the
 * device.
 */
wb_status wb_view_to_dlpack_for_reading(const wb_view *view, struct DLManagedTensor **tensor,
                                        wb_error *error);

/**
 * As wb_view_to_dlpack, as a DLManagedTensorVersioned, which has a read-only flag. Consumers must
 * heed it; PyTorch and CuPy do not.
 */
wb_status wb_view_to_dlpack_versioned(const wb_view *view, struct DLManagedTensorVersioned **tensor,
                                      wb_error *error);

/**
 * Registers the host memory of a DLManagedTensor and creates a view of it.
 *
 * On success the tensor belongs to the view's buffer, which calls its deleter once, on any thread,
 * when nothing uses the memory any more; after an error the caller keeps it. Fails with
 * WB_ERR_DLPACK, and as wb_buffer_register and wb_view_new do.
 */
wb_status wb_view_from_dlpack(const wb_device *device, struct DLManagedTensor *tensor,
                              wb_accessor accessor, const wb_buffer_options *options,
                              wb_view **view, wb_error *error);

/** As wb_view_from_dlpack, for a DLManagedTensorVersioned, whose read-only flag is kept. */
wb_status wb_view_from_dlpack_versioned(const wb_device *device,
                                        struct DLManagedTensorVersioned *tensor,
                                        wb_accessor accessor, const wb_buffer_options *options,
                                        wb_view **view, wb_error *error);

#ifdef __cplusplus
}
#endif

#endif
