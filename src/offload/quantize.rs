//! Parameters that are kept in FP8: quantizes their full-precision sources to where they are kept.

use crate::codec::in_memory;
use crate::device::backend::Location;
use crate::error::{Error, Result, fail};
use crate::offload::device_plan::DevicePlan;
use crate::offload::quantize_arriving::quantize_arriving;
use crate::offload::state::OffloadState;
use crate::os::in_order::{Pieces, in_order};
use crate::os::mapping::Mapping;
use crate::os::parallel::{Phase, Progress, report, threads_for};
use crate::os::sync::{self, Mutex};
use crate::plan::quantization::QuantizationRule;
use crate::quant::quantizer::Quantizer;
use crate::quant::task::{Direction, QuantizeTask};
use crate::status::{WB_ERR_INTERNAL, WB_ERR_INVALID_ARGUMENT};
use crate::tensor::layout::Layout;

/// Bytes of staging memory for a commit, at most: of device memory, and of pinned host memory where
/// a source or a target cannot be copied directly. They are freed when it ends.
pub const COMMIT_STAGING_BYTES: u64 = 128 << 20;

/// Tensors that a CUDA device quantizes at the same time, at most, of those that do not arrive: while
/// one begins or ends, and waits, others go on. On the host device each is the work of one thread.
const TENSORS_AT_ONCE: usize = 4;

/// Quantizes all parameters of a plan that are kept in FP8 and have a source.
pub fn quantize_all(
    plan: &DevicePlan,
    state: &mut OffloadState,
    sources: &[Option<Location>],
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let Some(rule) = &plan.plan.options.quantize else { return Ok(()) };
    let mut fills = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        if let (Some(quantized), Some(source)) = (state.parameters[at].quantized.clone(), source) {
            let task = task_for(rule, state, at, &quantized.layout, *source)?;
            fills.push(Fill { task, is_encoded: quantized.encoded_bytes.is_some() });
            let scales = state.find(&quantized.scales)?;
            [at, scales].into_iter().for_each(|filled| state.note_filled(filled));
        }
    }
    let total: usize = fills.iter().map(Fill::source_bytes).sum();
    let mut all = FillProgress { done: 0, total, progress };
    let (encoded, given): (Vec<&Fill>, Vec<&Fill>) = fills.iter().partition(|fill| fill.is_encoded);
    let tasks: Vec<&QuantizeTask> = given.iter().map(|fill| &fill.task).collect();
    let mut arrived = |_: Phase, done: u64, _: u64| all.report(done as usize).is_ok();
    let progress = &mut Some(&mut arrived as &mut dyn FnMut(Phase, u64, u64) -> bool);
    let done = quantize_arriving(&plan.device, &tasks, COMMIT_STAGING_BYTES, threads, progress)?;
    let left = given.into_iter().zip(done).filter(|(_, done)| !done).map(|(fill, _)| fill);
    let fills: Vec<&Fill> = encoded.into_iter().chain(left).collect();
    let left = fills.iter().map(|fill| fill.source_bytes()).sum();
    all.done = total - left;
    let threads = threads_for(threads, left).min(fills.len());
    let at_once = match plan.device.capabilities().cuda {
        true => threads.min(TENSORS_AT_ONCE),
        false => threads,
    };
    let alone = match at_once {
        0 | 1 => fills,
        _ => run_at_once(plan, at_once, fills, &mut all)?,
    };
    if alone.is_empty() {
        return Ok(());
    }
    let quantizer = Quantizer::new(&plan.device, COMMIT_STAGING_BYTES)?;
    for fill in alone {
        let before = all.done;
        let mut within = |_: Phase, done: u64, _: u64| all.report(before + done as usize).is_ok();
        fill.run(&quantizer, &mut Some(&mut within))?;
        all.done = before + fill.source_bytes();
    }
    Ok(())
}

/// Quantizes several tensors at the same time, each with its part of the staging memory. Returns
/// those that need more of it: that do not fit their part, or would be read twice.
fn run_at_once<'a>(
    plan: &DevicePlan,
    at_once: usize,
    fills: Vec<&'a Fill>,
    all: &mut FillProgress<'_, '_>,
) -> Result<Vec<&'a Fill>> {
    let staging_bytes = COMMIT_STAGING_BYTES / at_once as u64;
    let quantizers: Vec<_> =
        (0..at_once).map(|_| Quantizer::new(&plan.device, staging_bytes)).collect::<Result<_>>()?;
    let fits = |one: &&Fill| matches!(quantizers[0].passes(&one.task), Ok(1));
    let (fitting, alone): (Vec<_>, Vec<_>) = fills.into_iter().partition(fits);
    let idle = Mutex::new(quantizers);
    let work = |at: usize, _: usize| {
        // There are as many as threads.
        let quantizer = sync::lock(&idle).pop();
        let Some(quantizer) = quantizer else {
            fail!(WB_ERR_INTERNAL, "more threads quantize than there are quantizers")
        };
        let done = fitting[at].run(&quantizer, &mut None);
        sync::lock(&idle).push(quantizer);
        done
    };
    let mut end = |at: usize| {
        all.done += fitting[at].source_bytes();
        all.report(all.done)
    };
    let pieces = Pieces { count: fitting.len(), parts: 1, ahead: 2 * at_once };
    in_order(pieces, at_once, &mut |_| Ok(()), &work, &mut end)?;
    Ok(alone)
}

/// The progress of all tensors together.
struct FillProgress<'a, 'p> {
    done: usize,
    total: usize,
    progress: &'a mut Progress<'p>,
}

impl FillProgress<'_, '_> {
    fn report(&mut self, done: usize) -> Result<()> {
        report(self.progress, Phase::Quantize, done, self.total)
    }
}

/// A task of a commit.
struct Fill {
    task: QuantizeTask,
    /// Whether its source is compressed.
    is_encoded: bool,
}

impl Fill {
    /// Quantizes the source. A compressed one is decoded to memory of its own first.
    fn run(&self, quantizer: &Quantizer, progress: &mut Progress<'_>) -> Result<()> {
        let Self { task, is_encoded: true } = self else {
            return quantizer.run(&self.task, progress).map(drop);
        };
        let memory = Mapping::anonymous(self.source_bytes())?;
        let decoded = memory.span().part(0, self.source_bytes());
        in_memory::decode(task.unquantized.span, 0, decoded, true, 0)?;
        let task = QuantizeTask { unquantized: Location::host(decoded), ..task.clone() };
        quantizer.run(&task, progress).map(drop)
    }

    /// Bytes of the numbers that are quantized.
    fn source_bytes(&self) -> usize {
        self.task.layout.span_bytes() as usize
    }
}

/// The task that quantizes a source to where a parameter and its scales are kept.
pub fn task_for(
    rule: &QuantizationRule,
    state: &OffloadState,
    at: usize,
    layout: &Layout,
    source: Location,
) -> Result<QuantizeTask> {
    let scales = match &state.parameters[at].quantized {
        Some(quantized) => state.own_location(state.find(&quantized.scales)?),
        None => None,
    };
    match (state.own_location(at), scales) {
        (Some(numbers), Some(scales)) => Ok(task_to(rule, [numbers, scales], layout, source)),
        _ => Err(no_memory(state, at)),
    }
}

/// The error of a parameter whose numbers or scales have no memory.
pub fn no_memory(state: &OffloadState, at: usize) -> Error {
    let name = state.parameters[at].name();
    let message = format!("parameter {name:?} is quantized, and there is no memory for it yet");
    Error::new(WB_ERR_INVALID_ARGUMENT, message)
}

/// The task that quantizes a source to numbers and scales.
pub fn task_to(
    rule: &QuantizationRule,
    [numbers, scales]: [Location; 2],
    layout: &Layout,
    source: Location,
) -> QuantizeTask {
    QuantizeTask {
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
    }
}
