//! [`Kernels`]: the kernels of `kernels/quantize.cu`, loaded from PTX at the first launch.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::sys::{CUfunction, CUmodule, CUstream};
use once_cell::sync::OnceCell;

use crate::device::backend::Stream;
use crate::device::cuda::code;
use crate::device::cuda::context::{Context, Entered};
use crate::device::kernel::Kernel;
use crate::error::{Result, fail};
use crate::os::span::Span;
use crate::status::WB_ERR_INTERNAL;
use crate::tensor::scale_grid::Blocks;

/// For every GPU from Turing on. The build compresses both.
const BASE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quantize.sm_75.ptx"));
/// With Hopper's instructions for 8-bit floats.
const HOPPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quantize.sm_90.ptx"));

/// Threads of a block, in every launch.
const THREADS: u64 = 256;
/// Contiguous elements that a thread converts at once: `VECTOR` of the source.
const VECTOR: u64 = 16;
/// Rows in which a thread finds the largest magnitude.
const STRIP: u64 = 16;
/// Blocks of threads that fill any device several times.
const ENOUGH: u64 = 2048;
/// The largest second dimension of a grid.
const MOST_Y: u64 = 65535;

/// The module of one context.
pub struct Kernels {
    capability: i32,
    module: OnceCell<Module>,
}

struct Module(CUmodule);

// SAFETY: a CUmodule may be used by any thread whose current context is the module's.
unsafe impl Send for Module {}
// SAFETY: as above; the driver synchronises itself.
unsafe impl Sync for Module {}

/// Grid and block of a launch, each by x and y.
struct Shape {
    grid: (u64, u64),
    block: (u64, u64),
}

/// Pointers to the arguments of a launch, valid to the end of the statement. Their types must be
/// those of the kernel's parameters; the driver copies them.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        &mut [$(ptr::from_ref(&$argument).cast_mut().cast::<c_void>()),*]
    };
}

impl Kernels {
    /// Loads nothing yet. `capability` is the compute capability times ten.
    pub fn new(capability: i32) -> Self {
        Self { capability, module: OnceCell::new() }
    }

    /// Queues a kernel.
    pub fn launch(&self, context: &Context, kernel: Kernel, stream: Stream) -> Result<()> {
        let entered = context.enter()?;
        let start = |name: &str, shape: Shape, arguments: &mut [*mut c_void]| {
            self.start(&entered, name, &shape, arguments, stream.0 as CUstream)
        };
        let address = |span: Span| span.start() as u64;
        match kernel {
            Kernel::Zero { span } => {
                let stream = stream.0 as CUstream;
                // SAFETY: the span is in device memory.
                unsafe { entered.driver.memset_async(address(span), 0, span.bytes(), stream) }
            }
            Kernel::Absmax { source_type, source, blocks, absmax, nonfinite } => {
                let vectors = vectors(&blocks, source_type.bytes(), &[source]);
                let strips = blocks.block_rows.min(u64::from(u32::MAX)).div_ceil(STRIP);
                let rows = (blocks.first_row + blocks.rows).div_ceil(blocks.block_rows) * strips;
                start(
                    &format!("wb_absmax_{}", source_type.name()),
                    Shape::of(rows, blocks.cols, vectors),
                    arguments![
                        source,
                        blocks,
                        address(absmax),
                        address(nonfinite),
                        STRIP as u32,
                        u32::from(vectors),
                    ],
                )
            }
            Kernel::Scales { absmax, format_max, scale_type, scales, inverses } => {
                let count = (absmax.bytes() / 4) as u64;
                start(
                    &format!("wb_scales_{}", scale_type.name()),
                    Shape::line(count),
                    arguments![
                        address(absmax),
                        count,
                        format_max,
                        address(scales),
                        address(inverses),
                    ],
                )
            }
            Kernel::Inverses { scale_type, scales, inverses, copy } => {
                let count = (inverses.bytes() / 4) as u64;
                start(
                    &format!("wb_inverses_{}", scale_type.name()),
                    Shape::line(count),
                    arguments![address(scales), count, i32::from(copy), address(inverses)],
                )
            }
            Kernel::Quantize { source_type, format, source, blocks, inverses, target } => {
                let target = address(target);
                let vectors = vectors(&blocks, source_type.bytes(), &[source, target]);
                start(
                    &format!("wb_quantize_{}_{}", source_type.name(), format.name()),
                    Shape::of(blocks.rows, blocks.cols, vectors),
                    arguments![source, blocks, address(inverses), target, u32::from(vectors)],
                )
            }
            Kernel::Dequantize { source_type, format, source, blocks, scales, target } => {
                let source = address(source);
                let vectors = vectors(&blocks, source_type.bytes(), &[source, target]);
                start(
                    &format!("wb_dequantize_{}_{}", source_type.name(), format.name()),
                    Shape::of(blocks.rows, blocks.cols, vectors),
                    arguments![source, blocks, address(scales), target, u32::from(vectors)],
                )
            }
        }
    }

    /// Launches a kernel by its name.
    fn start(
        &self,
        entered: &Entered<'_>,
        name: &str,
        shape: &Shape,
        arguments: &mut [*mut c_void],
        stream: CUstream,
    ) -> Result<()> {
        let module = self.module.get_or_try_init(|| self.load(entered))?;
        let Ok(symbol) = CString::new(name) else {
            fail!(WB_ERR_INTERNAL, "{name:?} cannot be the name of a kernel")
        };
        let mut function: CUfunction = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, the pointer receives the function.
        unsafe { entered.driver.module_function(&mut function, module.0, symbol.as_ptr()) }?;
        let [x, y, threads_x, threads_y] =
            [shape.grid.0, shape.grid.1, shape.block.0, shape.block.1].map(|count| count as u32);
        // SAFETY: the arguments are those of the kernel of this name, and the memory that they
        // point to stays until the stream has run the kernel (Kernel's promise).
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

    fn load(&self, entered: &Entered<'_>) -> Result<Module> {
        let compressed = if self.capability >= 90 { HOPPER } else { BASE };
        let Ok(mut image) = miniz_oxide::inflate::decompress_to_vec(compressed) else {
            fail!(WB_ERR_INTERNAL, "the kernels in the library are damaged")
        };
        image.push(0);
        let mut module = ptr::null_mut();
        // SAFETY: the image ends in NUL; the pointer receives the module.
        unsafe { entered.driver.module_load(&mut module, image.as_ptr().cast()) }?;
        Ok(Module(module))
    }

    /// Unloads the module, while its context is alive.
    pub fn unload(&mut self, context: &Context) {
        let Some(module) = self.module.take() else { return };
        if !context.process.is_current() {
            return;
        }
        code::log_unless_lost(context.enter().and_then(|entered| {
            // SAFETY: loaded once, unloaded once; no launched kernel runs any more.
            unsafe { entered.driver.module_unload(module.0) }
        }));
    }
}

impl Shape {
    /// Of a matrix, in which several threads share a row.
    fn of(rows: u64, cols: u64, vectors: bool) -> Self {
        let across = cols.div_ceil(if vectors { VECTOR } else { 1 }).max(1);
        let x = across.next_power_of_two().min(THREADS);
        let y = THREADS / x;
        let columns = across.div_ceil(x);
        let most = ENOUGH.div_ceil(columns).clamp(1, MOST_Y);
        Self { grid: (columns, rows.div_ceil(y).clamp(1, most)), block: (x, y) }
    }

    /// Of a list.
    fn line(count: u64) -> Self {
        Self { grid: (count.div_ceil(THREADS).clamp(1, ENOUGH), 1), block: (THREADS, 1) }
    }
}

/// Whether a thread can convert [`VECTOR`] elements at once: they are contiguous, aligned to 16
/// bytes, and have the same scale.
fn vectors(blocks: &Blocks, bytes: u64, addresses: &[u64]) -> bool {
    let line = blocks.row_stride.unsigned_abs() * bytes;
    blocks.col_stride == 1
        && blocks.cols.is_multiple_of(VECTOR)
        && line.is_multiple_of(16)
        && addresses.iter().all(|address| address.is_multiple_of(16))
        && (blocks.block_cols.is_multiple_of(VECTOR) || blocks.block_cols >= blocks.cols)
}
