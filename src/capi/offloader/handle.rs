//! Offloaders: committed plans, which keep parameters and transfer them.

use std::ffi::c_void;

use crate::capi::buffer::options::{BufferRequest, wb_buffer_options};
use crate::capi::call::{call, release, retain};
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::capi::offloader::source::source_of;
use crate::capi::plan::handle::{CPlan, wb_plan};
use crate::device::backend::Stream;
use crate::error::Result;
use crate::offload::offloader::Offloader;
use crate::status::wb_status;

/// A committed plan: it keeps the parameters of a model within a budget and transfers them. An
/// engine uses it so:
///
/// 1. Describe. One wb_parameter for each weight: its name, its layout, the address of its bytes,
///    if there are any yet, and its group: the weights that the engine uses together, such as a
///    layer. Weights that share bytes are found by their addresses, or by `storage_id` if they have
///    none.
/// 2. Plan. wb_plan_new takes one budget and decides which weights leave the device and how they
///    are transferred; nothing is allocated. With `quantize`, matrices are planned and kept as FP8
///    values, with their scales as parameters of their own. wb_plan_to_json prints the plan, with a
///    reason for every weight. A plan that is certainly a mistake (nothing is offloaded, a selector
///    matches nothing, slots do not fit) is an error.
/// 3. Commit. wb_offloader_new allocates the host memory and the slots and copies the weights. The
///    engine then frees its own copies of offloaded weights, and gets each address from
///    wb_offloader_get_parameter_infos, or a tensor that holds its memory from
///    wb_offloader_get_view.
/// 4. Step. Around the kernels of each layer, on the engine's own stream:
///
/// ```c
/// for (uint64_t layer = 0; layer < layers; layer++) {
///     wb_offloader_acquire_group(offloader, layer, stream, &error);
///     launch_layer(layer, stream);
///     wb_offloader_release_group(offloader, layer, stream, &error);
/// }
/// ```
///
/// The host never waits in this loop. Meanwhile the copies of the next layers run, and at the end
/// those of the next step's first layers. Groups may be acquired in any order and on any stream; an
/// order other than the plan's costs time only. Groups that share slots cannot be acquired at the
/// same time. Groups of prefetched parameters share none with the next `wb_plan_info.depth` - 1 in
/// the plan's order; all groups of on-demand parameters use the same slots. wb_offloader_reset ends
/// a step that failed half way.
///
/// CUDA graphs. Capture the loop unchanged, on one stream from the first group to the last, and
/// replay it as often as needed, also between steps that are not captured. A step may also be made
/// of several graphs, between calls that are not captured or with the calls in them: see
/// wb_offloader_begin_step. Addresses are stable until a parameter is replaced, added or
/// removed or wb_offloader_compact is called. wb_offloader_get_generation tells whether they have
/// changed; graphs of an older generation must be captured again.
///
/// Weights that change. wb_offloader_replace gives a weight new bytes, another type or another
/// shape, and keeps its placement. If quantization or a plugin replaced weights by itself,
/// wb_offloader_reconcile takes the whole list again and finds by address which ones differ.
///
/// A budget that changes. With `fixed_addresses` in the plan's options every unit has an address
/// range for life, behind which its memory changes, so tensors, compiled code and graphs stay
/// valid:
///
/// ```c
/// wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
/// to.budget_kind = WB_BUDGET_DEVICE_BYTES;
/// to.budget_bytes = 40ull << 30; // more or less than before; 0 to sleep
/// wb_offloader_resize(offloader, &to, stream, &progress, &error);
/// while (progress.pending_units > 0) { // or wb_offloader_resize_wait
///     run_step(stream);
///     wb_offloader_resize_advance(offloader, stream, &progress, &error);
/// }
/// ```
///
/// Plan for the least that the model may need, so that all that may leave has slots, and resize
/// upwards after the commit. Resize before memory is given to a KV cache, and after it was freed:
/// units that leave do so before others return, and no budget, the old or the new one, is exceeded.
/// A unit moves when its groups are released and the work that used it is done; memory is free for
/// everyone when the resize is done. A unit that was resident when a graph was captured is read in
/// host memory after it has left, unless `graphs_dropped` says that no graph is launched any more.
/// A failed call is repeated, and goes on. A sleeping offloader holds no device memory, and wakes
/// by a resize. Compressed parameters are decoded at their addresses, in each step or, resident,
/// once. Offloaders of one device share a budget by wb_arbiter.
pub struct wb_offloader {
    _opaque: [u8; 0],
}

opaque!(wb_offloader, Offloader);

/// Commits a plan: allocates host memory for offloaded parameters and device memory for slots, and
/// copies every parameter that has a source to where it is kept. `options` are for the host memory,
/// and receive the progress of the call.
///
/// Parameters have the indexes of the plan. The sources of offloaded parameters, and all sources in
/// host memory, are not needed after the call; those that stay where they are, with
/// WB_HOST_STORE_SOURCE or WB_HOST_STORE_COMPRESSED, are in buffers that the offloader keeps. A
/// resident parameter in device memory is not copied: the memory stays the engine's and must
/// outlive the offloader.
///
/// Stream order: waits on the host for the work queued on `stream`. Fails with WB_ERR_NOT_MAPPED if
/// the plan needs zero-copy and the host memory is not mapped, with WB_ERR_NOT_FINITE if the plan
/// rejects NaN and infinity, with WB_ERR_DAMAGED for a compressed source that is
/// (wb_plan_options.verify_compressed), and as wb_buffer_alloc and wb_device_alloc do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_new(
    plan: *const wb_plan,
    stream: *mut c_void,
    options: *const wb_buffer_options,
    offloader: *mut *mut wb_offloader,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |plan: &CPlan, stream: Stream, options: BufferRequest| -> offloader {
        let buffers = &plan.buffers;
        let (plan, parameters) = (&plan.plan, &plan.plan().parameters);
        let source = |planned| source_of(&plan.device, planned);
        let sources = parameters.iter().map(|planned| source(&planned.parameter));
        let sources = sources.collect::<Result<Vec<_>>>()?;
        options.run(|options, progress| {
            Offloader::commit(plan.clone(), &sources, buffers, stream, options, progress)
        })
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_retain(offloader: *const wb_offloader) {
    retain!(offloader)
}

/// Drops a reference. The last one waits for the queued copies and for the uses of released groups,
/// then frees the memory, except what views hold. Graphs that captured calls of the offloader must
/// not be launched any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_release(offloader: *mut wb_offloader) {
    release!(offloader)
}
