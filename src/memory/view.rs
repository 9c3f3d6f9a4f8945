//! A typed, shaped, strided window into a buffer, with the device's address of it.

use std::sync::atomic::Ordering;

use crate::device::device::Device;
use crate::device::owned::DeviceMemory;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::bytes;
use crate::os::parallel::{Phase, Progress, in_pieces, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_NOT_MAPPED, WB_ERR_OUT_OF_RANGE};
use crate::tensor::layout::Layout;

/// Who looks through a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accessor {
    /// The device: the buffer must be mapped for it.
    Device,
    /// The host only.
    Host,
}

/// What a view looks into, and holds alive.
enum Memory {
    Host(Arc<Buffer>),
    /// Device memory of the offloader: a slot, or what it keeps resident.
    Device(Arc<DeviceMemory>),
}

/// A window into memory, which it holds alive.
pub struct View {
    memory: Memory,
    layout: Layout,
    access: Accessor,
    /// Bytes from the memory's first byte to the first element.
    offset: u64,
}

impl View {
    /// A view of the element at `offset` bytes and all that follow by the layout. It aliases the
    /// buffer, or fails: it never copies.
    pub fn new(
        buffer: Arc<Buffer>,
        layout: Layout,
        offset: u64,
        access: Accessor,
    ) -> Result<Arc<Self>> {
        let have = buffer.data().bytes() as u64;
        check_range(&layout, offset, have)?;
        buffer.check_file()?;
        if access == Accessor::Device && buffer.device_address().is_none() && have > 0 {
            fail!(WB_ERR_NOT_MAPPED, "{}", not_mapped(&buffer));
        }
        Ok(Self::made(Memory::Host(buffer), layout, access, offset))
    }

    /// A view of device memory, from the device only.
    pub fn of_device(memory: Arc<DeviceMemory>, layout: Layout, offset: u64) -> Result<Arc<Self>> {
        check_range(&layout, offset, memory.span().bytes() as u64)?;
        Ok(Self::made(Memory::Device(memory), layout, Accessor::Device, offset))
    }

    fn made(memory: Memory, layout: Layout, access: Accessor, offset: u64) -> Arc<Self> {
        let view = Self { memory, layout, access, offset };
        view.device().counters().views.fetch_add(1, Ordering::AcqRel);
        Arc::new(view)
    }

    /// Copies a tensor of the caller, gaps and strides included, into a new buffer and views it.
    pub fn copy_from(
        device: &Arc<Device>,
        first_element: Span,
        layout: Layout,
        access: Accessor,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        let bytes = layout.span_bytes() as usize;
        let buffer = Buffer::alloc(device, bytes, options, progress)?;
        let (from, to) = (first_element, buffer.data());
        let threads = threads_for(options.threads, bytes);
        in_pieces(to, threads, Phase::Read, progress, &|piece| {
            bytes::copy(piece, from.part(piece.start() - to.start(), piece.bytes()));
            Ok(())
        })?;
        let offset = layout.bytes_before();
        Self::new(buffer, layout, offset, access)
    }

    /// The buffer that it looks into; `None` for device memory.
    pub fn buffer(&self) -> Option<&Arc<Buffer>> {
        match &self.memory {
            Memory::Host(buffer) => Some(buffer),
            Memory::Device(_) => None,
        }
    }

    /// The device that it is for.
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

    /// Who looks through it.
    pub fn accessor(&self) -> Accessor {
        self.access
    }

    /// The host's address of the first element; 0 in a buffer of no bytes, and in memory that only a
    /// CUDA device sees.
    pub fn address(&self) -> usize {
        let start = match &self.memory {
            Memory::Host(buffer) => buffer.data().start(),
            Memory::Device(memory) if !memory.device().capabilities().cuda => memory.span().start(),
            Memory::Device(_) => 0,
        };
        if start == 0 { 0 } else { start + self.offset as usize }
    }

    /// The device's address of the first element, for a view from the device.
    pub fn device_address(&self) -> Option<u64> {
        let start = match (&self.memory, self.access) {
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

/// `WB_ERR_OUT_OF_RANGE` where the layout goes past `have` bytes.
fn check_range(layout: &Layout, offset: u64, have: u64) -> Result<()> {
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
        "the device cannot see this memory ({why}); copy it to the device, or use WB_ACCESSOR_HOST"
    )
}
