//! The last use on each stream.

use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::error::Result;
use crate::offload::schedule::fence::{Capture, Fence};

/// Streams whose marks are kept from one load to the next; of more, what has passed is forgotten.
const MOST_STREAMS: usize = 4;

/// Streams by the order in which they came, each with its last use.
#[derive(Default)]
pub(super) struct LastUses(Vec<(Stream, Fence)>);

impl LastUses {
    /// What is queued on the stream is the last use.
    pub(super) fn mark(&mut self, device: &Device, stream: Stream, capture: Capture) -> Result<()> {
        let index = match self.0.iter().position(|(used_on, _)| *used_on == stream) {
            Some(index) => index,
            None => {
                if capture.is_none() && self.0.len() >= MOST_STREAMS {
                    self.forget_past()?;
                }
                self.0.push((stream, Fence::new(device)?));
                self.0.len() - 1
            }
        };
        self.0[index].1.record(device, stream, capture)
    }

    /// Streams come and go: what has passed on them need not be kept.
    fn forget_past(&mut self) -> Result<()> {
        for index in (0..self.0.len()).rev() {
            if self.0[index].1.is_over()? {
                self.0.swap_remove(index);
            }
        }
        Ok(())
    }

    /// A copy waits for all of them: none is waited for any more. Marks stay for the streams that come
    /// again. A copy that is captured may never run: what runs without it is still waited for.
    pub(super) fn are_waited_for(&mut self, capture: Capture) {
        let mut kept = 0;
        self.0.retain_mut(|(_, mark)| {
            match capture {
                None => mark.clear(),
                Some(_) => mark.forget_capture(),
            }
            kept += 1;
            mark.is_in_graph() || kept <= MOST_STREAMS
        });
    }

    pub(super) fn marks(&self) -> impl Iterator<Item = &Fence> {
        self.0.iter().map(|(_, mark)| mark)
    }
}
