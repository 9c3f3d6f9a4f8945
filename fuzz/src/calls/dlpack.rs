//! Calls that export and import DLPack tensors.

use arbitrary::{Result, Unstructured};
use weighbridge::capi::dlpack::*;
use weighbridge::capi::view::WB_ACCESSOR_HOST;
use weighbridge::status::WB_ERR_DLPACK;

use super::buffer::buffer_options;
use super::references::{Content, Exported, Reference};
use super::sequence::Sequence;
use crate::c;

impl Sequence {
    pub fn export(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((view, content)) = self.a_view(u)? else { return Ok(()) };
        // SAFETY: the view is alive.
        let tensor = unsafe {
            match u.arbitrary()? {
                true => c::make(|made, error| wb_view_to_dlpack(view, made, error))
                    .map(Exported::Unversioned),
                false => c::make(|made, error| wb_view_to_dlpack_versioned(view, made, error))
                    .map(Exported::Versioned),
            }
        };
        match tensor {
            Ok(tensor) => self.tensors.push((tensor, content)),
            // Read-only memory has no unversioned tensor.
            Err(refused) => assert_eq!(refused.status, WB_ERR_DLPACK, "{refused:?}"),
        }
        Ok(())
    }

    /// Imports an exported tensor, as if another library had exported it.
    pub fn import(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((tensor, content)) = self.tensors.pop() else { return Ok(()) };
        let mut options = buffer_options();
        options.pin = u.int_in_range(0..=2)?;
        let (accessor, options) = (WB_ACCESSOR_HOST, &raw const options);
        // SAFETY: all pointers are valid.
        let made = c::make(|view, error| unsafe {
            match &tensor {
                Exported::Unversioned(tensor) => {
                    wb_view_from_dlpack(self.device, *tensor, accessor, options, view, error)
                }
                Exported::Versioned(tensor) => wb_view_from_dlpack_versioned(
                    self.device,
                    *tensor,
                    accessor,
                    options,
                    view,
                    error,
                ),
            }
        });
        match made {
            // The view's buffer begins at the view, so it does not have the whole content.
            Ok(view) => self.references.push(Reference::View(view, Content::unknown())),
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
}
