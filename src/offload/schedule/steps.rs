//! Which copies a call relies on: those of its own step.
//!
//! A replay of a graph overwrites slots, and the library does not see it. So once a step was
//! captured, no copy that was queued in one step is relied on in another, captured or not.

use crate::device::backend::Stream;
use crate::offload::schedule::fence::Capture;
use crate::os::sync::{self, ThreadId};

/// Streams whose steps are remembered. Of more, the one that began a step first is forgotten.
const MOST_STREAMS: usize = 16;

/// When copies were queued, by a clock that ticks when a step begins.
pub(super) type Moment = u64;

/// For eager and captured work apart, when the unit was last copied into its slot; 0 if the slot
/// holds something else.
#[derive(Default)]
pub(super) struct Loaded([Moment; 2]);

impl Loaded {
    /// When the copy was queued.
    pub fn at(&self, capture: Capture) -> Moment {
        self.0[usize::from(capture.is_some())]
    }

    /// Notes that a copy into the slot is queued: a captured one leaves what eager calls find there,
    /// an eager one ends what captures rely on.
    pub fn clear(&mut self, capture: Capture) {
        match capture {
            Some(_) => self.0[1] = 0,
            None => self.0 = [0; 2],
        }
    }

    pub fn set(&mut self, capture: Capture, moment: Moment) {
        self.0[usize::from(capture.is_some())] = moment;
    }
}

/// The steps of all streams, and the capture that is recorded.
pub(super) struct Steps {
    now: Moment,
    /// Whether the engine says when steps begin.
    explicit: bool,
    /// Whether it says so outside of captures.
    eager_explicit: bool,
    /// When the last step began on any stream.
    latest: Moment,
    /// When the last step of each stream began.
    streams: Vec<(Stream, Moment)>,
    /// Whether a graph exists, which may be launched at any time.
    pub graph_exists: bool,
    /// How many captures there were. One in which units came to memory of their own, or to slots, counts again.
    pub captures: u64,
    /// Whether that has happened since the last call.
    interrupted: bool,
    /// The capture that the last call was in.
    capture: Capture,
    /// When the last captured step began: captured copies that were queued earlier are of another.
    captured_since: Moment,
    /// The stream and the thread of the last captured step.
    captured_by: Option<(Stream, ThreadId)>,
    /// Whether the next capture may continue the step of the last one: the engine says when steps
    /// begin, and has joined all copies of the last one.
    may_continue: bool,
}

impl Steps {
    pub fn new() -> Self {
        Self {
            now: 1,
            explicit: false,
            eager_explicit: false,
            latest: 1,
            streams: Vec::new(),
            graph_exists: false,
            captures: 0,
            interrupted: false,
            capture: None,
            captured_since: 1,
            captured_by: None,
            may_continue: false,
        }
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// Notes the capture that a call is in. Returns since when queued copies are of its step.
    pub fn enter(&mut self, stream: Stream, capture: Capture) -> Moment {
        let interrupted = std::mem::take(&mut self.interrupted);
        if capture.is_some() && capture == self.capture && interrupted {
            self.captures += 1;
        }
        if capture != self.capture && capture.is_some() {
            self.graph_exists = true;
            self.captures += 1;
            self.captured_by = Some((stream, sync::thread_id()));
            if !self.may_continue {
                self.captured_since = self.tick();
            }
        }
        self.capture = capture;
        let own = || self.streams.iter().find(|(of, _)| *of == stream);
        match capture {
            Some(_) => self.captured_since,
            None if self.eager_explicit => own().map_or(self.latest, |(_, began)| *began),
            // A replay may have come after any call.
            None if self.graph_exists => Moment::MAX,
            None => 1,
        }
    }

    /// Notes that a unit moves: calls that are captured from now on see it elsewhere, also those of a capture that
    /// goes on.
    pub fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// Whether an earlier call was in the capture.
    pub fn knows(&self, capture: Capture) -> bool {
        self.capture == capture
    }

    /// Whether the eager step of a call, which began at `since`, was left for a captured one by its
    /// stream or its thread. At a replay the library sees this step only, so what it says about
    /// slots is wrong.
    pub fn is_left_for_capture(&self, stream: Stream, since: Moment) -> bool {
        let own = |(by, thread)| by == stream || thread == sync::thread_id();
        self.eager_explicit && self.captured_since > since && self.captured_by.is_some_and(own)
    }

    /// Begins a step of the stream, which is in `capture`.
    pub fn begin(&mut self, stream: Stream, capture: Capture) {
        self.explicit = true;
        self.may_continue = false;
        let began = self.tick();
        if capture.is_some() {
            self.captured_since = began;
            return;
        }
        self.eager_explicit = true;
        self.latest = began;
        self.streams.retain(|(of, _)| *of != stream);
        if self.streams.len() == MOST_STREAMS {
            self.streams.remove(0);
        }
        self.streams.push((stream, began));
    }

    /// Notes that a copy is queued. Returns when.
    pub fn queue_copy(&mut self) -> Moment {
        self.may_continue = false;
        self.now
    }

    /// Notes that a stream waits for all copies.
    pub fn join(&mut self, capture: Capture) {
        self.may_continue = self.explicit && (self.may_continue || capture.is_some());
    }

    /// Forgets that captures may continue a step.
    pub fn end(&mut self) {
        self.may_continue = false;
    }

    /// Whether the step of a call on the stream, which began at `since`, relies on prefetched copies.
    pub fn prefetches(&self, stream: Stream, capture: Capture, since: Moment) -> bool {
        match capture {
            Some(_) => true,
            None if self.eager_explicit => !self.is_left_for_capture(stream, since),
            None => !self.graph_exists,
        }
    }

    /// Whether a step relies on copies of the step before.
    pub fn rely_on_each_other(&self) -> bool {
        !self.explicit && !self.graph_exists
    }
}
