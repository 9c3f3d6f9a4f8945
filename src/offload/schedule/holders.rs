//! Who has acquired a group: on which stream, eagerly or in a capture, and how often.

use crate::device::backend::Stream;
use crate::offload::schedule::fence::Capture;
use crate::offload::schedule::steps::Moment;
use crate::os::sync::{self, ThreadId};

/// Acquires of a group that were made alike.
#[derive(Clone, Copy)]
pub(super) struct Holder {
    pub stream: Stream,
    pub capture: Capture,
    /// When the captured step began that they are of; 0 outside of captures.
    pub step: Moment,
    pub thread: ThreadId,
    pub count: u32,
}

impl Holder {
    /// One acquire by this thread, in a step that began at `since`.
    pub fn new(stream: Stream, capture: Capture, since: Moment) -> Self {
        let step = capture.map_or(0, |_| since);
        Self { stream, capture, step, thread: sync::thread_id(), count: 1 }
    }

    /// Whether a release that is made like this one may end the acquires: both are outside of
    /// captures, or in the same one, or in captures of the same step.
    fn may_end(&self, acquired: &Self) -> bool {
        let both_captured = self.capture.is_some() && acquired.capture.is_some();
        self.capture == acquired.capture || both_captured && self.step == acquired.step
    }
}

/// All acquires of a group that are not released.
#[derive(Default)]
pub(super) struct Holders(Vec<Holder>);

impl Holders {
    /// How often the group is acquired.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|holder| holder.count).sum()
    }

    /// Whether the group is acquired on the stream, or on any.
    pub fn is_held_on(&self, stream: Option<Stream>) -> bool {
        self.0.iter().any(|holder| stream.is_none_or(|stream| holder.stream == stream))
    }

    /// Whether this thread has acquired the group, or the stream.
    pub fn is_own(&self, stream: Stream) -> bool {
        let thread = sync::thread_id();
        self.0.iter().any(|holder| holder.stream == stream || holder.thread == thread)
    }

    pub fn add(&mut self, new: Holder) {
        let kind = |holder: &Holder| (holder.stream, holder.capture, holder.step, holder.thread);
        let alike = |old: &&mut Holder| kind(old) == kind(&new);
        match self.0.iter_mut().find(alike) {
            Some(old) => old.count += new.count,
            None => self.0.push(new),
        }
    }

    /// Whether one of the acquires can be ended by a release that is made like `release`.
    pub fn has_one_for(&self, release: &Holder) -> bool {
        self.0.iter().any(|holder| release.may_end(holder))
    }

    /// Removes one acquire that can be ended by a release that is made like `release`: one on the
    /// same stream, or else any.
    pub fn remove_one(&mut self, release: &Holder) -> Option<Holder> {
        let likeness =
            |holder: &Holder| (holder.stream == release.stream, holder.thread == release.thread);
        let found = self.0.iter().enumerate().filter(|(_, holder)| release.may_end(holder));
        let (at, _) = found.max_by_key(|(_, holder)| likeness(holder))?;
        let holder = &mut self.0[at];
        holder.count -= 1;
        let removed = Holder { count: 1, ..*holder };
        if holder.count == 0 {
            self.0.swap_remove(at);
        }
        Some(removed)
    }

    /// Removes all acquires of a stream, or of every one.
    pub fn remove_all(&mut self, stream: Option<Stream>) -> Vec<Holder> {
        let of_stream = |holder: &mut Holder| stream.is_none_or(|stream| holder.stream == stream);
        self.0.extract_if(.., of_stream).collect()
    }
}
