//! [`Span`]: a range of addresses, the type by which every floor names memory.

use crate::os::page::page_bytes;

/// A range of addresses, on the host or on a device.
///
/// The code that makes a span promises that its bytes stay mapped until all work that was given the
/// span is done. That promise makes the functions of [`bytes`](crate::os::bytes) safe to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: usize,
    bytes: usize,
}

impl Span {
    /// No bytes.
    pub const EMPTY: Span = Span { start: 0, bytes: 0 };

    /// A span of `bytes` bytes from `start`.
    ///
    /// # Safety
    /// The bytes are mapped on the host or device that uses them, readable, and writable if they are
    /// written, until all work that was given the span is done.
    pub unsafe fn new(start: usize, bytes: usize) -> Self {
        debug_assert!(start.checked_add(bytes).is_some());
        Self { start, bytes }
    }

    /// As [`Span::new`], of a caller's numbers; `None` if they exceed the address space.
    ///
    /// # Safety
    /// As for [`Span::new`].
    pub unsafe fn checked(start: u64, bytes: u64) -> Option<Self> {
        start.checked_add(bytes)?;
        Some(Self { start: start as usize, bytes: bytes as usize })
    }

    /// A span for tests of arithmetic, whose bytes are never accessed.
    #[cfg(test)]
    pub(crate) fn test_whole() -> Self {
        Self { start: 1 << 20, bytes: 1 << 20 }
    }

    /// The first address.
    pub fn start(self) -> usize {
        self.start
    }

    /// One past the last address.
    pub fn end(self) -> usize {
        self.start + self.bytes
    }

    /// Number of bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// The part of at most `bytes` bytes from `offset`, cut where the span ends.
    #[must_use]
    pub fn part(self, offset: usize, bytes: usize) -> Self {
        let offset = offset.min(self.bytes);
        Self { start: self.start + offset, bytes: bytes.min(self.bytes - offset) }
    }

    /// The same memory at the addresses, from `start` on, by which a device accesses it.
    #[must_use]
    pub fn seen_from(self, start: u64) -> Self {
        Self { start: start as usize, ..self }
    }

    /// The smallest span of whole pages that contains it.
    #[must_use]
    pub fn pages(self) -> Self {
        let page = page_bytes();
        let start = self.start / page * page;
        Self { start, bytes: self.end().next_multiple_of(page) - start }
    }
}
