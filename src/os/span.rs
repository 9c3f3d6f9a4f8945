//! Ranges of addresses, the one type by which every floor names memory.
//!
//! Whoever makes a [`Span`] promises that its bytes stay mapped until everything that was given the span has
//! finished with it. That promise makes the functions of [`bytes`](super::bytes) safe to call.

use crate::os::page::page_bytes;

/// A range of addresses, on the host or on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub(super) start: usize,
    pub(super) bytes: usize,
}

impl Span {
    /// The span of nothing.
    pub const EMPTY: Span = Span { start: 0, bytes: 0 };

    /// Names `bytes` bytes from `start`.
    ///
    /// # Safety
    /// The bytes are mapped where they are used (on the host or on the device), are readable, and
    /// writable where they are written, and stay so until the work that was given the span is done.
    pub unsafe fn new(start: usize, bytes: usize) -> Self {
        debug_assert!(start.checked_add(bytes).is_some());
        Self { start, bytes }
    }

    /// As [`Span::new`], of numbers that were not looked at yet: `None` where they go past the last
    /// address.
    ///
    /// # Safety
    /// As for [`Span::new`].
    pub unsafe fn checked(start: u64, bytes: u64) -> Option<Self> {
        start.checked_add(bytes)?;
        Some(Self { start: start as usize, bytes: bytes as usize })
    }

    /// A span for tests of arithmetic: it is never dereferenced.
    #[cfg(test)]
    pub(crate) fn test_whole() -> Self {
        Self { start: 1 << 20, bytes: 1 << 20 }
    }

    /// The first address.
    pub fn start(self) -> usize {
        self.start
    }

    /// The first address behind the span.
    pub fn end(self) -> usize {
        self.start + self.bytes
    }

    /// Number of bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// The part from `offset`, at most `bytes` long: never more than the span itself.
    #[must_use]
    pub fn part(self, offset: usize, bytes: usize) -> Self {
        let offset = offset.min(self.bytes);
        Self { start: self.start + offset, bytes: bytes.min(self.bytes - offset) }
    }

    /// The smallest span of whole pages around it.
    #[must_use]
    pub fn pages(self) -> Self {
        let page = page_bytes();
        let start = self.start & !(page - 1);
        Self { start, bytes: round_up(self.end(), page) - start }
    }
}

/// The next multiple of `unit`, a power of two.
pub fn round_up(bytes: usize, unit: usize) -> usize {
    (bytes + unit - 1) & !(unit - 1)
}

/// The error of the last system call of this thread.
pub fn errno() -> std::io::Error {
    std::io::Error::last_os_error()
}
