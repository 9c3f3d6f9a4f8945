//! Memory that is lent to the kernel between two uses.

use crate::os::mapping::{self, Mapping};
use crate::os::sync::{self, Arc, Mutex};

/// A place for a mapping that was freed and may be needed again, for the same number of bytes. Its pages are lent to the
/// kernel: those that it has not taken by then are there again, and need not be cleared. A mapping in the place
/// is unmapped when nothing has the place any more.
#[derive(Clone, Default)]
pub struct Lender(Arc<Mutex<Option<Mapping>>>);

impl Lender {
    /// Lends a mapping, whose contents are lost.
    pub(super) fn put(&self, mapping: Mapping) {
        mapping::lend(mapping.span());
        let before = sync::lock(&self.0).replace(mapping);
        // Unmapped without the lock.
        drop(before);
    }

    /// The mapping that was lent, if it has as many whole pages as `bytes`. Another is unmapped.
    pub(super) fn take(&self, bytes: usize) -> Option<Mapping> {
        let lent = sync::lock(&self.0).take();
        lent.filter(|mapping| mapping.holds(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::bytes;

    const BYTES: usize = 3 << 20;

    #[test]
    fn what_fits_is_taken_once_and_can_be_written() {
        let lender = Lender::default();
        let mapping = Mapping::anonymous(BYTES).unwrap();
        let address = mapping.span().start();
        bytes::fill(mapping.span(), 7);
        lender.put(mapping);
        let again = lender.clone().take(BYTES - 1).unwrap();
        assert_eq!(again.span().start(), address);
        assert!(lender.take(BYTES).is_none());
        bytes::fill(again.span(), 9);
        assert!(bytes::is_filled(again.span(), 9));
    }

    #[test]
    fn another_size_is_not_taken() {
        let lender = Lender::default();
        lender.put(Mapping::anonymous(BYTES).unwrap());
        assert!(lender.take(BYTES + 1).is_none());
        assert!(lender.take(BYTES).is_none());
    }
}
