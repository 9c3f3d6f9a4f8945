//! Brings tensors through staging memory of bounded size, chunk by chunk on several streams.

use std::cell::RefCell;
use std::ptr;

use crate::device::backend::Location;
use crate::device::device::Device;
use crate::device::kernel::Kernel;
use crate::device::owned::{DeviceMemory, OwnedStream};
use crate::error::{Result, catch, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::parallel::Progress;
use crate::os::sync::{Arc, Mutex};
use crate::os::{bytes, sync};
use crate::quant::chunking::{Chunks, LANES, Need};
use crate::quant::pipeline::{Pipeline, is_packed};
use crate::quant::task::{Direction, QuantizeResult, QuantizeTask};
use crate::quant::workspace::Workspace;
use crate::status::{
    WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_FINITE, WB_ERR_NOT_SUPPORTED, WB_ERR_UNALIGNED,
};
use crate::tensor::fp8::SourceType;
use crate::tensor::scale_grid::ScaleGrid;

/// Staging memory and streams, for one task at a time.
pub struct Quantizer {
    device: Arc<Device>,
    limit: u64,
    state: Mutex<Workspace>,
}

thread_local! {
    /// The quantizers that work on this thread, by address: more than one where a progress function
    /// calls another.
    static WORKING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, its quantizer works on this thread.
struct Working;

impl Working {
    /// `WB_ERR_BUSY` where it does so already: its own progress function would wait for itself.
    fn begin(quantizer: &Quantizer) -> Result<Self> {
        let address = ptr::from_ref(quantizer).addr();
        WORKING.with_borrow_mut(|working| {
            if working.contains(&address) {
                fail!(
                    WB_ERR_BUSY,
                    "the quantizer was called from its own progress function: use another one there"
                );
            }
            working.push(address);
            Ok(Self)
        })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.with_borrow_mut(Vec::pop);
    }
}

impl Quantizer {
    /// One for a device, which takes at most `limit` bytes of its memory for staging.
    pub fn new(device: &Arc<Device>, limit: u64) -> Result<Arc<Self>> {
        let streams = (0..LANES).map(|_| OwnedStream::new(device)).collect::<Result<Vec<_>>>()?;
        let told = Buffer::alloc(device, 8, &BufferOptions::default(), &mut None)?;
        let Some(nonfinite) = DeviceMemory::alloc(device, 8)? else {
            fail!(WB_ERR_INVALID_ARGUMENT, "8 bytes of device memory were none")
        };
        let state = Workspace { streams, staging: None, told, nonfinite, bounce: Vec::new() };
        Ok(Arc::new(Self { device: device.clone(), limit, state: Mutex::new(state) }))
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Does a task. Returns when every byte is where it goes.
    pub fn run(&self, task: &QuantizeTask, progress: &mut Progress<'_>) -> Result<QuantizeResult> {
        let wide = SourceType::of(task.layout.dtype())?;
        let geometry = ScaleGrid::new(&task.layout, task.block)?;
        check_bytes("8-bit side", task.quantized, task.layout.elements())?;
        check_bytes("scales", task.scales, geometry.all_scales() * task.scale_type.bytes())?;
        if task.layout.elements() == 0 {
            return Ok(QuantizeResult::default());
        }
        check_aligned(task.unquantized, wide)?;
        self.device.backend().check_process()?;
        let _working = Working::begin(self)?;
        let mut state = sync::lock(&self.state);
        let state = &mut *state;
        let backend = self.device.backend();
        // The host device's kernels find all memory where it lies, and share what they write.
        let cuda = self.device.capabilities().cuda;
        let near = |place: Location| place.on_device || !cuda;
        let far = |place: Location, bytes: u64| {
            if near(place) { 0 } else { geometry.blocks.cols * bytes }
        };
        let (wide_row, narrow_row) = (far(task.unquantized, wide.bytes()), far(task.quantized, 1));
        let (row_in, row_out) = match task.direction {
            Direction::Quantize => (wide_row, narrow_row),
            Direction::Dequantize => (narrow_row, wide_row),
        };
        let given = task.use_given_scales || task.direction == Direction::Dequantize;
        let need = Need { row_in, row_out, scale: task.scale_type.bytes(), given };
        if task.direction == Direction::Dequantize && row_out > 0 && !is_packed(&geometry.blocks) {
            fail!(
                WB_ERR_NOT_SUPPORTED,
                "numbers come back to host memory without gaps only: give a contiguous layout, or \
                 device memory"
            );
        }
        let chunks = Chunks::new(&geometry, need, self.limit, if cuda { LANES } else { 1 })?;
        state.make_room(&self.device, chunks.bytes())?;
        let first = state.streams[0].get();
        // The last task may have ended before its count was taken.
        backend.launch(Kernel::Zero { span: state.nonfinite.span() }, first)?;
        backend.synchronize(first)?;
        let mut run =
            Pipeline { device: &self.device, task, wide, geometry: &geometry, need, chunks };
        let done = catch(|| run.all(state, progress));
        // Whatever happened, nothing may be under way when the caller's memory goes.
        for stream in &state.streams {
            let waited = catch(|| backend.synchronize(stream.get()));
            if done.is_ok() {
                waited?;
            }
        }
        let told = state.told.data();
        self.device.copy(told, state.nonfinite.span(), first)?;
        backend.synchronize(first)?;
        done?;
        let nonfinite = bytes::read_u64(told);
        if task.reject_nonfinite && nonfinite > 0 {
            fail!(
                WB_ERR_NOT_FINITE,
                "{nonfinite} of {} numbers are NaN or infinite, and that was to be an error: what was \
                 written is not to be used",
                task.layout.elements()
            );
        }
        let two = run.chunks.scales_first && !given;
        let staging_bytes = run.chunks.bytes();
        Ok(QuantizeResult { nonfinite, staging_bytes, passes: if two { 2 } else { 1 } })
    }
}

/// Kernels read and write numbers at multiples of their size only: anything else is an error that stays with
/// the engine's context. What is copied, as host memory and scales are, may lie anywhere.
fn check_aligned(place: Location, wide: SourceType) -> Result<()> {
    let address = place.span.start() as u64;
    if place.on_device && !address.is_multiple_of(wide.bytes()) {
        fail!(
            WB_ERR_UNALIGNED,
            "the {} numbers lie at {address:#x} in device memory, which is no multiple of {}: copy \
             them to one that is",
            wide.name(),
            wide.bytes()
        );
    }
    Ok(())
}

fn check_bytes(what: &str, place: Location, needs: u64) -> Result<()> {
    if place.span.bytes() as u64 != needs {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "the {what} has {} bytes; this task takes {needs}",
            place.span.bytes()
        );
    }
    Ok(())
}
