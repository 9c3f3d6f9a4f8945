//! [`Registry`]: the ranges that this process has registered with a kind of device. No two overlap,
//! and copies are split where one begins or ends.

use std::collections::BTreeMap;

use crate::error::{Result, fail, format_bytes};
use crate::os::span::Span;
use crate::os::sync;
use crate::os::sync::{RwLock, RwLockReadGuard};
use crate::status::WB_ERR_ALREADY_REGISTERED;

/// The end of each range and a description of its owner, by its start.
type Ranges = BTreeMap<usize, (usize, &'static str)>;

/// Disjoint registered ranges.
#[derive(Debug, Default)]
pub struct Registry(RwLock<Ranges>);

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Ranges> {
        sync::read(&self.0)
    }

    /// Adds a range of an owner. Fails with `WB_ERR_ALREADY_REGISTERED` if it overlaps another, and
    /// names it.
    pub fn claim(&self, span: Span, owner: &'static str) -> Result<()> {
        let mut ranges = sync::write(&self.0);
        if let Some((start, (end, other))) = overlapping(&ranges, span) {
            fail!(
                WB_ERR_ALREADY_REGISTERED,
                "asked to register {:#x}..{:#x}; it overlaps {start:#x}..{end:#x} ({}), which is \
                 registered already as {other}: use that buffer, or release it first",
                span.start(),
                span.end(),
                format_bytes((end - start) as u64)
            );
        }
        ranges.insert(span.start(), (span.end(), owner));
        Ok(())
    }

    /// Removes a range.
    pub fn release(&self, span: Span) {
        let mut ranges = sync::write(&self.0);
        ranges.remove(&span.start());
    }

    /// Whether any byte of the span is registered.
    pub fn holds(&self, span: Span) -> bool {
        overlapping(&self.read(), span).is_some()
    }

    /// Bytes from the start of the span that are all in one registration, or all in none.
    pub fn leading_part(&self, span: Span) -> usize {
        let ranges = self.read();
        let before = ranges.range(..=span.start()).next_back();
        let boundary = match before {
            Some((_, (end, _))) if *end > span.start() => *end,
            _ => ranges.range(span.start() + 1..).next().map_or(span.end(), |(start, _)| *start),
        };
        boundary.min(span.end()) - span.start()
    }
}

/// The last registered range that begins before the span ends, if it reaches into the span.
fn overlapping(ranges: &Ranges, span: Span) -> Option<(usize, (usize, &'static str))> {
    let (start, range) = ranges.range(..span.end()).next_back()?;
    (range.0 > span.start()).then_some((*start, *range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: usize, end: usize) -> Span {
        Span::test_whole().part(start, end - start)
    }

    #[test]
    fn overlapping_ranges_are_rejected_by_name() {
        let registry = Registry::new();
        let base = Span::test_whole().start();
        registry.claim(span(100, 200), "a mapped file").unwrap();
        registry.claim(span(200, 300), "caller's memory").unwrap();
        for (start, end) in [(150, 160), (50, 101), (199, 201), (0, 1000), (299, 301), (100, 200)] {
            let error = registry.claim(span(start, end), "x").unwrap_err();
            assert_eq!(error.status, WB_ERR_ALREADY_REGISTERED);
        }
        let message = registry.claim(span(250, 251), "x").unwrap_err().message;
        let named = format!("{:#x}..{:#x}", base + 200, base + 300);
        assert!(message.contains(&named) && message.contains("caller's memory"), "{message}");
        registry.claim(span(0, 100), "x").unwrap();
        assert!(registry.holds(span(250, 400)) && !registry.holds(span(300, 400)));
        registry.release(span(200, 300));
        assert!(!registry.holds(span(200, 300)));
        registry.claim(span(250, 251), "x").unwrap();
    }

    #[test]
    fn a_copy_is_split_where_a_registration_begins_or_ends() {
        let registry = Registry::new();
        registry.claim(span(100, 200), "x").unwrap();
        registry.claim(span(200, 300), "x").unwrap();
        for ((start, end), expected) in [
            ((0, 50), 50),
            ((0, 400), 100),
            ((100, 400), 100),
            ((150, 160), 10),
            ((150, 400), 50),
            ((200, 300), 100),
            ((300, 400), 100),
        ] {
            assert_eq!(registry.leading_part(span(start, end)), expected, "{start}..{end}");
        }
    }
}
