//! An event, which knows what its stream had waited for, and which capture recorded it.

use std::any::Any;

use loom::sync::atomic::Ordering;
use weighbridge::device::backend::{Event, Stream, WaitScope};
use weighbridge::error::Result;
use weighbridge::os::sync::{self, Arc, Mutex, MutexGuard};

use super::{Account, Captured, Clock, rule};

pub struct AccountedEvent {
    pub account: Arc<Account>,
    pub point: Arc<Mutex<Clock>>,
    /// The capture that recorded it last.
    pub captured_in: Mutex<Option<u64>>,
}

impl AccountedEvent {
    fn point(&self) -> MutexGuard<'_, Clock> {
        sync::lock(&self.point)
    }

    /// Names it in a graph.
    fn name(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

impl Event for AccountedEvent {
    fn record(&self, stream: Stream) -> Result<()> {
        let mut state = self.account.state();
        let capture = state.capture(stream).map(|capture| capture.id);
        *sync::lock(&self.captured_in) = capture;
        if !state.add_captured(stream, Captured::Record(self.name())) {
            let (_, knows) = state.queue(stream);
            *self.point() = knows;
        }
        Ok(())
    }

    /// As a driver: a stream that waits for a captured event is drawn into its capture, and no
    /// capture waits for what was recorded outside of it, except externally.
    fn wait(&self, stream: Stream, scope: WaitScope) -> Result<()> {
        let mut state = self.account.state();
        let own = state.capture(stream).map(|capture| capture.id);
        let captured_in = *sync::lock(&self.captured_in);
        match (own, captured_in) {
            (Some(_), _) if scope == WaitScope::External => {
                state.add_captured(stream, Captured::WaitExternally(self.point.clone()));
            }
            (None, None) => {
                let point = self.point().clone();
                state.streams[stream.0].learn(&point);
            }
            (own, Some(id)) => {
                rule(own.is_none_or(|own| own == id), "a capture waits for another")?;
                let of_event = state.captures.iter_mut().find(|capture| capture.id == id);
                let Some(capture) = of_event else {
                    return rule(false, "a stream waits for an event of an ended capture");
                };
                if own.is_none() {
                    capture.streams.push(stream);
                }
                capture.graph.work.push((stream, Captured::Wait(self.name())));
            }
            (Some(_), None) => {
                rule(false, "a capture waits for what was recorded outside of it")?;
            }
        }
        Ok(())
    }

    fn is_complete(&self) -> Result<bool> {
        let has_run = self.account.has_run.load(Ordering::Acquire);
        let point = self.point().clone();
        let mut state = self.account.state();
        if has_run && state.stalled.is_none_or(|stream| state.done.of(stream) >= point.of(stream)) {
            state.done.learn(&point);
        }
        Ok(state.done.knows(&point))
    }

    fn synchronize(&self) -> Result<()> {
        let point = self.point().clone();
        self.account.state().done.learn(&point);
        Ok(())
    }

    fn seconds_since(&self, _: &dyn Event) -> Result<Option<f64>> {
        Ok(self.is_complete()?.then_some(0.0))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
