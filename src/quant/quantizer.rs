//! Brings tensors through staging memory of bounded size, chunk by chunk on several streams.

use std::cell::RefCell;
use std::ptr;

use super::chunks::{Chunks, LANES, Need};
use super::geometry::Geometry;
use super::run::{Run, is_packed};
use crate::device::kernel::{Format, Kernel, ScaleKind, Wide};
use crate::device::{Device, DeviceMemory, OwnedStream};
use crate::error::{Result, catch, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::pages::{self, Span};
use crate::memory::parallel::Progress;
use crate::status::{
    WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_FINITE, WB_ERR_NOT_SUPPORTED, WB_ERR_UNALIGNED,
};
use crate::sync::{self, Arc, Mutex};
use crate::tensor::Layout;

/// Bytes that a caller names, and where they are.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// All of them.
    pub span: Span,
    /// They are in device memory.
    pub on_device: bool,
}

/// Which way numbers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To 8 bits.
    Quantize,
    /// From 8 bits; the scales are given.
    Dequantize,
}

/// What is quantized, or comes back.
#[derive(Debug, Clone)]
pub struct Task {
    /// Which way.
    pub way: Way,
    /// Type, shape and strides of the wide side.
    pub layout: Layout,
    /// Its bytes, from the lowest.
    pub wide: Place,
    /// The 8-bit numbers: as many bytes as there are elements, without gaps.
    pub narrow: Place,
    /// Their type.
    pub format: Format,
    /// Where the scales go, or where they are.
    pub scales: Place,
    /// How they are stored.
    pub kind: ScaleKind,
    /// They are given.
    pub given: bool,
    /// Rows and columns that share a scale; 0 for all.
    pub block: (u64, u64),
    /// NaN and infinities are an error.
    pub refuse_odd: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantized {
    /// Numbers that were NaN or infinite; not counted where scales were given.
    pub odd: u64,
    /// Bytes of device memory that were taken for staging.
    pub staging_bytes: u64,
    /// How often the source was read.
    pub passes: u32,
}

/// Staging memory and streams, for one task at a time.
pub struct Quantizer {
    device: Arc<Device>,
    limit: u64,
    state: Mutex<State>,
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

/// What is kept from task to task.
pub struct State {
    /// One for each lane.
    pub streams: Vec<OwnedStream>,
    /// As much as a task has needed.
    pub staging: Option<DeviceMemory>,
    /// A pinned page for what the host is told.
    told: Arc<Buffer>,
    /// Counts what is not finite in one task.
    pub odd: DeviceMemory,
    /// Pinned memory for each lane, for what cannot be copied as it lies.
    pub bounce: Vec<Arc<Buffer>>,
}

impl Quantizer {
    /// One for a device, which takes at most `limit` bytes of its memory for staging.
    pub fn new(device: &Arc<Device>, limit: u64) -> Result<Arc<Self>> {
        let streams = (0..LANES).map(|_| OwnedStream::new(device)).collect::<Result<Vec<_>>>()?;
        let told = Buffer::alloc(device, 8, &BufferOptions::default(), &mut None)?;
        let Some(odd) = DeviceMemory::alloc(device, 8)? else {
            fail!(WB_ERR_INVALID_ARGUMENT, "8 bytes of device memory were none")
        };
        let state = State { streams, staging: None, told, odd, bounce: Vec::new() };
        Ok(Arc::new(Self { device: device.clone(), limit, state: Mutex::new(state) }))
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Does a task. Returns when every byte is where it goes.
    pub fn run(&self, task: &Task, progress: &mut Progress<'_>) -> Result<Quantized> {
        let wide = Wide::of(task.layout.dtype())?;
        let geometry = Geometry::new(&task.layout, task.block)?;
        check_bytes("8-bit side", task.narrow, task.layout.elements())?;
        check_bytes("scales", task.scales, geometry.all_scales() * task.kind.bytes())?;
        if task.layout.elements() == 0 {
            return Ok(Quantized::default());
        }
        check_aligned(task.wide, wide)?;
        self.device.backend().check_process()?;
        let _working = Working::begin(self)?;
        let mut state = sync::lock(&self.state);
        let state = &mut *state;
        let backend = self.device.backend();
        // The host device's kernels find all memory where it lies, and share what they write.
        let cuda = self.device.facts().cuda;
        let near = |place: Place| place.on_device || !cuda;
        let far =
            |place: Place, bytes: u64| if near(place) { 0 } else { geometry.blocks.cols * bytes };
        let (wide_row, narrow_row) = (far(task.wide, wide.bytes()), far(task.narrow, 1));
        let (row_in, row_out) = match task.way {
            Way::Quantize => (wide_row, narrow_row),
            Way::Dequantize => (narrow_row, wide_row),
        };
        let given = task.given || task.way == Way::Dequantize;
        let need = Need { row_in, row_out, scale: task.kind.bytes(), given };
        if task.way == Way::Dequantize && row_out > 0 && !is_packed(&geometry.blocks) {
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
        backend.launch(Kernel::Zero { span: state.odd.span() }, first)?;
        backend.synchronize(first)?;
        let mut run = Run { device: &self.device, task, wide, geometry: &geometry, need, chunks };
        let done = catch(|| run.all(state, progress));
        // Whatever happened, nothing may be under way when the caller's memory goes.
        for stream in &state.streams {
            let waited = catch(|| backend.synchronize(stream.get()));
            if done.is_ok() {
                waited?;
            }
        }
        let told = state.told.data();
        self.device.copy(told, state.odd.span(), first)?;
        backend.synchronize(first)?;
        done?;
        let odd = pages::read_u64(told);
        if task.refuse_odd && odd > 0 {
            fail!(
                WB_ERR_NOT_FINITE,
                "{odd} of {} numbers are NaN or infinite, and that was to be an error: what was \
                 written is not to be used",
                task.layout.elements()
            );
        }
        let two = run.chunks.scales_first && !given;
        let staging_bytes = run.chunks.bytes();
        Ok(Quantized { odd, staging_bytes, passes: if two { 2 } else { 1 } })
    }
}

/// Kernels read and write numbers at multiples of their size only: anything else is an error that stays with
/// the engine's context. What is copied, as host memory and scales are, may lie anywhere.
fn check_aligned(place: Place, wide: Wide) -> Result<()> {
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

impl State {
    /// Staging memory of at least so many bytes; the old goes first.
    fn make_room(&mut self, device: &Arc<Device>, bytes: u64) -> Result<()> {
        let have = self.staging.as_ref().map_or(0, |memory| memory.span().bytes() as u64);
        if bytes > have {
            self.staging = None;
            self.staging = DeviceMemory::alloc(device, bytes as usize)?;
        }
        Ok(())
    }
}

fn check_bytes(what: &str, place: Place, needs: u64) -> Result<()> {
    if place.span.bytes() as u64 != needs {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "the {what} has {} bytes; this task takes {needs}",
            place.span.bytes()
        );
    }
    Ok(())
}
