//! The kernels of `kernels/quantize.cu`: loaded from PTX when the first is launched.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::sys::{CUfunction, CUmodule, CUstream};
use once_cell::sync::OnceCell;

use crate::device::backend::Stream;
use crate::device::cuda::context::{Context, Entered, record_unless_lost};
use crate::device::kernel::Kernel;
use crate::error::{Error, Result, fail};
use crate::status::WB_ERR_INTERNAL;
use crate::tensor::fp8::ScaleType;
use crate::tensor::scale_grid::Blocks;

/// For every chip from Turing on; packed by the build, as below.
const BASE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quantize.sm_75.ptx"));
/// With the instructions for 8-bit floats of Hopper.
const HOPPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quantize.sm_90.ptx"));

/// Threads of a block, which all kernels are launched with.
const THREADS: u64 = 256;
/// Elements that a thread handles at once where they lie side by side: `VECTOR` of the source.
const VECTOR: u64 = 16;
/// Rows that a thread looks through for their largest size.
const STRIP: u64 = 16;
/// Blocks of threads that fill any device several times over.
const ENOUGH: u64 = 2048;
/// The most that a grid may have in its second dimension.
const MOST_Y: u64 = 65535;

/// The module of one context.
pub struct Kernels {
    capability: i32,
    module: OnceCell<Module>,
}

struct Module(CUmodule);

// SAFETY: a CUmodule may be used by any thread whose current context is its own.
unsafe impl Send for Module {}
// SAFETY: as above; the driver synchronises itself.
unsafe impl Sync for Module {}

/// How the elements of a launch are shared out: grid and block, each x and y.
struct Shape {
    grid: (u64, u64),
    block: (u64, u64),
}

impl Kernels {
    /// None is loaded yet; `capability` is the device's, times ten.
    pub fn new(capability: i32) -> Self {
        Self { capability, module: OnceCell::new() }
    }

    /// Queues a kernel.
    pub fn launch(&self, context: &Context, kernel: Kernel, stream: Stream) -> Result<()> {
        let entered = context.enter()?;
        let raw = stream.0 as CUstream;
        match kernel {
            Kernel::Zero { span } => {
                // SAFETY: the span is the device's own.
                unsafe { entered.driver.memset_async(span.start() as u64, 0, span.bytes(), raw) }
            }
            Kernel::Absmax { source_type, source, mut blocks, absmax, nonfinite } => {
                let vectors = vectors(&blocks, source_type.bytes(), &[source]);
                let (mut strip, mut vector) = (STRIP as u32, u32::from(vectors));
                let strips = blocks.block_rows.min(u64::from(u32::MAX)).div_ceil(STRIP);
                let rows = (blocks.first_row + blocks.rows).div_ceil(blocks.block_rows) * strips;
                let shape = Shape::of(rows, blocks.cols, vectors);
                let (mut source, mut absmax) = (source, absmax.start() as u64);
                let mut nonfinite = nonfinite.start() as u64;
                let name = format!("wb_absmax_{}", source_type.name());
                let arguments: &mut [*mut c_void] = &mut [
                    (&raw mut source).cast(),
                    (&raw mut blocks).cast(),
                    (&raw mut absmax).cast(),
                    (&raw mut nonfinite).cast(),
                    (&raw mut strip).cast(),
                    (&raw mut vector).cast(),
                ];
                self.start(&entered, &name, &shape, arguments, raw)
            }
            Kernel::Scales { absmax, mut format_max, scale_type, scales, inverses } => {
                let mut count = (absmax.bytes() / 4) as u64;
                let (mut absmax, mut scales) = (absmax.start() as u64, scales.start() as u64);
                let mut inverses = inverses.start() as u64;
                let name = format!("wb_scales_{}", kind_name(scale_type));
                let arguments: &mut [*mut c_void] = &mut [
                    (&raw mut absmax).cast(),
                    (&raw mut count).cast(),
                    (&raw mut format_max).cast(),
                    (&raw mut scales).cast(),
                    (&raw mut inverses).cast(),
                ];
                self.start(&entered, &name, &Shape::line(count), arguments, raw)
            }
            Kernel::Inverses { scale_type, scales, inverses, copy } => {
                let mut count = (inverses.bytes() / 4) as u64;
                let (mut scales, mut inverses) = (scales.start() as u64, inverses.start() as u64);
                let mut copy = i32::from(copy);
                let name = format!("wb_inverses_{}", kind_name(scale_type));
                let arguments: &mut [*mut c_void] = &mut [
                    (&raw mut scales).cast(),
                    (&raw mut count).cast(),
                    (&raw mut copy).cast(),
                    (&raw mut inverses).cast(),
                ];
                self.start(&entered, &name, &Shape::line(count), arguments, raw)
            }
            Kernel::Quantize { source_type, format, source, mut blocks, inverses, target } => {
                let (mut source, mut target) = (source, target.start() as u64);
                let mut inverses = inverses.start() as u64;
                let vectors = vectors(&blocks, source_type.bytes(), &[source, target]);
                let (mut vector, shape) =
                    (u32::from(vectors), Shape::of(blocks.rows, blocks.cols, vectors));
                let name = format!("wb_quantize_{}_{}", source_type.name(), format.name());
                let arguments: &mut [*mut c_void] = &mut [
                    (&raw mut source).cast(),
                    (&raw mut blocks).cast(),
                    (&raw mut inverses).cast(),
                    (&raw mut target).cast(),
                    (&raw mut vector).cast(),
                ];
                self.start(&entered, &name, &shape, arguments, raw)
            }
            Kernel::Dequantize { source_type, format, source, mut blocks, scales, target } => {
                let (mut source, mut target) = (source.start() as u64, target);
                let mut scales = scales.start() as u64;
                let vectors = vectors(&blocks, source_type.bytes(), &[source, target]);
                let (mut vector, shape) =
                    (u32::from(vectors), Shape::of(blocks.rows, blocks.cols, vectors));
                let name = format!("wb_dequantize_{}_{}", source_type.name(), format.name());
                let arguments: &mut [*mut c_void] = &mut [
                    (&raw mut source).cast(),
                    (&raw mut blocks).cast(),
                    (&raw mut scales).cast(),
                    (&raw mut target).cast(),
                    (&raw mut vector).cast(),
                ];
                self.start(&entered, &name, &shape, arguments, raw)
            }
        }
    }

    /// Launches the kernel of a name.
    fn start(
        &self,
        entered: &Entered<'_>,
        name: &str,
        shape: &Shape,
        arguments: &mut [*mut c_void],
        stream: CUstream,
    ) -> Result<()> {
        let module = self.module.get_or_try_init(|| {
            let packed = if self.capability >= 90 { HOPPER } else { BASE };
            let Ok(mut image) = miniz_oxide::inflate::decompress_to_vec(packed) else {
                fail!(WB_ERR_INTERNAL, "the kernels in the library are damaged")
            };
            image.push(0);
            let mut module = ptr::null_mut();
            // SAFETY: the image ends in NUL; the pointer receives the module.
            unsafe { entered.driver.module_load(&mut module, image.as_ptr().cast()) }?;
            Ok::<_, Error>(Module(module))
        })?;
        let Ok(symbol) = CString::new(name) else {
            return Err(Error::new(WB_ERR_INTERNAL, format!("{name:?} is no kernel's name")));
        };
        let mut function: CUfunction = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, the pointer receives the function.
        unsafe { entered.driver.module_function(&mut function, module.0, symbol.as_ptr()) }?;
        let [x, y, threads_x, threads_y] =
            [shape.grid.0, shape.grid.1, shape.block.0, shape.block.1].map(|count| count as u32);
        // SAFETY: the arguments are those of the kernel of this name, and the memory that they point
        // to is kept by the kernel's maker until the stream has run it.
        unsafe {
            entered.driver.launch_kernel(
                function,
                x,
                y,
                1,
                threads_x,
                threads_y,
                1,
                0,
                stream,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        }
    }

    /// Gives the module back, while its context is alive.
    pub fn unload(&mut self, context: &Context) {
        let Some(module) = self.module.take() else { return };
        if !context.process.is_current() {
            return;
        }
        record_unless_lost(context.enter().and_then(|entered| {
            // SAFETY: loaded once, unloaded once; nothing that was launched runs any more.
            unsafe { entered.driver.module_unload(module.0) }
        }));
    }
}

impl Shape {
    /// For a matrix whose rows several threads go through.
    fn of(rows: u64, cols: u64, vectors: bool) -> Self {
        let across = cols.div_ceil(if vectors { VECTOR } else { 1 }).max(1);
        let x = across.next_power_of_two().min(THREADS);
        let y = THREADS / x;
        let columns = across.div_ceil(x);
        let most = ENOUGH.div_ceil(columns).clamp(1, MOST_Y);
        Self { grid: (columns, rows.div_ceil(y).clamp(1, most)), block: (x, y) }
    }

    /// For a list.
    fn line(count: u64) -> Self {
        Self { grid: (count.div_ceil(THREADS).clamp(1, ENOUGH), 1), block: (THREADS, 1) }
    }
}

fn kind_name(scale_type: ScaleType) -> &'static str {
    match scale_type {
        ScaleType::F32 => "f32",
        ScaleType::E8m0 => "e8m0",
    }
}

/// Whether a thread may handle [`VECTOR`] elements at once: they lie side by side, at multiples of 16
/// bytes, and have one scale.
fn vectors(blocks: &Blocks, bytes: u64, addresses: &[u64]) -> bool {
    let line = blocks.row_stride.unsigned_abs() * bytes;
    blocks.col_stride == 1
        && blocks.cols.is_multiple_of(VECTOR)
        && line.is_multiple_of(16)
        && addresses.iter().all(|address| address.is_multiple_of(16))
        && (blocks.block_cols.is_multiple_of(VECTOR) || blocks.block_cols >= blocks.cols)
}
