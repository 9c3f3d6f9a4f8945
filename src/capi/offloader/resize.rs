//! A budget that changes while an engine runs.

use std::ffi::c_void;
use std::time::Duration;

use crate::capi::arguments::Input;
use crate::capi::call::call;
use crate::capi::error::wb_error;
use crate::capi::offloader::handle::wb_offloader;
use crate::capi::plan::options::{budget_of, wb_budget_kind};
use crate::capi::structs::{CStruct, c_struct, read_struct};
use crate::device::backend::Stream;
use crate::error::Result;
use crate::offload::moves::ResizeProgress;
use crate::offload::offloader::Offloader;
use crate::offload::rebalance::Rebalance;
use crate::plan::plan::Budget;
use crate::status::wb_status;

/// Where wb_offloader_resize is to bring an offloader.
#[repr(C)]
pub struct wb_offloader_resize_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// What `budget_bytes` limits; required.
    pub budget_kind: wb_budget_kind,
    /// With WB_BUDGET_DEVICE_BYTES, device memory that the offloader may hold; 0 puts it to sleep.
    /// With WB_BUDGET_OFFLOAD_BYTES, bytes of parameters that are not resident, in whole pieces as
    /// on the device.
    pub budget_bytes: u64,
    /// 1 if no graph that has captured a step is launched any more: units that leave the device may
    /// then use slots, as after a commit. 0 keeps every graph right: a unit that a graph does not
    /// copy, as it was resident when the graph was captured, is read by the device in host memory
    /// from now on.
    pub graphs_dropped: u32,
    /// Must be zero.
    pub reserved0: u32,
    /// Must be zero.
    pub reserved: [u64; 3],
}

c_struct!(wb_offloader_resize_options, reserved0, reserved);

/// How far a resize is, and what the offloader holds.
#[repr(C)]
pub struct wb_offloader_resize_progress {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Units that are not where they are to be, and expert caches without the slots that they are
    /// to have; 0 once the resize is done.
    pub pending_units: u64,
    /// Bytes that these take on the device when they are there.
    pub pending_bytes: u64,
    /// Bytes of device memory of resident parameters, of slots and of expert caches, in whole
    /// pieces.
    pub device_bytes: u64,
    /// Bytes of host memory beside the offloader's own: of parameters that are read in place, in
    /// pieces or since they left the device, and of copies that resident ones keep.
    pub host_bytes: u64,
}

c_struct!(wb_offloader_resize_progress);

struct Request {
    budget: Budget,
    graphs_dropped: bool,
}

impl Input<Request> for *const wb_offloader_resize_options {
    unsafe fn convert(self, _: &str) -> Result<Request> {
        // SAFETY: the contract of mod.rs.
        let given = unsafe { read_struct(self)? };
        Ok(Request {
            budget: budget_of(
                given.budget_kind,
                given.budget_bytes,
                "wb_offloader_resize_options",
            )?,
            graphs_dropped: given.graphs_dropped != 0,
        })
    }
}

fn shown(progress: ResizeProgress) -> wb_offloader_resize_progress {
    let ResizeProgress { pending_units, pending_bytes, device_bytes, host_bytes } = progress;
    wb_offloader_resize_progress {
        pending_units,
        pending_bytes,
        device_bytes,
        host_bytes,
        ..CStruct::init()
    }
}

/// Begins to hold at most `budget_bytes` bytes of device memory, more or less than before, or to
/// offload at most that many. No address of a parameter changes, and every graph stays valid. Needs
/// a plan with `fixed_addresses`.
///
/// An engine that may need memory back plans for the least that it can spare, so that all that may
/// leave has slots, and resizes upwards after the commit. Under the plan's own budget, parameters
/// that were resident in the plan leave, to host memory that the device reads in place. They leave
/// in whole units, spread evenly over the groups, and those without slots last; what is in pieces
/// (see wb_offloader_prefer) leaves and returns piece by piece, the coldest first and the hottest
/// first, so that a budget is met to the piece. Nothing returns before all has left that is to
/// leave, so that no budget, the old or the new, is exceeded. With 0 bytes of device memory the
/// offloader sleeps: slots are freed too, and calls of a step fail with WB_ERR_BUSY until a resize
/// to more has put memory behind every address: wait for it before the first step. No graph may be
/// launched meanwhile.
///
/// Expert caches of the offloader share the budget, as in the plan: they get its `expert_bytes`, as
/// far as that fits, or else what all units and slots leave, but never less than slots for every
/// call that a graph has captured, for which units leave. Several caches share that by the bytes of
/// their experts, whatever they were created with; WB_BUDGET_OFFLOAD_BYTES leaves them what they
/// had. Slots keep their addresses, and calls see their number on the device, also in graphs.
/// Experts in slots that go are evicted first. That happens when the groups of the experts are
/// released, calls of the cache that were queued are done, and so is the work on `stream`, for
/// which the host waits: kernels that read slots are between the acquire and the release of their
/// group, or before the resize on its stream. In sleep the caches hold nothing, and calls of them
/// fail with WB_ERR_BUSY; afterwards they are empty.
///
/// The call does what is possible at once and returns. A unit moves when none of its groups is
/// acquired and the work that used it is done: wb_offloader_resize_advance goes on, between steps,
/// or wb_offloader_resize_wait. A step may run in between. Where steps have been captured, the host
/// waits for the work queued on `stream`, and the caller guarantees that no graph is in flight on
/// another, since no one else knows of replays. To sleep, the host waits for all uses of released
/// groups. Freed memory is free for everyone at once.
///
/// After an error the offloader holds what `wb_offloader_resize_advance` says, and a repeated call
/// goes on. If it failed while memory was exchanged, calls of a step fail with WB_ERR_BUSY, and no
/// graph may be launched, until one has succeeded. Fails with WB_ERR_NOT_SUPPORTED without fixed
/// addresses, WB_ERR_BUDGET if the slots, or what graphs need of caches, do not fit,
/// WB_ERR_CAPTURING in a capture, WB_ERR_BUSY if an arbiter shares its memory, and
/// WB_ERR_DEVICE_MEMORY or WB_ERR_OUT_OF_MEMORY if there is no memory to move to. Parameters cannot
/// be replaced while a resize is in progress.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_resize(
    offloader: *const wb_offloader,
    options: *const wb_offloader_resize_options,
    stream: *mut c_void,
    progress: *mut wb_offloader_resize_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, options: Request, stream: Stream| -> progress {
        offloader.resize(options.budget, options.graphs_dropped, stream).map(shown)
    })
}

/// Goes on with a resize as far as is possible at once, and fills `progress`; without one it only
/// does that. Stream order and errors are those of wb_offloader_resize.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_resize_advance(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    progress: *mut wb_offloader_resize_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| -> progress {
        offloader.resize_advance(stream).map(shown)
    })
}

/// Goes on with a resize on the host until it is done, for at most `timeout_ms` milliseconds. Other
/// threads may run steps meanwhile. Fails with WB_ERR_TIMEOUT, such as while a group stays
/// acquired: the resize can be continued. Other errors, and stream order, are those of
/// wb_offloader_resize.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_resize_wait(
    offloader: *const wb_offloader,
    stream: *mut c_void,
    timeout_ms: u64,
    progress: *mut wb_offloader_resize_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream, timeout_ms: Duration| -> progress {
        offloader.resize_wait(stream, timeout_ms).map(shown)
    })
}

/// What wb_offloader_rebalance has done, and what is left to do.
#[repr(C)]
pub struct wb_offloader_rebalance_progress {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Bytes whose copies the call has queued, to host memory and to the device.
    pub moved_bytes: u64,
    /// Bytes of pieces that are not where they are to be, copies in flight included; 0 once the
    /// hottest pieces are on the device, and any resize is done.
    pub pending_bytes: u64,
    /// Bytes of device memory of resident parameters, of slots and of expert caches, in whole
    /// pieces.
    pub device_bytes: u64,
    /// Bytes of host memory beside the offloader's own, as in wb_offloader_resize_progress.
    pub host_bytes: u64,
}

c_struct!(wb_offloader_rebalance_progress);

/// Notes how often a step reads `bytes` bytes of parameter `index`, from `offset` on, which counts
/// from its lowest byte. `weight` is that number, such as 0.1 for an expert that a tenth of the
/// steps use, or 3 for rows that a step looks up three times; 0 for bytes that are not read any
/// more. The last call for a byte counts; before any call, bytes of dense parameters count once and
/// others not at all.
///
/// With fixed addresses, parameters that are read in place (transfer mode zero-copy), or would be
/// if they left the device, are in pieces of `wb_device_info.address_granularity` bytes, each on
/// the device or in host memory: all of those of a group that have at least one piece together. The
/// heat of a piece is the sum, over its bytes, of their weights. wb_offloader_rebalance and
/// wb_offloader_resize keep the hottest pieces; this call moves nothing, and costs the time of a
/// look-up for each piece of the range.
///
/// Fails with WB_ERR_NOT_SUPPORTED for a parameter that is not in pieces, WB_ERR_OUT_OF_RANGE if
/// there is no such parameter or it has fewer bytes, and WB_ERR_INVALID_ARGUMENT for a weight that
/// is negative or not finite.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_prefer(
    offloader: *const wb_offloader,
    index: u64,
    offset: u64,
    bytes: u64,
    weight: f64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| {
        offloader.prefer(index as usize, offset, bytes, weight)
    })
}

/// Moves the hottest pieces to the device and the coldest to host memory, as wb_offloader_prefer
/// has them, while the offloader holds as much device memory as before. For calls between steps:
/// each queues copies of at most `max_bytes` bytes, in both directions together, finishes those of
/// earlier calls that are made, and returns; of pieces that are as hot as one another none moves.
/// Cold pieces leave first, so that no more device memory is held at any moment; as many hot ones
/// come in a later call. `max_bytes` below one piece moves nothing, and only fills `progress`. A
/// resize that is in progress is continued first, within `max_bytes`.
///
/// Addresses, views and graphs stay valid, and bytes are those of before. When a piece moves,
/// stream order and errors are as in wb_offloader_resize; wb_offloader_resize_wait ends what a call
/// has begun, and parameters are not replaced before. An offloader of an arbiter is rebalanced
/// likewise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_rebalance(
    offloader: *const wb_offloader,
    max_bytes: u64,
    stream: *mut c_void,
    progress: *mut wb_offloader_rebalance_progress,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader, stream: Stream| -> progress {
        let Rebalance { copied_bytes, pending_bytes, progress } =
            offloader.rebalance(max_bytes, stream)?;
        let ResizeProgress { device_bytes, host_bytes, .. } = progress;
        Ok(wb_offloader_rebalance_progress {
            moved_bytes: copied_bytes,
            pending_bytes,
            device_bytes,
            host_bytes,
            ..CStruct::init()
        })
    })
}
