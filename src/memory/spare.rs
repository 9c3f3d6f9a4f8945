//! Memory that the kernel has between two uses.

use crate::os::mapping::{self, Mapping};
use crate::os::sync::{self, Arc, Mutex};

/// A place for a mapping that may be needed again, for the same number of bytes. Its pages are freed lazily: those
/// that the kernel has not taken by then are there again, and need not be cleared. A mapping in the place is unmapped when
/// nothing has the place any more.
#[derive(Clone, Default)]
pub struct Spare(Arc<Mutex<Option<Mapping>>>);

impl Spare {
    /// Puts a mapping there, whose contents are lost.
    pub(super) fn put(&self, mapping: Mapping) {
        if !mapping::free_lazily(mapping.span()) {
            return;
        }
        let before = sync::lock(&self.0).replace(mapping);
        // Unmapped without the lock.
        drop(before);
    }

    /// The mapping of the place, if it has as many whole pages as `bytes`. Another is unmapped.
    pub(super) fn take(&self, bytes: usize) -> Option<Mapping> {
        let spare = sync::lock(&self.0).take();
        spare.filter(|mapping| mapping.holds(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::bytes;

    const BYTES: usize = 3 << 20;

    #[test]
    fn what_fits_is_taken_once_and_can_be_written() {
        let spare = Spare::default();
        let mapping = Mapping::anonymous(BYTES).unwrap();
        let address = mapping.span().start();
        bytes::fill(mapping.span(), 7);
        spare.put(mapping);
        let again = spare.clone().take(BYTES - 1).unwrap();
        assert_eq!(again.span().start(), address);
        assert!(spare.take(BYTES).is_none());
        bytes::fill(again.span(), 9);
        assert!(bytes::is_filled(again.span(), 9));
    }

    #[test]
    fn locked_memory_is_unmapped() {
        let spare = Spare::default();
        let mapping = Mapping::anonymous(BYTES).unwrap();
        mapping::lock(mapping.span().part(0, 1).pages()).unwrap();
        spare.put(mapping);
        assert!(spare.take(BYTES).is_none());
    }

    #[test]
    fn another_size_is_not_taken() {
        let spare = Spare::default();
        spare.put(Mapping::anonymous(BYTES).unwrap());
        assert!(spare.take(BYTES + 1).is_none());
        assert!(spare.take(BYTES).is_none());
    }
}
