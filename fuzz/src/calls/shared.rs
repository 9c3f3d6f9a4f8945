//! Calls that share memory with others: tensors by DLPack, and files.

use std::ptr;

use arbitrary::{Result, Unstructured};
use weighbridge::capi::dlpack::*;
use weighbridge::capi::safetensors::*;
use weighbridge::capi::view::*;

use super::held::{Content, Exported, Held};
use super::memory::{buffer_options, describe};
use super::world::World;
use crate::c;
use crate::memory::MemoryFile;

impl World {
    pub fn export(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((view, content)) = self.a_view(u)? else { return Ok(()) };
        // SAFETY: the view is alive.
        let tensor = unsafe {
            match u.arbitrary()? {
                true => {
                    c::make(|made, error| wb_view_to_dlpack(view, made, error)).map(Exported::Old)
                }
                false => c::make(|made, error| wb_view_to_dlpack_versioned(view, made, error))
                    .map(Exported::New),
            }
        };
        self.tensors.push((tensor.expect("any view can be exported"), content));
        Ok(())
    }

    /// Takes an exported tensor over, as another library's.
    pub fn import(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((tensor, content)) = self.tensors.pop() else { return Ok(()) };
        let mut options = buffer_options();
        options.pin = u.int_in_range(0..=2)?;
        let options = &raw const options;
        // SAFETY: all pointers are valid.
        let made = c::make(|view, error| unsafe {
            match &tensor {
                Exported::Old(tensor) => {
                    wb_view_from_dlpack(self.device, *tensor, 1, options, view, error)
                }
                Exported::New(tensor) => {
                    wb_view_from_dlpack_versioned(self.device, *tensor, 1, options, view, error)
                }
            }
        });
        match made {
            // The view's buffer begins at the view: the whole content is not its own to copy to.
            Ok(view) => self.held.push(Held::View(view, Content::unknown())),
            Err(_) => self.tensors.push((tensor, content)),
        }
        Ok(())
    }

    pub fn delete_tensor(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if !self.tensors.is_empty() {
            let index = u.choose_index(self.tensors.len())?;
            let (tensor, content) = self.tensors.swap_remove(index);
            content.check();
            tensor.delete();
        }
        Ok(())
    }

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
        // The handle may read from the descriptor's file until it is gone.
        self.files.push(file);
        let Ok(opened) = opened else { return Ok(()) };
        // SAFETY: the file is alive.
        let buffer = c::make(|made, error| unsafe { wb_safetensors_get_buffer(opened, made, error) })
            .expect("it has one");
        let content = Content::known(describe(buffer).data as u64, bytes, true);
        self.held.push(Held::Buffer(buffer, content.clone()));
        self.held.push(Held::File(opened, content));
        Ok(())
    }

    pub fn view_of_file(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let file = self.pick(u, |held| match held {
            Held::File(raw, content) => Some((*raw, content.clone())),
            _ => None,
        })?;
        let Some((file, content)) = file else { return Ok(()) };
        let (index, alignment) = (u.int_in_range(0..=2)?, 1 << u.int_in_range(0..=8)?);
        if u.arbitrary()? {
            // SAFETY: the file is alive.
            let made = c::make(|view, error| unsafe {
                wb_safetensors_get_view(file, index, WB_ACCESSOR_HOST, alignment, view, error)
            });
            made.into_iter().for_each(|view| self.held.push(Held::View(view, content.clone())));
            return Ok(());
        }
        let mut copied = -1;
        // SAFETY: the file is alive.
        let made = c::make(|view, error| unsafe {
            let (access, options, copied) = (WB_ACCESSOR_HOST, ptr::null(), &raw mut copied);
            wb_safetensors_load_view(file, index, access, alignment, options, view, copied, error)
        });
        assert_eq!(copied == -1, made.is_err(), "outputs are written on success only");
        let content = if copied == 1 { Content::unknown() } else { content };
        made.into_iter().for_each(|view| self.held.push(Held::View(view, content.clone())));
        Ok(())
    }
}
