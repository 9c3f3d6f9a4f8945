//! Parameters that are kept in FP8: quantizes their full-precision sources to where they are kept.

use crate::device::backend::Location;
use crate::error::{Result, fail};
use crate::offload::device_plan::DevicePlan;
use crate::offload::state::OffloadState;
use crate::os::parallel::Progress;
use crate::plan::quantization::QuantizationRule;
use crate::quant::quantizer::Quantizer;
use crate::quant::task::{Direction, QuantizeTask};
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::layout::Layout;

/// Bytes of staging memory for a commit, at most. They are freed when it ends.
pub const COMMIT_STAGING_BYTES: u64 = 128 << 20;

/// Quantizes all parameters of a plan that are kept in FP8 and have a source.
pub fn quantize_all(
    plan: &DevicePlan,
    state: &OffloadState,
    sources: &[Option<Location>],
    progress: &mut Progress<'_>,
) -> Result<()> {
    let Some(rule) = &plan.plan.options.quantize else { return Ok(()) };
    let quantizer = Quantizer::new(&plan.device, COMMIT_STAGING_BYTES)?;
    for (at, source) in sources.iter().enumerate() {
        if let (Some(quantized), Some(source)) = (&state.parameters[at].quantized, source) {
            let task = task_for(rule, state, at, &quantized.layout, *source)?;
            quantizer.run(&task, progress)?;
        }
    }
    Ok(())
}

/// The task that quantizes a source to where a parameter and its scales are kept.
pub fn task_for(
    rule: &QuantizationRule,
    state: &OffloadState,
    at: usize,
    layout: &Layout,
    source: Location,
) -> Result<QuantizeTask> {
    let parameter = &state.parameters[at];
    let scales = match &parameter.quantized {
        Some(quantized) => state.own_location(state.find(&quantized.scales)?),
        None => None,
    };
    let (Some(numbers), Some(scales)) = (state.own_location(at), scales) else {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "parameter {:?} is quantized, and there is no memory for it yet",
            parameter.name()
        )
    };
    Ok(QuantizeTask {
        direction: Direction::Quantize,
        layout: layout.clone(),
        unquantized: source,
        quantized: numbers,
        format: rule.format,
        scales,
        scale_type: rule.scale_type,
        use_given_scales: false,
        block: rule.block,
        reject_nonfinite: rule.reject_nonfinite,
    })
}
