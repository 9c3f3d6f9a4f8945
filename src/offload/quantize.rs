//! Fills parameters that are kept in 8 bits from their full-precision sources.

use crate::device::backend::Location;
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::offload::state::OffloadState;
use crate::os::parallel::Progress;
use crate::os::sync::Arc;
use crate::plan::quantization::QuantizationRule;
use crate::quant::quantizer::Quantizer;
use crate::quant::task::{Direction, QuantizeTask};
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::Layout;

/// Bytes of device memory that quantizing takes at most while it works.
const STAGING_BYTES: u64 = 128 << 20;

/// Quantizes a parameter's source to where its numbers and scales are kept.
pub fn fill(
    rule: &QuantizationRule,
    quantizer: &Quantizer,
    state: &OffloadState,
    at: usize,
    layout: &Layout,
    source: Location,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let Some(quantized) = &state.kept[at].quantized else { return Ok(()) };
    let scales = state.find(&quantized.scales)?;
    let (Some(narrow), Some(scales)) = (state.place_of(at), state.place_of(scales)) else {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter {:?} is quantized, and there is no memory for it yet",
            state.kept[at].name()
        )
    };
    let task = QuantizeTask {
        direction: Direction::Quantize,
        layout: layout.clone(),
        unquantized: source,
        quantized: narrow,
        format: rule.format,
        scales,
        scale_type: rule.scale_type,
        use_given_scales: false,
        block: rule.block,
        reject_nonfinite: rule.reject_nonfinite,
    };
    quantizer.run(&task, progress).map(drop)
}

/// What quantizes for a device.
pub fn quantizer(device: &Arc<Device>) -> Result<Arc<Quantizer>> {
    Quantizer::new(device, STAGING_BYTES)
}
