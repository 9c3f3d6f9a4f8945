//! [`ExpertCaches`]: the expert caches that were made of an offloader's parameters.

use crate::cache::cache::ExpertCache;
use crate::os::sync::{Arc, Weak};

/// One expert tensor of one layer, as a parameter of an offloader.
#[derive(Debug, Clone)]
pub struct ExpertParameter {
    /// The layer.
    pub layer: u64,
    /// The name of the tensor, the same in every layer.
    pub name: String,
    /// The name of the parameter.
    pub parameter: String,
}

/// Caches with their tensors.
#[derive(Default)]
pub struct ExpertCaches(pub Vec<(Weak<ExpertCache>, Vec<ExpertParameter>)>);

impl ExpertCaches {
    /// The caches that are alive, with their tensors.
    pub fn alive(&self) -> impl Iterator<Item = (Arc<ExpertCache>, &[ExpertParameter])> {
        self.0.iter().filter_map(|(cache, tensors)| Some((cache.upgrade()?, &tensors[..])))
    }

    /// Device memory of all of them.
    pub fn device_bytes(&self) -> u64 {
        self.alive().map(|(cache, _)| cache.device_bytes()).sum()
    }

    /// Waits on the host for the calls that were queued. Returns whether there are any caches.
    pub fn synchronize(&self) -> bool {
        let mut any = false;
        for (cache, _) in self.alive() {
            cache.synchronize();
            any = true;
        }
        any
    }
}
