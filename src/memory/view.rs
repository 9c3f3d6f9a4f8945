//! [`View`]: a typed, shaped, strided window into memory.

use std::sync::atomic::Ordering;

use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::bytes;
use crate::os::parallel::{Phase, Progress, in_pieces, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_NOT_MAPPED, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE};
use crate::tensor::layout::Layout;

/// What accesses memory through a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accessor {
    /// The device, for which the buffer must be mapped.
    Device,
    /// The host alone.
    Host,
}

/// The memory of a view, which the view keeps alive.
enum Memory {
    Host(Arc<Buffer>),
    /// Device memory of an offloader: slots or resident parameters.
    Device(Arc<DeviceMemory>),
}

/// A window into memory, which it keeps alive.
pub struct View {
    memory: Memory,
    layout: Layout,
    accessor: Accessor,
    /// Bytes from the start of the memory to the first element.
    offset: u64,
}

impl View {
    /// A view of a buffer, whose first element is at `offset` bytes. It aliases the buffer or
    /// fails: it never copies. Fails with `WB_ERR_NOT_MAPPED` if the device cannot access the
    /// buffer.
    pub fn new(
        buffer: Arc<Buffer>,
        layout: Layout,
        offset: u64,
        accessor: Accessor,
    ) -> Result<Arc<Self>> {
        let have = buffer.data().bytes() as u64;
        check_range(&layout, offset, have)?;
        buffer.check_file()?;
        if accessor == Accessor::Device && buffer.device_address().is_none() && have > 0 {
            fail!(WB_ERR_NOT_MAPPED, "{}", not_mapped(&buffer));
        }
        Ok(Self::build(Memory::Host(buffer), layout, accessor, offset))
    }

    /// A view of device memory, which the device alone accesses.
    pub fn of_device(memory: Arc<DeviceMemory>, layout: Layout, offset: u64) -> Result<Arc<Self>> {
        check_range(&layout, offset, memory.span().bytes() as u64)?;
        Ok(Self::build(Memory::Device(memory), layout, Accessor::Device, offset))
    }

    fn build(memory: Memory, layout: Layout, accessor: Accessor, offset: u64) -> Arc<Self> {
        let view = Self { memory, layout, accessor, offset };
        view.device().counters().views.fetch_add(1, Ordering::AcqRel);
        Arc::new(view)
    }

    /// Copies a caller's tensor, including its gaps, into a new buffer. `source` is all of its
    /// bytes.
    pub fn copy_from(
        device: &Arc<Device>,
        source: Span,
        layout: Layout,
        accessor: Accessor,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        let (bytes, offset) = (layout.span_bytes() as usize, layout.bytes_before());
        check_range(&layout, offset, bytes as u64)?;
        let buffer = Buffer::alloc(device, bytes, options, progress)?;
        let to = buffer.data();
        let threads = threads_for(options.threads, bytes);
        in_pieces(to, threads, Phase::Read, progress, &|piece| {
            bytes::copy(piece, source.part(piece.start() - to.start(), piece.bytes()));
            Ok(())
        })?;
        Self::new(buffer, layout, offset, accessor)
    }

    /// The buffer; `None` for a view of device memory.
    pub fn buffer(&self) -> Option<&Arc<Buffer>> {
        match &self.memory {
            Memory::Host(buffer) => Some(buffer),
            Memory::Device(_) => None,
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        match &self.memory {
            Memory::Host(buffer) => buffer.device(),
            Memory::Device(memory) => memory.device(),
        }
    }

    /// Whether its elements must not be written.
    pub fn is_read_only(&self) -> bool {
        self.buffer().is_some_and(|buffer| buffer.is_read_only())
    }

    /// Type, shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What accesses the memory through it.
    pub fn accessor(&self) -> Accessor {
        self.accessor
    }

    /// Address of the first element on the host; 0 in a buffer of 0 bytes and in memory of a CUDA
    /// device.
    pub fn address(&self) -> usize {
        let start = match &self.memory {
            Memory::Host(buffer) => buffer.data().start(),
            Memory::Device(memory) if !memory.device().capabilities().cuda => memory.span().start(),
            Memory::Device(_) => 0,
        };
        if start == 0 { 0 } else { start + self.offset as usize }
    }

    /// Address of the first element on the device; `None` in a view for the host alone.
    pub fn device_address(&self) -> Option<u64> {
        let start = match (&self.memory, self.accessor) {
            (_, Accessor::Host) => None,
            (Memory::Host(buffer), _) => buffer.device_address(),
            (Memory::Device(memory), _) => Some(memory.span().start() as u64),
        };
        start.map(|start| start + self.offset)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.device().counters().views.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Fails with `WB_ERR_OUT_OF_RANGE` if the layout exceeds `have` bytes, and with
/// `WB_ERR_NOT_SUPPORTED` for an opaque type.
fn check_range(layout: &Layout, offset: u64, have: u64) -> Result<()> {
    if layout.dtype().is_opaque() {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "a view has elements, and of the opaque type {:?} only blocks of {} bytes are known: use \
             the address of the parameter's info, or view the bytes as WB_DTYPE_U8",
            layout.dtype().name(),
            layout.dtype().bytes()
        );
    }
    let low = offset.checked_sub(layout.bytes_before());
    if low.and_then(|low| low.checked_add(layout.span_bytes())).is_none_or(|end| end > have) {
        fail!(
            WB_ERR_OUT_OF_RANGE,
            "a view of shape {:?}, strides {:?} of {} at byte {offset} spans {} bytes, {} of them \
             before the first element; the memory has {have}",
            layout.shape(),
            layout.strides(),
            layout.dtype().name(),
            layout.span_bytes(),
            layout.bytes_before()
        );
    }
    Ok(())
}

fn not_mapped(buffer: &Buffer) -> String {
    let policy = buffer.device().policy();
    let why = if policy.allows_views(buffer.pinned_bytes() > 0) {
        format!("its buffer: {}", buffer.fallback_reason())
    } else {
        format!("views are off: {}", policy.views_reason)
    };
    format!(
        "the device cannot access this memory ({why}); copy it to the device, or use WB_ACCESSOR_HOST"
    )
}
