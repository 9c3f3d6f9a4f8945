//! [`HostEvent`]: an event of the host device.

use std::any::Any;
use std::time::Instant;

use crate::device::backend::{Event, Stream, WaitScope};
use crate::device::host::stream::{Streams, Uses};
use crate::error::{Result, fail};
use crate::os::sync;
use crate::os::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::status::WB_ERR_INTERNAL;

/// A point in a stream, and when the stream passed it.
struct Point {
    passed: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Point {
    fn new() -> Self {
        Self { passed: Mutex::default(), changed: Condvar::new() }
    }

    fn passed(&self) -> MutexGuard<'_, Option<Instant>> {
        sync::lock(&self.passed)
    }

    fn pass(&self) {
        *self.passed() = Some(Instant::now());
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut passed = self.passed();
        while passed.is_none() {
            passed = sync::wait(&self.changed, passed);
        }
    }
}

/// An event: the point recorded last, if any.
pub struct HostEvent {
    streams: Arc<Streams>,
    point: Mutex<Option<Arc<Point>>>,
}

impl HostEvent {
    /// An event that was not recorded yet.
    pub fn new(streams: &Arc<Streams>) -> Self {
        Self { streams: streams.clone(), point: Mutex::default() }
    }

    fn point(&self) -> Option<Arc<Point>> {
        sync::lock(&self.point).clone()
    }
}

impl Event for HostEvent {
    fn record(&self, stream: Stream) -> Result<()> {
        let point = Arc::new(Point::new());
        let passed = point.clone();
        self.streams.find(stream)?.push(Uses::Nothing, Box::new(move || passed.pass()));
        *sync::lock(&self.point) = Some(point);
        Ok(())
    }

    fn wait(&self, stream: Stream, _: WaitScope) -> Result<()> {
        let stream = self.streams.find(stream)?;
        if let Some(point) = self.point() {
            stream.push(Uses::Nothing, Box::new(move || point.wait()));
        }
        Ok(())
    }

    fn is_complete(&self) -> Result<bool> {
        Ok(self.point().is_none_or(|point| point.passed().is_some()))
    }

    fn synchronize(&self) -> Result<()> {
        if let Some(point) = self.point() {
            point.wait();
        }
        Ok(())
    }

    fn seconds_since(&self, earlier: &dyn Event) -> Result<Option<f64>> {
        let Some(earlier) = earlier.as_any().downcast_ref::<Self>() else {
            fail!(WB_ERR_INTERNAL, "the time between events of different kinds of device was asked")
        };
        let passed = |event: &Self| event.point().and_then(|point| *point.passed());
        let (Some(begin), Some(end)) = (passed(earlier), passed(self)) else { return Ok(None) };
        Ok(Some(end.saturating_duration_since(begin).as_secs_f64()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::process::Process;
    use std::sync::mpsc;

    #[test]
    fn a_stream_waits_until_the_recording_stream_has_passed() {
        let streams = Arc::new(Streams::new(Process::current()));
        let (first, second) = (streams.add().unwrap(), streams.add().unwrap());
        let (open, gate) = mpsc::channel::<()>();
        let (send, order) = mpsc::channel();
        let begin = HostEvent::new(&streams);
        begin.record(first).unwrap();
        let from_first = send.clone();
        streams.find(first).unwrap().push(
            Uses::Nothing,
            Box::new(move || {
                gate.recv().unwrap();
                from_first.send(1).unwrap();
            }),
        );
        let event = HostEvent::new(&streams);
        assert!(event.is_complete().unwrap(), "not recorded: nothing to wait for");
        event.record(first).unwrap();
        event.wait(second, WaitScope::Capture).unwrap();
        streams.find(second).unwrap().push(Uses::Nothing, Box::new(move || send.send(2).unwrap()));
        assert!(!event.is_complete().unwrap());
        assert_eq!(event.seconds_since(&begin).unwrap(), None);
        open.send(()).unwrap();
        event.synchronize().unwrap();
        assert!(event.seconds_since(&begin).unwrap().unwrap() > 0.0);
        assert_eq!(order.iter().collect::<Vec<_>>(), [1, 2]);
    }
}
