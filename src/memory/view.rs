//! A typed, shaped, strided window into a buffer, with the device's address of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::Device;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::pages::{self, Span};
use crate::memory::parallel::{Phase, Progress, in_pieces, threads_for};
use crate::status::{WB_ERR_NOT_MAPPED, WB_ERR_OUT_OF_RANGE};
use crate::tensor::Layout;

/// Who looks through a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device: the buffer must be mapped for it.
    Device,
    /// The host only.
    Host,
}

/// A window into a buffer. It holds the buffer alive.
pub struct View {
    buffer: Arc<Buffer>,
    layout: Layout,
    access: Access,
    /// Bytes from the buffer's first byte to the first element.
    offset: u64,
}

impl View {
    /// A view of the element at `offset` bytes and all that follow by the layout. It aliases the
    /// buffer, or fails: it never copies.
    pub fn new(
        buffer: Arc<Buffer>,
        layout: Layout,
        offset: u64,
        access: Access,
    ) -> Result<Arc<Self>> {
        let have = buffer.data().bytes() as u64;
        let low = offset.checked_sub(layout.bytes_before());
        if low.and_then(|low| low.checked_add(layout.span_bytes())).is_none_or(|end| end > have) {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "a view of shape {:?}, strides {:?} of {} at byte {offset} spans {} bytes, {} of \
                 them before the first element; the buffer has {have}",
                layout.shape(),
                layout.strides(),
                layout.dtype().name(),
                layout.span_bytes(),
                layout.bytes_before()
            );
        }
        buffer.check_file()?;
        if access == Access::Device && buffer.device_address().is_none() && have > 0 {
            fail!(WB_ERR_NOT_MAPPED, "{}", not_mapped(&buffer));
        }
        buffer.device().usage().views.fetch_add(1, Ordering::AcqRel);
        Ok(Arc::new(Self { buffer, layout, access, offset }))
    }

    /// Copies a tensor of the caller, gaps and strides included, into a new buffer and views it.
    pub fn copy_from(
        device: &Arc<Device>,
        first_element: Span,
        layout: Layout,
        access: Access,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        let bytes = layout.span_bytes() as usize;
        let buffer = Buffer::alloc(device, bytes, options, progress)?;
        let (from, to) = (first_element, buffer.data());
        let threads = threads_for(options.threads, bytes);
        in_pieces(to, threads, Phase::Read, progress, &|piece| {
            pages::copy(piece, from.part(piece.start() - to.start(), piece.bytes()));
            Ok(())
        })?;
        let offset = layout.bytes_before();
        Self::new(buffer, layout, offset, access)
    }

    /// The buffer that it looks into.
    pub fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Type, shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Who looks through it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The host's address of the first element; 0 in a buffer of no bytes.
    pub fn address(&self) -> usize {
        match self.buffer.data().start() {
            0 => 0,
            start => start + self.offset as usize,
        }
    }

    /// The device's address of the first element, for a view from the device.
    pub fn device_address(&self) -> Option<u64> {
        match self.access {
            Access::Device => self.buffer.device_address().map(|start| start + self.offset),
            Access::Host => None,
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.buffer.device().usage().views.fetch_sub(1, Ordering::AcqRel);
    }
}

fn not_mapped(buffer: &Buffer) -> String {
    let policy = buffer.device().policy();
    let pinned = buffer.pinned_bytes() > 0;
    let why = if !policy.views_of(pinned) {
        format!("views are off: {}", policy.views_reason)
    } else if !pinned {
        format!("the buffer is not pinned: {}", buffer.note())
    } else {
        "the driver gives no one address for the buffer".into()
    };
    format!(
        "the device cannot see this memory ({why}); copy it to the device, or use WB_ACCESS_HOST"
    )
}
