//! Calls that make buffers and views, write to them and copy between them.

use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use weighbridge::capi::buffer::*;
use weighbridge::capi::device::wb_device_copy;
use weighbridge::capi::view::*;
use weighbridge::status::*;
use weighbridge::tensor::dtype::WB_DTYPE_U8;

use super::references::{CallerMemory, Content, Reference, read};
use super::sequence::Sequence;
use crate::c;

impl Sequence {
    pub fn alloc(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let wild = u.ratio(1, 16)?;
        let bytes = if wild { u.arbitrary()? } else { u.int_in_range(0..=9000)? };
        let mut options = buffer_options();
        if u.ratio(1, 8)? {
            options.pin = u.int_in_range(0..=3)?;
            options.huge_pages =
                if u.ratio(1, 8)? { u.int_in_range(2..=3)? } else { u.int_in_range(0..=1)? };
            options.write_combined = u.int_in_range(0..=2)?;
            options.chunk_bytes = u.int_in_range(0..=8192)?;
        }
        // Less than a megabyte, or more than any machine has: the outcome must not depend on the machine.
        let bytes = if bytes < 1 << 20 { bytes } else { bytes | 1 << 50 };
        // SAFETY: all pointers are valid.
        let made = c::make(|buffer, error| unsafe {
            wb_buffer_alloc(self.device, bytes, &raw const options, buffer, error)
        });
        let Ok(buffer) = made else { return Ok(()) };
        let info = describe(buffer);
        assert_eq!(info.asked_bytes, bytes);
        let content = Content::known(info.data, vec![0; bytes as usize], false);
        content.check();
        self.references.push(Reference::Buffer(buffer, content));
        Ok(())
    }

    pub fn register(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (bytes, before) = (u.int_in_range(0..=9000)?, u.int_in_range(0..=3000)?);
        let memory = CallerMemory::new(u.arbitrary()?);
        let data = (memory.memory.start() + before) as *mut c_void;
        let owner = Rc::as_ptr(&memory).cast_mut();
        // SAFETY: the memory stays mapped until its deleter is called.
        let made = c::make(|buffer, error| unsafe {
            let (deleter, owner) = (Some(CallerMemory::deleter as _), owner.cast());
            wb_buffer_register(self.device, data, bytes, ptr::null(), deleter, owner, buffer, error)
        });
        if let Ok(buffer) = made {
            let content = Content::known(data, read(data, bytes as usize), false);
            self.references.push(Reference::Buffer(buffer, content));
            self.registered.push(memory);
        } else {
            assert_eq!(memory.deleted(), 0, "on failure the caller keeps ownership");
        }
        Ok(())
    }

    /// A view of a part of a buffer, which may end past the buffer's end.
    pub fn view(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((buffer, content)) = self.a_buffer(u)? else { return Ok(()) };
        let Some(expected) = &content.expected else { return Ok(()) };
        let have = expected.borrow().len();
        let offset = u.int_in_range(0..=have + 1)?;
        let bytes = u.int_in_range(0..=have - offset.min(have) + 1)?;
        let shape = [bytes as i64];
        let layout = c::layout(WB_DTYPE_U8, &shape, None, offset as u64);
        let accessor = u.int_in_range(0..=1)?;
        // SAFETY: all pointers are valid.
        let made = c::make(|view, error| unsafe {
            wb_view_new(buffer, &raw const layout, accessor, view, error)
        });
        // Writes go to the whole buffer, so the view is checked against the whole content.
        match made {
            Ok(view) => {
                assert!(offset + bytes <= have || bytes == 0);
                self.references.push(Reference::View(view, content));
            }
            Err(refused) if refused.status == WB_ERR_NOT_MAPPED => {
                assert_eq!(accessor, WB_ACCESSOR_DEVICE)
            }
            Err(refused) => {
                assert!(offset + bytes > have, "{refused:?}");
                assert_eq!(refused.status, WB_ERR_OUT_OF_RANGE);
            }
        }
        Ok(())
    }

    pub fn view_copy(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let bytes: Vec<u8> = vec![u.arbitrary()?; u.int_in_range(0..=5000)?];
        let shape = [bytes.len() as i64];
        let layout = c::layout(WB_DTYPE_U8, &shape, None, 0);
        // SAFETY: all pointers are valid.
        let made = c::make(|view, error| unsafe {
            let (data, options) = (bytes.as_ptr().cast(), ptr::null());
            wb_view_copy_from(
                self.device,
                data,
                &raw const layout,
                WB_ACCESSOR_HOST,
                options,
                view,
                error,
            )
        });
        let view = made.expect("some pages are available");
        // SAFETY: the view is alive.
        let info = unsafe {
            let mut info: wb_view_info = c::sized();
            c::call(|error| wb_view_get_info(view, &raw mut info, error)).expect("it has an info");
            info
        };
        self.references.push(Reference::View(view, Content::known(info.data, bytes, false)));
        Ok(())
    }

    pub fn view_buffer(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((view, content)) = self.a_view(u)? else { return Ok(()) };
        // SAFETY: the view is alive.
        let made = c::make(|buffer, error| unsafe { wb_view_get_buffer(view, buffer, error) });
        match made {
            Ok(buffer) => self.references.push(Reference::Buffer(buffer, content)),
            Err(refused) => assert_eq!(refused.status, WB_ERR_NOT_FOUND),
        }
        Ok(())
    }

    /// The host writes to a buffer.
    pub fn write(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((_, content)) = self.a_buffer(u)? else { return Ok(()) };
        let value: u8 = u.arbitrary()?;
        let Some(expected) = content.expected.as_ref().filter(|_| !content.read_only) else {
            return Ok(());
        };
        content.check();
        let mut expected = expected.borrow_mut();
        expected.fill(value);
        // SAFETY: the buffer is alive and has these bytes; no stream writes them now.
        unsafe { ptr::write_bytes(content.start.cast::<u8>(), value, expected.len()) };
        Ok(())
    }

    /// A stream copies one buffer into another.
    pub fn copy(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (Some((_, from)), Some((_, to))) = (self.a_buffer(u)?, self.a_buffer(u)?) else {
            return Ok(());
        };
        let stream = self.a_stream(u)?;
        let (Some(source), Some(target)) = (&from.expected, &to.expected) else { return Ok(()) };
        if to.read_only || Rc::ptr_eq(&from, &to) {
            return Ok(());
        }
        let (source, mut target) = (source.borrow(), target.borrow_mut());
        let bytes = source.len().min(target.len());
        // SAFETY: both buffers are alive until the stream has completed.
        let copied = c::call(|error| unsafe {
            wb_device_copy(self.device, to.start, from.start, bytes as u64, stream, error)
        });
        assert!(copied.is_ok() || bytes == 0, "{copied:?}");
        self.synchronize(stream);
        target[..bytes].copy_from_slice(&source[..bytes]);
        drop(target);
        to.check();
        Ok(())
    }
}

/// WB_BUFFER_OPTIONS_INIT
pub fn buffer_options() -> wb_buffer_options {
    // SAFETY: a struct of the interface.
    unsafe { c::sized() }
}

pub fn describe(buffer: *const wb_buffer) -> wb_buffer_info {
    // SAFETY: the buffer is alive.
    unsafe {
        let mut info: wb_buffer_info = c::sized();
        c::call(|error| wb_buffer_get_info(buffer, &raw mut info, error)).expect("it has an info");
        info
    }
}
