//! The last uses of a unit: one fence for each stream that has used it.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::Result;
use crate::offload::schedule::fence::{Capture, Fence};

/// Fences that are kept to be recorded again. Of more, those that are complete are dropped.
const MOST_FENCES: usize = 4;

/// A stream that uses a unit: its handle, which may be that of a destroyed stream whose work is not done, and
/// the number that no other stream has, unless it is in a capture.
#[derive(Clone, Copy)]
pub(super) struct User {
    pub stream: Stream,
    pub number: Option<u64>,
}

impl User {
    /// Whether both may be the same stream.
    fn is(self, other: Self) -> bool {
        let differ = self.number.zip(other.number).is_some_and(|(one, two)| one != two);
        self.stream == other.stream && !differ
    }
}

/// Streams in the order in which they were first used, each with its last use.
#[derive(Default)]
pub(super) struct LastUses(Vec<(User, Fence)>);

impl LastUses {
    /// Records the work queued on the stream as its last use.
    pub(super) fn record(&mut self, device: &Device, user: User, capture: Capture) -> Result<()> {
        // The last one with its handle, in a capture.
        let index = match self.0.iter().rposition(|(other, _)| other.is(user)) {
            Some(index) => index,
            None => {
                if capture.is_none() && self.0.len() >= MOST_FENCES {
                    self.drop_unused()?;
                }
                self.0.push((user, Fence::new(device)?));
                self.0.len() - 1
            }
        };
        let (known, fence) = &mut self.0[index];
        known.number = known.number.or(user.number);
        fence.record(device, user.stream, capture)
    }

    fn drop_unused(&mut self) -> Result<()> {
        for index in (0..self.0.len()).rev() {
            if self.0[index].1.is_unused()? {
                self.0.swap_remove(index);
            }
        }
        Ok(())
    }

    /// Clears them once a copy that waits for all of them is queued. A captured copy may never run,
    /// so uses outside of captures are not cleared for it.
    pub(super) fn clear(&mut self, capture: Capture) {
        let mut count = 0;
        self.0.retain_mut(|(_, fence)| {
            match capture {
                None => fence.clear(),
                Some(_) => fence.clear_capture(),
            }
            count += 1;
            fence.is_in_graph() || count <= MOST_FENCES
        });
    }

    pub(super) fn fences(&self) -> impl Iterator<Item = &Fence> {
        self.0.iter().map(|(_, fence)| fence)
    }
}
