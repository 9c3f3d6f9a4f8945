//! Options of a plan.

use std::ffi::c_char;

use crate::capi::arguments::Input;
use crate::capi::enumeration::{Enumeration, c_enum};
use crate::capi::parameter::wb_transfer_mode;
use crate::capi::quantizer::options::{QuantizeRequest, wb_quantize_options};
use crate::capi::structs::{c_struct, read_struct};
use crate::capi::tristate::wb_tristate;
use crate::device::policy::Tristate;
use crate::error::{Result, fail};
use crate::plan::compression::Compression;
use crate::plan::order::Order;
use crate::plan::parameter::TransferMode;
use crate::plan::plan::{Allowed, Budget, HostStore, PlanOptions};
use crate::plan::quantization::QuantizationRule;
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// What a budget limits. There is no default: a plan needs a budget.
pub type wb_budget_kind = i32;
/// Host memory of offloaded parameters, in whole pages.
pub const WB_BUDGET_OFFLOAD_BYTES: wb_budget_kind = 1;
/// Device memory of resident parameters and slots.
pub const WB_BUDGET_DEVICE_BYTES: wb_budget_kind = 2;

/// The order in which parameters leave the device until the budget is met.
pub type wb_order = i32;
/// Evenly over the groups, so that copies and kernels overlap best; the default.
pub const WB_ORDER_SPREAD: wb_order = 0;
/// In the order of the array.
pub const WB_ORDER_DECLARED: wb_order = 1;
/// The largest first.
pub const WB_ORDER_LARGEST: wb_order = 2;

/// Downgrades WB_ERR_NOTHING_OFFLOADED to a warning.
pub const WB_ALLOW_NOTHING_OFFLOADED: u32 = 1;
/// Downgrades WB_ERR_SELECTOR for an entry of `select` or `exclude` that matches no parameter to a
/// warning.
pub const WB_ALLOW_UNMATCHED_SELECTOR: u32 = 2;
/// Downgrades WB_ERR_EVERYTHING_FITS to a warning.
pub const WB_ALLOW_EVERYTHING_FITS: u32 = 4;

c_enum!(Order {
    WB_ORDER_SPREAD => Spread,
    WB_ORDER_DECLARED => Declared,
    WB_ORDER_LARGEST => Largest,
});

/// Where offloaded parameters are kept in host memory.
pub type wb_host_store = i32;
/// In memory of the offloader, to which their sources are copied; the default.
pub const WB_HOST_STORE_COPY: wb_host_store = 0;
/// Where their sources are, in the buffers that wb_parameter.buffer names and that are pinned, such
/// as a mapped file: nothing is copied, and the offloader keeps the buffer. Possible for the
/// parameters that move as one, those of a group with one transfer mode, if they follow one another
/// in the buffer as in a copy: in the plan's order, with sizes that are multiples of 256 bytes, and
/// at a multiple of 64 if the device reads them in place. Others are copied, and
/// wb_offloader_parameter_info.host_store_reason says why. The buffer is never written: a
/// replacement, of any size, first moves the parameter into memory of the offloader, which changes
/// addresses, and fails while any group is acquired or if it would exceed the budget. A file must
/// not become shorter, or change, while the offloader lives.
pub const WB_HOST_STORE_SOURCE: wb_host_store = 1;
/// As WB_HOST_STORE_SOURCE for parameters that are carried as their sources have them compressed
/// (wb_parameter.encoded_bytes); all others are copied. So host views of these may be written.
pub const WB_HOST_STORE_COMPRESSED: wb_host_store = 2;

c_enum!(HostStore {
    WB_HOST_STORE_COPY => Copy,
    WB_HOST_STORE_SOURCE => Source,
    WB_HOST_STORE_COMPRESSED => Compressed,
});

/// Which offloaded parameters cross the link compressed, without loss.
pub type wb_compress = i32;
/// None; the default.
pub const WB_COMPRESS_OFF: wb_compress = 0;
/// Those that reach their slots faster for it: of 256 KiB and more, in a type that wb_codec_encode
/// takes, of which a sample of the source becomes at most 7/8 as large. If `compress_select` has
/// selectors, only those that one of them matches.
pub const WB_COMPRESS_AUTO: wb_compress = 1;
/// Those that a selector of `compress_select` matches, as far as they become smaller.
pub const WB_COMPRESS_SELECTED: wb_compress = 2;

/// Options of a plan.
#[repr(C)]
pub struct wb_plan_options {
    /// Size of the struct.
    pub struct_size: u32,
    /// Groups that have their slots at the same time. With 1, copies and kernels take turns. 0 for
    /// the number with which the predicted step is fastest, up to 8. Another number is kept, or
    /// the plan fails; only where fewer groups are prefetched at all, a warning says so.
    pub depth: u32,
    /// What `budget_bytes` limits; required.
    pub budget_kind: wb_budget_kind,
    /// The mode of parameters with WB_TRANSFER_MODE_AUTO.
    pub transfer_mode: wb_transfer_mode,
    /// The budget, which is never exceeded. With a budget of device memory the plan is the one with
    /// the fastest predicted step.
    pub budget_bytes: u64,
    /// Bytes of slots for prefetched parameters, at most. 0 for no limit but a device budget; with
    /// an offload budget, what `depth` groups need, or two if `depth` is 0. Within a limit the ring
    /// is as deep as possible, with a device budget as deep as is fastest. With a limit there are
    /// no windows for compressed bytes: kernels read these over the link.
    pub slot_bytes: u64,
    /// `select_count` selectors of parameters that may be offloaded; 0 for all. A selector matches
    /// names that contain it as whole segments between dots; with any of `*?[` it is a glob for
    /// whole names, with at most 64 `*`.
    pub select: *const *const c_char,
    /// `exclude_count` selectors of parameters that stay on the device.
    pub exclude: *const *const c_char,
    /// Number of selectors in `select`.
    pub select_count: u32,
    /// Number of selectors in `exclude`.
    pub exclude_count: u32,
    /// The order in which parameters leave the device.
    pub order: wb_order,
    /// WB_ALLOW_* bits: errors that are warnings.
    pub allow: u32,
    /// How matrices are quantized when the plan is committed; NULL if they are not. A quantized
    /// matrix is planned as two parameters: its FP8 values, and behind it its scales, named with
    /// the suffix `_scale`, or `_scale_inv` for two-dimensional blocks. `use_given_scales` must be
    /// 0; `scale_bytes` and `progress` are not used.
    pub quantize: *const wb_quantize_options,
    /// `quantize_select_count` selectors of the parameters to quantize; 0 for all. Only those of
    /// float32, float16 and bfloat16 with two dimensions or more are quantized.
    pub quantize_select: *const *const c_char,
    /// Number of selectors in `quantize_select`.
    pub quantize_select_count: u32,
    /// Where offloaded parameters are kept in host memory.
    pub host_store: wb_host_store,
    /// Bandwidth of the link, to predict the time of a step; 0 for the one that
    /// wb_device_measure_link measured.
    pub link_bytes_per_second: f64,
    /// Bytes of parameters that the kernels of a step go through in a second: the bytes of all
    /// parameters over the seconds of a step without offloading. Then the time of a step is
    /// predicted with kernels, and they determine the depth. 0 if it is not known, or with
    /// `group_seconds`.
    pub compute_bytes_per_second: f64,
    /// `group_seconds_count` numbers: seconds of each group's kernels with all parameters on the
    /// device, in the order in which parameters first name the groups. NULL if they are not known.
    pub group_seconds: *const f64,
    /// Number of entries in `group_seconds`: 0, or the number of groups.
    pub group_seconds_count: u64,
    /// Rows (tokens) that a step multiplies with each dense parameter. Kernels read a parameter in
    /// place again for every 128. 0 if they are not known: then dense parameters are read in place
    /// only where they do not fit into slots, of which a warning tells.
    pub rows: u64,
    /// Whether every parameter that the offloader holds on the device, or copies there, has one
    /// address for the offloader's life, while wb_offloader_resize moves it. Fails with
    /// WB_ERR_NOT_SUPPORTED if it is on and wb_device_info.address_granularity is 0. Units, and the
    /// resident parameters of each group, then take whole pieces of that many bytes, which the
    /// budget counts; resident parameters are copied at the commit even if they are on the device
    /// already, and each needs a source; what is read in place is in pieces (wb_offloader_prefer);
    /// nothing can be added, removed or given another size. By default it is off.
    pub fixed_addresses: wb_tristate,
    /// 1 if resident parameters have a copy in host memory from the commit on, with
    /// `fixed_addresses`: freeing their memory then copies nothing. 0 if they get one when they
    /// leave, and lose it when they return.
    pub keep_host_copy: u32,
    /// Which offloaded parameters are compressed in host memory: the device reads them there and
    /// decodes them into their slots, so it must be able to read host memory in place
    /// (wb_device_info.views). Not those that have the zero-copy mode. Under a budget of device
    /// memory the device also keeps such parameters compressed in its own memory, as many as are
    /// needed, before others cross the link, if a step is faster for that: prefetched ones of one
    /// group, in as many bytes as they are compressed to. Not with `fixed_addresses`, where those
    /// that become resident are decoded. They count as offloaded, since they have slots and a copy
    /// in host memory. With a source, wb_plan_new reads a sample of it, by which it expects the
    /// compressed bytes. In the arena and in its slot a compressed parameter has space for any
    /// bytes that may replace it, 0.2 % more than its own.
    pub compress: wb_compress,
    /// Number of selectors in `compress_select`.
    pub compress_select_count: u32,
    /// `compress_select_count` selectors; none with WB_COMPRESS_OFF.
    pub compress_select: *const *const c_char,
    /// Bytes of device memory for expert caches, if parameters have WB_ACCESS_PATTERN_EXPERTS; a
    /// part of a budget of device memory. 0 for what such a budget leaves beside all other
    /// parameters, or for no limit with an offload budget. Under a budget of device memory experts
    /// leave as a whole, unless everything fits.
    pub expert_bytes: u64,
    /// Whether kernels of the device compress what a commit compresses: raw bytes cross the link to
    /// the device and compressed ones come back to the arena, both at the same time, or, of a
    /// source in device memory, compressed ones alone. By default those parameters for which a CUDA
    /// device has the memory, and the host's cores compress all others. The memory is that of the
    /// slots, which nothing uses before the first step; where these are smaller than two
    /// parameters, raw and compressed, up to 256 MiB of what a budget of device memory leaves
    /// beside them, freed at the end of the commit. The arena must be pinned. If it is on, the host
    /// device does so, too, and a commit fails with WB_ERR_NOT_SUPPORTED for a parameter that the
    /// device cannot compress. All encoders write the same bytes; wb_offloader_stats says how many
    /// each had.
    pub encode_on_device: wb_tristate,
    /// 1 if a commit decodes what it carries as its source has it compressed, with all cores, and
    /// fails with WB_ERR_DAMAGED if a checksum is wrong, before it takes memory. 0 if it checks
    /// only headers and directories of these, so that no kernel leaves them: damage of other bytes
    /// is then found by wb_offloader_read_parameter, not by steps. What a commit decodes or
    /// quantizes is verified in any case.
    pub verify_compressed: u32,
    /// Must be zero.
    pub reserved: [u64; 1],
}

c_struct!(wb_plan_options, reserved);

impl Input<PlanOptions> for *const wb_plan_options {
    unsafe fn convert(self, _: &str) -> Result<PlanOptions> {
        // SAFETY: the contract of mod.rs.
        let (given, select, exclude, quantize) = unsafe {
            let given = read_struct(self)?;
            let select = (given.select, given.select_count).convert("select")?;
            let exclude = (given.exclude, given.exclude_count).convert("exclude")?;
            let quantize = rule_of(&given)?;
            (given, select, exclude, quantize)
        };
        // SAFETY: the contract of mod.rs.
        let group_seconds: Vec<f64> =
            unsafe { (given.group_seconds, given.group_seconds_count).convert("group_seconds")? };
        let known =
            WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_UNMATCHED_SELECTOR | WB_ALLOW_EVERYTHING_FITS;
        if given.allow & !known != 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "allow is {:#x}; known bits are {known:#x}",
                given.allow
            );
        }
        let (link, compute) = (given.link_bytes_per_second, given.compute_bytes_per_second);
        for (name, rate) in [("link_bytes_per_second", link), ("compute_bytes_per_second", compute)]
        {
            if !rate.is_finite() || rate < 0.0 {
                fail!(WB_ERR_INVALID_ARGUMENT, "{name} is {rate}: give 0 if it is not known");
            }
        }
        if let Some(at) = group_seconds.iter().position(|one| !one.is_finite() || *one < 0.0) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "group_seconds[{at}] is {}: give seconds, or no group_seconds if they are not known",
                group_seconds[at]
            );
        }
        if compute > 0.0 && !group_seconds.is_empty() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "compute_bytes_per_second and group_seconds are both given: give one of them"
            );
        }
        Ok(PlanOptions {
            budget: budget_of(given.budget_kind, given.budget_bytes, "wb_plan_options")?,
            slot_bytes: (given.slot_bytes != 0).then_some(given.slot_bytes),
            depth: given.depth,
            transfer_mode: TransferMode::read(given.transfer_mode, "transfer_mode")?,
            order: Order::read(given.order, "order")?,
            host_store: HostStore::read(given.host_store, "host_store")?,
            select,
            exclude,
            allowed: Allowed {
                nothing_offloaded: given.allow & WB_ALLOW_NOTHING_OFFLOADED != 0,
                unmatched_selector: given.allow & WB_ALLOW_UNMATCHED_SELECTOR != 0,
                everything_fits: given.allow & WB_ALLOW_EVERYTHING_FITS != 0,
            },
            quantize,
            // SAFETY: the contract of mod.rs.
            compress: unsafe { compression_of(&given) }?,
            device_encoding: match Tristate::read(given.encode_on_device, "encode_on_device")? {
                Tristate::Auto => None,
                given => Some(given == Tristate::On),
            },
            verify_compressed: given.verify_compressed != 0,
            link_bytes_per_second: link,
            compute_bytes_per_second: compute,
            group_seconds,
            rows: given.rows,
            expert_bytes: given.expert_bytes,
            fixed_addresses: Tristate::read(given.fixed_addresses, "fixed_addresses")?
                == Tristate::On,
            keep_host_copy: given.keep_host_copy != 0,
        })
    }
}

/// The budget in the options of a struct of this name.
pub fn budget_of(kind: wb_budget_kind, bytes: u64, options: &str) -> Result<Budget> {
    match kind {
        WB_BUDGET_OFFLOAD_BYTES => Ok(Budget::OffloadBytes(bytes)),
        WB_BUDGET_DEVICE_BYTES => Ok(Budget::DeviceBytes(bytes)),
        0 => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "{options}.budget_kind is 0, and a budget is needed: give \
             WB_BUDGET_OFFLOAD_BYTES (at most budget_bytes leave the device) or \
             WB_BUDGET_DEVICE_BYTES (weights and slots fit in budget_bytes)"
        ),
        other => {
            fail!(WB_ERR_INVALID_ARGUMENT, "{options}.budget_kind is {other}; known are [1, 2]")
        }
    }
}

/// # Safety
/// The options keep the contract of mod.rs.
unsafe fn compression_of(given: &wb_plan_options) -> Result<Compression> {
    let pair = (given.compress_select, given.compress_select_count);
    // SAFETY: the contract of mod.rs.
    let select: Vec<String> = unsafe { pair.convert("compress_select") }?;
    match (given.compress, select.is_empty()) {
        (WB_COMPRESS_OFF, true) => Ok(Compression::Off),
        (WB_COMPRESS_AUTO, _) => Ok(Compression::Auto(select)),
        (WB_COMPRESS_SELECTED, false) => Ok(Compression::Selected(select)),
        (WB_COMPRESS_SELECTED, true) => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "compress is WB_COMPRESS_SELECTED and compress_select has no selector: name parameters, or \
             give WB_COMPRESS_AUTO"
        ),
        (WB_COMPRESS_OFF, false) => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "compress_select has {} selectors, and compress is WB_COMPRESS_OFF: give \
             WB_COMPRESS_SELECTED or WB_COMPRESS_AUTO",
            select.len()
        ),
        (other, _) => fail!(WB_ERR_INVALID_ARGUMENT, "compress is {other}; known are [0, 1, 2]"),
    }
}

/// # Safety
/// The options keep the contract of mod.rs.
unsafe fn rule_of(given: &wb_plan_options) -> Result<Option<QuantizationRule>> {
    if given.quantize.is_null() {
        return Ok(None);
    }
    // SAFETY: the contract of mod.rs.
    let (select, request): (_, QuantizeRequest) = unsafe {
        let select =
            (given.quantize_select, given.quantize_select_count).convert("quantize_select")?;
        (select, given.quantize.convert("quantize")?)
    };
    if request.use_given_scales {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "quantize.use_given_scales is 1; a plan has no scales to use: they are computed"
        );
    }
    Ok(Some(QuantizationRule {
        select,
        format: request.format,
        scale_type: request.scale_type,
        block: request.block,
        reject_nonfinite: request.reject_nonfinite,
    }))
}
