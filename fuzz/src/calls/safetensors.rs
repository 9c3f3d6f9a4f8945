//! Calls that open safetensors files and make views of their tensors.

use std::ptr;

use arbitrary::{Result, Unstructured};
use weighbridge::capi::safetensors::*;
use weighbridge::capi::view::WB_ACCESSOR_HOST;

use super::buffer::{buffer_options, describe};
use super::references::{Content, Reference};
use super::sequence::Sequence;
use crate::c;
use crate::memory::MemoryFile;

impl Sequence {
    /// Opens a safetensors file of two tensors.
    pub fn open_file(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let json = br#"{"a":{"dtype":"U8","shape":[300],"data_offsets":[0,300]},
                        "b":{"dtype":"F32","shape":[1,5],"data_offsets":[300,320]}}"#;
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json);
        bytes.resize(bytes.len() + 320, u.arbitrary()?);
        let file = MemoryFile::new();
        file.write(&bytes);
        let mut options = buffer_options();
        options.file_mode = u.int_in_range(0..=2)?;
        // SAFETY: all pointers are valid.
        let opened = c::make(|made, error| unsafe {
            let path = file.path().as_ptr();
            wb_safetensors_open(self.device, path, &raw const options, made, error)
        });
        // The handle may read from the file until it is destroyed.
        self.files.push(file);
        let Ok(opened) = opened else { return Ok(()) };
        // SAFETY: the file is alive.
        let buffer =
            c::make(|made, error| unsafe { wb_safetensors_get_buffer(opened, made, error) })
                .expect("a file has a buffer");
        let content = Content::known(describe(buffer).data, bytes, true);
        self.references.push(Reference::Buffer(buffer, content.clone()));
        self.references.push(Reference::File(opened, content));
        Ok(())
    }

    pub fn view_of_file(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let file = self.pick(u, |reference| match reference {
            Reference::File(raw, content) => Some((*raw, content.clone())),
            _ => None,
        })?;
        let Some((file, content)) = file else { return Ok(()) };
        let (index, alignment) = (u.int_in_range(0..=2)?, 1 << u.int_in_range(0..=8)?);
        if u.arbitrary()? {
            // SAFETY: the file is alive.
            let made = c::make(|view, error| unsafe {
                wb_safetensors_get_view(file, index, WB_ACCESSOR_HOST, alignment, view, error)
            });
            made.into_iter()
                .for_each(|view| self.references.push(Reference::View(view, content.clone())));
            return Ok(());
        }
        let mut copied = -1;
        // SAFETY: the file is alive.
        let made = c::make(|view, error| unsafe {
            let (accessor, options, copied) = (WB_ACCESSOR_HOST, ptr::null(), &raw mut copied);
            wb_safetensors_load_view(file, index, accessor, alignment, options, view, copied, error)
        });
        assert_eq!(copied == -1, made.is_err(), "outputs are written on success only");
        let content = if copied == 1 { Content::unknown() } else { content };
        made.into_iter()
            .for_each(|view| self.references.push(Reference::View(view, content.clone())));
        Ok(())
    }
}
