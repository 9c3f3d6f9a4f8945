//! What an offloader holds, and what it transferred.

use crate::capi::call::call;
use crate::capi::error::wb_error;
use crate::capi::offloader::handle::wb_offloader;
use crate::capi::structs::{CStruct, c_struct};
use crate::offload::offloader::Offloader;
use crate::status::wb_status;

/// Memory and transfers of an offloader. Tied parameters count once; replayed graphs do not count
/// as transfers.
#[repr(C)]
pub struct wb_offloader_stats {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Number of parameters; their indexes are smaller.
    pub parameters: u64,
    /// Bytes of offloaded parameters in host memory, filled or not; none of a parameter whose
    /// replacement failed.
    pub offloaded_bytes: u64,
    /// Bytes of host memory asked for them, with padding and free space.
    pub asked_bytes: u64,
    /// Bytes of address space mapped for that.
    pub mapped_bytes: u64,
    /// Bytes of that pinned, as the driver or the kernel counts them.
    pub pinned_bytes: u64,
    /// Bytes of resident parameters, without those that were given no source yet; of parameters in
    /// pieces those that are on the device. Together with `offloaded_bytes` it is the
    /// `payload_bytes` of the plan once each has one.
    pub resident_bytes: u64,
    /// Bytes of device memory for slots, and for the windows through which compressed bytes pass to
    /// them.
    pub slot_bytes: u64,
    /// Bytes of offloaded parameters that the device reads in place.
    pub view_bytes: u64,
    /// Bytes of offloaded parameters that were given no source yet: zeros, or what was written
    /// through a host view. Steps copy them like others, and `offloaded_bytes` counts them; a
    /// replacement ends it.
    pub unfilled_bytes: u64,
    /// Bytes of staging memory: of the pinned buffer that pageable memory is staged through, and
    /// of host and device memory that replacements of quantized parameters use.
    pub staging_bytes: u64,
    /// Peak of `mapped_bytes`.
    pub peak_mapped_bytes: u64,
    /// Peak of `slot_bytes`.
    pub peak_slot_bytes: u64,
    /// Bytes that crossed the link to slots.
    pub moved_bytes: u64,
    /// Copies into slots.
    pub copies: u64,
    /// Groups acquired.
    pub acquires: u64,
    /// Copies, except on demand, that had not begun when their group was acquired.
    pub late_copies: u64,
    /// Seconds that the engine's streams waited for copies.
    pub waited_seconds: f64,
    /// As wb_offloader_get_generation gives it.
    pub generation: u64,
    /// Bytes of offloaded parameters that are compressed in host memory, a part of
    /// `offloaded_bytes`.
    pub decoded_bytes: u64,
    /// What these are compressed to.
    pub encoded_bytes: u64,
    /// Those of `moved_bytes` that were compressed.
    pub moved_encoded_bytes: u64,
    /// Bytes in slots that these were decoded to.
    pub moved_decoded_bytes: u64,
    /// Bytes of device memory of the expert caches that were made for it and are alive.
    pub expert_bytes: u64,
    /// Bytes of parameters that are on the device now, in memory of their own or of the engine:
    /// what `resident_bytes` of their infos adds up to, tied ones once.
    pub device_parameter_bytes: u64,
    /// Bytes of device memory for parameters that the device keeps compressed. With
    /// `resident_bytes`, each rounded up to 256, `slot_bytes` and the plan's `expert_bytes` it is
    /// at most a budget of device memory. It is held until the offloader is released, also when a
    /// parameter is removed or gets another size.
    pub device_encoded_bytes: u64,
    /// Those of `decoded_bytes` that are decoded from there, and cross no link.
    pub device_decoded_bytes: u64,
    /// Bytes that the commit compressed by kernels of the device, before that;
    /// wb_plan_options.encode_on_device says which.
    pub encoded_by_device_bytes: u64,
    /// Bytes that it compressed by the host's cores.
    pub encoded_by_host_bytes: u64,
}

c_struct!(wb_offloader_stats);

/// Fills `stats` with the memory and the transfers of the offloader.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_stats(
    offloader: *const wb_offloader,
    stats: *mut wb_offloader_stats,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| -> stats {
        offloader.stats().map(|found| wb_offloader_stats {
            parameters: found.parameters,
            offloaded_bytes: found.offloaded_bytes,
            asked_bytes: found.asked_bytes,
            mapped_bytes: found.mapped_bytes,
            pinned_bytes: found.pinned_bytes,
            resident_bytes: found.resident_bytes,
            slot_bytes: found.slot_bytes,
            view_bytes: found.view_bytes,
            unfilled_bytes: found.unfilled_bytes,
            staging_bytes: found.staging_bytes,
            peak_mapped_bytes: found.peak.mapped_bytes,
            peak_slot_bytes: found.peak.slot_bytes,
            moved_bytes: found.transfers.moved_bytes,
            copies: found.transfers.copies,
            acquires: found.transfers.acquires,
            late_copies: found.transfers.late_copies,
            waited_seconds: found.transfers.waited_seconds,
            generation: found.generation,
            decoded_bytes: found.decoded_bytes,
            encoded_bytes: found.encoded_bytes,
            moved_encoded_bytes: found.transfers.encoded_bytes,
            moved_decoded_bytes: found.transfers.decoded_bytes,
            expert_bytes: found.expert_bytes,
            device_parameter_bytes: found.device_parameter_bytes,
            device_encoded_bytes: found.device_encoded_bytes,
            device_decoded_bytes: found.device_decoded_bytes,
            encoded_by_device_bytes: found.encoded_by.device,
            encoded_by_host_bytes: found.encoded_by.host,
            ..CStruct::init()
        })
    })
}

/// Transfers of a group. Units that several groups use count for the one that they were copied for;
/// replayed graphs do not count.
#[repr(C)]
pub struct wb_offloader_group_stats {
    /// Size of the struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Times that it was acquired.
    pub acquires: u64,
    /// Bytes that crossed the link to slots.
    pub moved_bytes: u64,
    /// Copies into slots.
    pub copies: u64,
    /// Copies, except on demand, that had not begun when the group was acquired.
    pub late_copies: u64,
    /// Times that the engine's stream waited for copies.
    pub waits: u64,
    /// Seconds that it waited.
    pub waited_seconds: f64,
    /// Those of `moved_bytes` that were compressed.
    pub moved_encoded_bytes: u64,
    /// Bytes in slots that these were decoded to.
    pub moved_decoded_bytes: u64,
}

c_struct!(wb_offloader_group_stats);

/// Fills `stats` with the transfers of a group. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_group_stats(
    offloader: *const wb_offloader,
    group: u64,
    stats: *mut wb_offloader_group_stats,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| -> stats {
        offloader.group_stats(group as usize).map(|found| wb_offloader_group_stats {
            acquires: found.acquires,
            moved_bytes: found.moved_bytes,
            copies: found.copies,
            late_copies: found.late_copies,
            waits: found.waits,
            waited_seconds: found.waited_seconds,
            moved_encoded_bytes: found.encoded_bytes,
            moved_decoded_bytes: found.decoded_bytes,
            ..CStruct::init()
        })
    })
}

/// Gets a number that increases whenever an address of a parameter changes, or is no longer its
/// own: while it is the same, every address that the offloader gave is still valid, and so is every
/// graph that captured its calls. Bytes of the same number that replace others in place do not
/// change it, nor do steps, nor an added parameter that moves no other. Costs no more than a lock,
/// for a call in every step.
///
/// It waits while another call changes parameters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_offloader_get_generation(
    offloader: *const wb_offloader,
    generation: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |offloader: &Offloader| -> generation { offloader.generation() })
}
