//! [`Sources`]: where the experts of a cache are, which changes.

use crate::cache::experts::{Experts, Source};
use crate::memory::buffer::Buffer;
use crate::os::sync::Arc;

/// Where the experts are, and the memory that they are in.
pub struct Sources {
    pub addresses: Vec<Source>,
    _buffers: Vec<Arc<Buffer>>,
}

impl Sources {
    /// Those of a description, which has none from then on.
    pub fn take(experts: &mut Experts) -> Self {
        let (addresses, buffers) = (&mut experts.sources, &mut experts.buffers);
        Self { addresses: std::mem::take(addresses), _buffers: std::mem::take(buffers) }
    }
}
