//! The quantizer: moves tensors through staging memory of bounded size, chunk by chunk on several
//! streams.

use std::cell::RefCell;
use std::ptr;

use crate::device::backend::Location;
use crate::device::device::Device;
use crate::device::kernel::Kernel;
use crate::error::{Result, catch_panic, fail};
use crate::os::parallel::Progress;
use crate::os::sync::{Arc, Mutex};
use crate::os::{bytes, sync};
use crate::quant::chunking::{Chunks, LANES, StagingNeeds};
use crate::quant::gather::is_packed;
use crate::quant::pipeline::Pipeline;
use crate::quant::task::{Direction, QuantizeResult, QuantizeTask};
use crate::quant::workspace::Workspace;
use crate::status::{WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_UNALIGNED};
use crate::tensor::fp8::SourceType;
use crate::tensor::scale_grid::ScaleGrid;

/// Quantizes and dequantizes tensors, one at a time.
pub struct Quantizer {
    device: Arc<Device>,
    staging_limit: u64,
    workspace: Mutex<Workspace>,
}

thread_local! {
    /// Addresses of the quantizers that run on this thread: several if a progress callback calls
    /// another one.
    static RUNNING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Marks a quantizer as running on this thread while it lives.
struct RunningGuard;

impl RunningGuard {
    /// Fails with `WB_ERR_BUSY` if the quantizer is running on this thread: its progress callback
    /// called it and would wait for itself.
    fn new(quantizer: &Quantizer) -> Result<Self> {
        let address = ptr::from_ref(quantizer).addr();
        RUNNING.with_borrow_mut(|running| {
            if running.contains(&address) {
                fail!(
                    WB_ERR_BUSY,
                    "the quantizer was called from its own progress callback: use another one there"
                );
            }
            running.push(address);
            Ok(Self)
        })
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(Vec::pop);
    }
}

impl Quantizer {
    /// A quantizer that uses at most `staging_limit` bytes of device memory for staging, and as
    /// many of pinned host memory where a tensor cannot be copied directly. It keeps them for the
    /// next task.
    pub fn new(device: &Arc<Device>, staging_limit: u64) -> Result<Arc<Self>> {
        let workspace = Mutex::new(Workspace::new(device)?);
        Ok(Arc::new(Self { device: device.clone(), staging_limit, workspace }))
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Bytes of host and device memory that are held between tasks.
    pub fn held_bytes(&self) -> u64 {
        sync::lock(&self.workspace).held_bytes()
    }

    /// How often a task would read its source. Fails if its rows do not fit the staging memory.
    pub fn passes(&self, task: &QuantizeTask) -> Result<u32> {
        let source_type = SourceType::of(task.layout.dtype())?;
        let grid = ScaleGrid::new(&task.layout, task.block)?;
        let needs = staging_needs(&self.device, task, source_type, &grid)?;
        Ok(passes(&self.chunks(&grid, needs)?, needs))
    }

    fn chunks(&self, grid: &ScaleGrid, needs: StagingNeeds) -> Result<Chunks> {
        let lanes = if self.device.capabilities().cuda { LANES } else { 1 };
        Chunks::new(grid, needs, self.staging_limit, lanes)
    }

    /// Runs a task. Returns when all bytes are written.
    pub fn run(&self, task: &QuantizeTask, progress: &mut Progress<'_>) -> Result<QuantizeResult> {
        let (source_type, grid) = checked(task)?;
        if task.layout.elements() == 0 {
            return Ok(QuantizeResult::default());
        }
        check_aligned(task.unquantized, source_type)?;
        self.device.backend().check_process()?;
        let _running = RunningGuard::new(self)?;
        let mut workspace = sync::lock(&self.workspace);
        let needs = staging_needs(&self.device, task, source_type, &grid)?;
        let chunks = self.chunks(&grid, needs)?;
        workspace.reserve(&self.device, chunks.bytes())?;
        let pipeline = Pipeline { device: &self.device, task, source_type, grid, needs, chunks };
        let nonfinite = self.run_counted(&pipeline, &mut workspace, progress)?;
        task.check_finite(nonfinite)?;
        let passes = passes(&chunks, needs);
        Ok(QuantizeResult { nonfinite, staging_bytes: chunks.bytes(), passes })
    }

    /// Runs a pipeline, and waits for all that it has queued, also after an error. Returns the
    /// number of NaN and infinities.
    fn run_counted(
        &self,
        pipeline: &Pipeline<'_>,
        workspace: &mut Workspace,
        progress: &mut Progress<'_>,
    ) -> Result<u64> {
        let backend = self.device.backend();
        let stream = workspace.streams[0].get();
        // A task that failed may have left its count.
        backend.launch(Kernel::Zero { span: workspace.nonfinite.span() }, stream)?;
        backend.synchronize(stream)?;
        let done = catch_panic(|| pipeline.run(workspace, progress));
        // The caller may free its memory when this returns.
        for stream in &workspace.streams {
            let waited = catch_panic(|| backend.synchronize(stream.get()));
            if done.is_ok() {
                waited?;
            }
        }
        let readback = workspace.readback.data();
        self.device.copy(readback, workspace.nonfinite.span(), stream)?;
        backend.synchronize(stream)?;
        done?;
        Ok(bytes::read_u64(readback))
    }
}

/// Type and blocks of a task whose targets have as many bytes as they need.
pub(super) fn checked(task: &QuantizeTask) -> Result<(SourceType, ScaleGrid)> {
    let source_type = SourceType::of(task.layout.dtype())?;
    let grid = ScaleGrid::new(&task.layout, task.block)?;
    check_bytes("FP8 tensor", task.quantized, task.layout.elements())?;
    check_bytes("scales", task.scales, grid.all_scales() * task.scale_type.bytes())?;
    Ok((source_type, grid))
}

/// Rows and scales that need staging memory.
pub(super) fn staging_needs(
    device: &Device,
    task: &QuantizeTask,
    source_type: SourceType,
    grid: &ScaleGrid,
) -> Result<StagingNeeds> {
    // The kernels of the host device read and write all memory directly, and share what they
    // write.
    let cuda = device.capabilities().cuda;
    let row_bytes = |location: Location, bytes: u64| match location.on_device || !cuda {
        true => 0,
        false => grid.blocks.cols * bytes,
    };
    let unquantized = row_bytes(task.unquantized, source_type.bytes());
    let quantized = row_bytes(task.quantized, 1);
    let (row_in, row_out) = match task.direction {
        Direction::Quantize => (unquantized, quantized),
        Direction::Dequantize => (quantized, unquantized),
    };
    if task.direction == Direction::Dequantize && row_out > 0 && !is_packed(&grid.blocks) {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "dequantizing into host memory supports only layouts without gaps: give a contiguous layout, \
             or device memory"
        );
    }
    let given_scales = task.use_given_scales || task.direction == Direction::Dequantize;
    Ok(StagingNeeds { row_in, row_out, scale: task.scale_type.bytes(), given_scales })
}

/// How often the source is read.
fn passes(chunks: &Chunks, needs: StagingNeeds) -> u32 {
    if chunks.scales_first && !needs.given_scales { 2 } else { 1 }
}

/// Kernels access numbers only at multiples of their size: any other address is an error that stays
/// with the engine's context. Host memory and scales are copied and may lie at any address.
fn check_aligned(location: Location, source_type: SourceType) -> Result<()> {
    let address = location.span.start() as u64;
    if location.on_device && !address.is_multiple_of(source_type.bytes()) {
        fail!(
            WB_ERR_UNALIGNED,
            "the {} numbers lie at {address:#x} in device memory, which is not a multiple of {}: copy \
             them to an address that is",
            source_type.name(),
            source_type.bytes()
        );
    }
    Ok(())
}

fn check_bytes(what: &str, location: Location, needs: u64) -> Result<()> {
    if location.span.bytes() as u64 != needs {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "the {what} has {} bytes; this task needs {needs}",
            location.span.bytes()
        );
    }
    Ok(())
}
