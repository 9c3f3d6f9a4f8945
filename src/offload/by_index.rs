//! Parameters by their index.

use crate::error::{Result, fail};
use crate::offload::offloader::Offloader;
use crate::offload::state::Backing;
use crate::status::WB_ERR_OUT_OF_RANGE;

impl Offloader {
    /// The number of parameters.
    pub fn parameter_count(&self) -> Result<u64> {
        Ok(self.state()?.kept.len() as u64)
    }

    /// The name of the parameter at an index, and whether its device memory is the offloader's.
    pub fn name_at(&self, index: u64) -> Result<(String, bool)> {
        let state = self.state()?;
        let count = state.kept.len();
        match usize::try_from(index).ok().and_then(|index| state.kept.get(index)) {
            Some(kept) => {
                let owned = matches!(kept.place, Backing::Block(..) | Backing::Owned(..));
                Ok((kept.name.clone(), owned))
            }
            None => fail!(WB_ERR_OUT_OF_RANGE, "asked for parameter {index}; there are {count}"),
        }
    }
}
