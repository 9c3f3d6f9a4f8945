//! [`Kernels`]: the kernels of `kernels/`, loaded from PTX at the first launch.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::sys::{CUfunction, CUmodule, CUstream};
use once_cell::sync::OnceCell;

use crate::device::backend::Stream;
use crate::device::cuda::code;
use crate::device::cuda::context::{Context, Entered};
use crate::device::cuda::ptx::{self, BASE, CODEC, EXPERTS, HOPPER};
use crate::device::experts::BLOCKS as EXPERTS_BLOCKS;
use crate::device::kernel::{DecodeSource, Kernel, Window};
use crate::error::{Result, fail};
use crate::os::span::Span;
use crate::status::WB_ERR_INTERNAL;
use crate::tensor::coded::{ENTRY, HEADER, TILE, tiles};
use crate::tensor::scale_grid::Blocks;

/// Threads of a block, in every launch but those of the codec.
const THREADS: u64 = 256;
/// Contiguous elements that a thread converts at once: `VECTOR` of the source.
const VECTOR: u64 = 16;
/// Rows in which a thread finds the largest magnitude.
const STRIP: u64 = 16;
/// Blocks of threads that fill any device several times.
const ENOUGH: u64 = 2048;
/// The largest second dimension of a grid.
const MOST_Y: u64 = 65535;

/// Threads of a block of the codec, and the tiles that they work on, a warp for each.
const CODEC_THREADS: u64 = 128;
const CODEC_TILES: u64 = 4;
/// Blocks that decode what they read over the link: enough to keep it busy, and so few that the kernels of
/// the step need not wait for them to end.
const CARRY_BLOCKS: u64 = 128;
/// Threads of the block that places the bodies of tiles.
const PLACING_THREADS: u64 = 1024;
/// Bytes of the counts of exponents.
const COUNTS: usize = 1024;

/// More functions than a module has.
const MOST_FUNCTIONS: usize = 64;

/// Threads of a block of the expert cache: `THREADS` of the source.
const EXPERTS_THREADS: u64 = 512;

/// The modules of one context.
pub struct Kernels {
    capability: i32,
    module: OnceCell<Module>,
    codec: OnceCell<Module>,
    experts: OnceCell<Module>,
}

/// A module, and the functions of it that were launched, so that the driver looks each up once.
struct Module {
    raw: CUmodule,
    functions: [OnceCell<(Box<str>, CUfunction)>; MOST_FUNCTIONS],
}

// SAFETY: a CUmodule and a CUfunction of it may be used by any thread whose current context is the
// module's.
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
        Self {
            capability,
            module: OnceCell::new(),
            codec: OnceCell::new(),
            experts: OnceCell::new(),
        }
    }

    /// Queues a kernel.
    pub fn launch(&self, context: &Context, kernel: Kernel, stream: Stream) -> Result<()> {
        let entered = context.enter()?;
        let start = |name: &str, shape: Shape, arguments: &mut [*mut c_void]| {
            let compressed = if self.capability >= 90 { HOPPER } else { BASE };
            let module = self.module.get_or_try_init(|| load(&entered, compressed))?;
            start_kernel(&entered, module, name, &shape, arguments, stream.0 as CUstream)
        };
        let code = |name: &str, (blocks, threads): (u64, u64), arguments: &mut [*mut c_void]| {
            let module = self.codec.get_or_try_init(|| load(&entered, CODEC))?;
            let shape = Shape { grid: (blocks, 1), block: (threads, 1) };
            start_kernel(&entered, module, name, &shape, arguments, stream.0 as CUstream)
        };
        let experts = |name: &str, blocks: u64, arguments: &mut [*mut c_void]| {
            let module = self.experts.get_or_try_init(|| load(&entered, EXPERTS))?;
            let shape = Shape { grid: (blocks, 1), block: (EXPERTS_THREADS, 1) };
            start_kernel(&entered, module, name, &shape, arguments, stream.0 as CUstream)
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
            Kernel::Encode { coded, source, target } => {
                let (type_, bytes) = (coded as u32, source.bytes() as u64);
                let (from, to) = (address(source), address(target));
                let whole = bytes / TILE;
                // Bodies are written later: until then their memory holds the counts.
                let counts = target.part((HEADER + ENTRY * tiles(bytes)) as usize, COUNTS);
                let counted = if whole == 0 { 0 } else { address(counts) };
                if whole > 0 {
                    let stream = stream.0 as CUstream;
                    // SAFETY: the counts are in device memory.
                    unsafe { entered.driver.memset_async(counted, 0, COUNTS, stream) }?;
                    let shape = (whole.min(ENOUGH), CODEC_THREADS);
                    code("wb_codec_count", shape, arguments![type_, from, bytes, counted])?;
                }
                code("wb_codec_begin", (1, 32), arguments![type_, bytes, counted, to])?;
                let shape = (tiles(bytes).div_ceil(CODEC_TILES), CODEC_THREADS);
                if bytes > 0 {
                    code("wb_codec_measure", shape, arguments![type_, from, bytes, to])?;
                }
                code("wb_codec_place", (1, PLACING_THREADS), arguments![bytes, to])?;
                if bytes > 0 {
                    code("wb_codec_write", shape, arguments![type_, from, bytes, to])?;
                }
                Ok(())
            }
            Kernel::Decode { coded, encoded, decoded_bytes, first_tile, target, source } => {
                let count = tiles(target.bytes() as u64);
                let (how, most, window) = match source {
                    DecodeSource::Given => ("decode", count, Window::default()),
                    DecodeSource::Host => {
                        // With a header no link is followed, which a mapped file may have.
                        let window = Window { header: address(encoded), ..Window::default() };
                        ("carry", CARRY_BLOCKS, window)
                    }
                    DecodeSource::Window(window) => ("carry", count, window),
                    DecodeSource::Kept => ("carry", count, Window::default()),
                };
                code(
                    &format!("wb_codec_{how}_{}", coded.name()),
                    (count.div_ceil(CODEC_TILES).min(most), CODEC_THREADS),
                    arguments![
                        address(encoded),
                        encoded.bytes() as u64,
                        decoded_bytes,
                        first_tile,
                        count as u32,
                        address(target),
                        window,
                    ],
                )
            }
            Kernel::ExpertsRoute { state, call } => {
                experts("wb_experts_route", EXPERTS_BLOCKS, arguments![state, call])
            }
            Kernel::ExpertsResize { state, keep, slots } => {
                experts("wb_experts_resize", 1, arguments![state, keep, slots])
            }
            Kernel::Verify { encoded, decoded_bytes, first_tile, decoded, mismatches } => {
                let count = tiles(decoded.bytes() as u64);
                code(
                    "wb_codec_verify",
                    (count.div_ceil(CODEC_TILES), CODEC_THREADS),
                    arguments![
                        address(encoded),
                        encoded.bytes() as u64,
                        decoded_bytes,
                        first_tile,
                        count as u32,
                        address(decoded),
                        address(mismatches),
                    ],
                )
            }
        }
    }

    /// Unloads the modules, while their context is alive.
    pub fn unload(&mut self, context: &Context) {
        for module in
            [self.module.take(), self.codec.take(), self.experts.take()].into_iter().flatten()
        {
            unload(context, &module);
        }
    }
}

fn unload(context: &Context, module: &Module) {
    if !context.process.is_current() {
        return;
    }
    code::log_unless_lost(context.enter().and_then(|entered| {
        // SAFETY: loaded once, unloaded once; no launched kernel runs any more.
        unsafe { entered.driver.module_unload(module.raw) }
    }));
}

/// Launches a kernel by its name.
fn start_kernel(
    entered: &Entered<'_>,
    module: &Module,
    name: &str,
    shape: &Shape,
    arguments: &mut [*mut c_void],
    stream: CUstream,
) -> Result<()> {
    let function = module.function(entered, name)?;
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

/// Loads a module from compressed PTX.
fn load(entered: &Entered<'_>, compressed: &[u8]) -> Result<Module> {
    let Some(mut image) = ptx::unpack(compressed) else {
        fail!(WB_ERR_INTERNAL, "the kernels in the library are damaged")
    };
    image.push(0);
    let mut module = ptr::null_mut();
    // SAFETY: the image ends in NUL; the pointer receives the module.
    unsafe { entered.driver.module_load(&mut module, image.as_ptr().cast()) }?;
    Ok(Module { raw: module, functions: [const { OnceCell::new() }; MOST_FUNCTIONS] })
}

impl Module {
    /// The function of a name: that of the first cell that has it, or takes it.
    fn function(&self, entered: &Entered<'_>, name: &str) -> Result<CUfunction> {
        for cell in &self.functions {
            let (known, function) =
                cell.get_or_try_init(|| Ok((name.into(), self.look_up(entered, name)?)))?;
            if **known == *name {
                return Ok(*function);
            }
        }
        self.look_up(entered, name)
    }

    fn look_up(&self, entered: &Entered<'_>, name: &str) -> Result<CUfunction> {
        let Ok(symbol) = CString::new(name) else {
            fail!(WB_ERR_INTERNAL, "{name:?} cannot be the name of a kernel")
        };
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, the pointer receives the function.
        unsafe { entered.driver.module_function(&mut function, self.raw, symbol.as_ptr()) }?;
        Ok(function)
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
