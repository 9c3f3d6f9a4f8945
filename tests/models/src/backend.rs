//! A device that executes nothing and keeps account instead. Every piece of work on a stream has a
//! number, and every stream knows up to which number of each other stream it has waited. So one
//! order of calls stands for every speed at which the streams could run: work that was not waited
//! for is an error, whenever it would have ended.

mod event;

use std::collections::HashMap;
use std::sync::LazyLock;

use loom::sync::atomic::AtomicBool;
use weighbridge::device::backend::{
    Backend, Capabilities, Event, HostWork, PhysicalHandle, PhysicalKind, PinOptions, Pinned,
    Stream,
};
use weighbridge::device::device::Device;
use weighbridge::device::experts::{ExpertCall, ExpertState};
use weighbridge::device::kernel::Kernel;
use weighbridge::device::policy::Tristate;
use weighbridge::device::registry::Registry;
use weighbridge::error::{Error, Result};
use weighbridge::os::span::Span;
use weighbridge::os::sync::{self, Arc, Mutex, MutexGuard};
use weighbridge::status::WB_ERR_INTERNAL;

use crate::backend::event::AccountedEvent;
use crate::ranges::Ranges;

/// The progress of each stream, as another stream or the host knows it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Vec<u64>);

impl Clock {
    pub fn of(&self, stream: Stream) -> u64 {
        self.0.get(stream.0).copied().unwrap_or(0)
    }

    fn advance(&mut self, stream: Stream) -> u64 {
        self.0.resize(self.0.len().max(stream.0 + 1), 0);
        self.0[stream.0] += 1;
        self.0[stream.0]
    }

    fn learn(&mut self, other: &Clock) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(known, new)| *known = (*known).max(*new));
    }

    fn knows(&self, other: &Clock) -> bool {
        (0..other.0.len()).all(|stream| self.of(Stream(stream)) >= other.of(Stream(stream)))
    }
}

/// What a slot contains, and the uses of it since it was written.
#[derive(Default)]
struct Slot {
    written: Option<(Stream, u64)>,
    from: usize,
    used: Vec<(Stream, u64)>,
    /// Copies out of it.
    copied: Vec<(Stream, u64)>,
    held: u32,
}

/// What a captured stream does. Events are named by their addresses.
enum Captured {
    Copy {
        to: Span,
        from: Span,
    },
    Read {
        at: Span,
        from: Span,
    },
    /// The kernel of a call of an expert cache.
    Route(ExpertState, ExpertCall),
    /// A use of the slots of an expert cache.
    ReadSlots,
    Record(usize),
    Wait(usize),
    /// Of what is recorded when the graph is replayed.
    WaitExternally(Arc<Mutex<Clock>>),
}

/// A captured step, which can be replayed.
pub struct Graph {
    origin: Stream,
    work: Vec<(Stream, Captured)>,
}

/// A capture that has begun.
struct Capture {
    id: u64,
    streams: Vec<Stream>,
    graph: Graph,
}

#[derive(Default)]
struct State {
    captures: Vec<Capture>,
    captures_begun: u64,
    streams: Vec<Clock>,
    /// Work that the host knows to be done: work that is queued later comes after it.
    done: Clock,
    /// A stream whose work ends only when the host waits for it.
    stalled: Option<Stream>,
    /// By the name of the page.
    slots: HashMap<usize, Slot>,
    ranges: Ranges,
    /// Slot 0 of an expert cache, how many slots its state has in use, and how many of them the last
    /// call found.
    slot: Option<Span>,
    slots_in_use: u32,
    slots_routed: u32,
}

impl State {
    /// Queues a piece of work. Returns its number and what the stream has waited for.
    fn queue(&mut self, stream: Stream) -> (u64, Clock) {
        let clock = &mut self.streams[stream.0];
        clock.learn(&self.done);
        (clock.advance(stream), clock.clone())
    }

    fn new_stream(&mut self, clock: Clock) -> Stream {
        self.streams.push(clock);
        Stream(self.streams.len() - 1)
    }

    /// The capture that a stream is in.
    fn capture(&mut self, stream: Stream) -> Option<&mut Capture> {
        self.captures.iter_mut().find(|capture| capture.streams.contains(&stream))
    }

    /// Adds work to the stream's capture. Returns whether it is in one.
    fn add_captured(&mut self, stream: Stream, work: Captured) -> bool {
        let capture = self.capture(stream);
        capture.map(|capture| capture.graph.work.push((stream, work))).is_some()
    }

    /// Writes slots: no group holds them, and the stream has waited for every use of their contents.
    fn copy(&mut self, to: Span, from: Span, stream: Stream) -> Result<()> {
        let contents = match self.ranges.is_reserved(from) {
            true => self.contents(from, stream, true)?,
            false => self.ranges.pages(from)?,
        };
        let (number, knows) = self.queue(stream);
        for (page, from) in self.ranges.pages(to)?.into_iter().zip(contents) {
            let slot = self.slots.entry(page).or_default();
            rule(slot.held == 0, "a slot was refilled while it was held")?;
            for (other, number) in slot.used.drain(..).chain(slot.written) {
                rule(knows.of(other) >= number, "a slot was refilled before its last use")?;
            }
            // A replay writes the bytes of a unit over the same ones, while these may be copied.
            slot.copied.retain(|(other, number)| knows.of(*other) < *number);
            let same = slot.from == from || slot.copied.is_empty();
            rule(same, "a slot was refilled before it was copied")?;
            (slot.written, slot.from) = (Some((stream, number)), from);
        }
        self.ranges.note_use(to, stream, number);
        Ok(())
    }

    /// Uses slots, whose copies the stream has waited for. Returns where their bytes come from.
    fn contents(&mut self, at: Span, stream: Stream, copies: bool) -> Result<Vec<usize>> {
        let (number, knows) = self.queue(stream);
        let mut from = Vec::new();
        for page in self.ranges.pages(at)? {
            let slot = self.slots.entry(page).or_default();
            let (writer, written) = slot.written.unwrap_or((stream, u64::MAX));
            rule(knows.of(writer) >= written, "a slot is read before its copy has ended")?;
            let uses = if copies { &mut slot.copied } else { &mut slot.used };
            uses.push((stream, number));
            from.push(slot.from);
        }
        self.ranges.note_use(at, stream, number);
        Ok(from)
    }

    /// Reads and writes the state of an expert cache.
    fn change_experts(&mut self, experts: ExpertState, stream: Stream) -> Result<()> {
        let head = span(experts.head as usize, 1);
        self.copy(head, head, stream)
    }

    /// Runs a call of an expert cache: it reads and writes the state, and writes any of the slots.
    fn route(&mut self, experts: ExpertState, call: ExpertCall, stream: Stream) -> Result<()> {
        self.change_experts(experts, stream)?;
        let needed = call.count.min(u64::from(call.end - call.first));
        let has = u64::from(self.slots_in_use) >= needed || call.hint > 0;
        rule(has, "a call finds fewer slots than it needs")?;
        self.slots_routed = self.slots_in_use;
        self.read_slots(stream)
    }

    /// Uses all slots that the last call found: which of them have its experts is known on the device.
    fn read_slots(&mut self, stream: Stream) -> Result<()> {
        let Some(slot) = self.slot else { return Ok(()) };
        let all = span(slot.start(), self.slots_routed as usize * slot.bytes());
        self.contents(all, stream, false).map(drop)
    }

    fn read(&mut self, at: Span, from: Span, stream: Stream) -> Result<()> {
        let contents = self.contents(at, stream, false)?;
        rule(contents == self.ranges.pages(from)?, "a slot contains another unit")
    }
}

/// The account of one device.
#[derive(Default)]
pub struct Account {
    state: Mutex<State>,
    /// Whether queued work counts as done.
    pub has_run: AtomicBool,
}

impl Account {
    fn state(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }

    /// Adds a stream.
    pub fn new_stream(&self) -> Stream {
        self.state().new_stream(Clock::default())
    }

    /// Queues a use of a slot, which must contain the unit that was acquired.
    pub fn read(&self, at: Span, from: Span, stream: Stream) -> Result<()> {
        let mut state = self.state();
        match state.add_captured(stream, Captured::Read { at, from }) {
            true => Ok(()),
            false => state.read(at, from, stream),
        }
    }

    /// Queues a use of the slots that the last call of the expert cache found.
    pub fn read_slots(&self, stream: Stream) -> Result<()> {
        let mut state = self.state();
        match state.add_captured(stream, Captured::ReadSlots) {
            true => Ok(()),
            false => state.read_slots(stream),
        }
    }

    /// Sets where slot 0 of the expert cache is.
    pub fn set_slot(&self, slot: Span) {
        self.state().slot = Some(slot);
    }

    /// Lets the work of a stream end only when the host waits for it, even if queued work counts as
    /// done.
    pub fn stall(&self, stream: Option<Stream>) {
        self.state().stalled = stream;
    }

    /// Sets how many bytes of physical memory of the device there may be.
    pub fn limit(&self, bytes: usize) {
        self.state().ranges.limit = bytes;
    }

    /// Bytes of physical memory of the device.
    pub fn held(&self) -> usize {
        self.state().ranges.held
    }

    /// Makes a stream wait for the work of another.
    pub fn order(&self, first: Stream, then: Stream) {
        let mut state = self.state();
        let clock = state.streams[first.0].clone();
        state.streams[then.0].learn(&clock);
    }

    /// Begins the capture of a step.
    pub fn begin_capture(&self, origin: Stream) {
        let mut state = self.state();
        state.captures_begun += 1;
        let id = state.captures_begun;
        let graph = Graph { origin, work: Vec::new() };
        state.captures.push(Capture { id, streams: vec![origin], graph });
    }

    /// Ends the capture that began on the stream.
    pub fn end_capture(&self, origin: Stream) -> Graph {
        let mut state = self.state();
        let at = state.captures.iter().position(|capture| capture.graph.origin == origin);
        state.captures.swap_remove(at.expect("a capture began")).graph
    }

    /// Replays a graph: its streams run side by side where the capture did not order them.
    pub fn replay(&self, graph: &Graph, on: Stream) -> Result<()> {
        let mut state = self.state();
        let (_, begin) = state.queue(on);
        let mut streams: HashMap<usize, Stream> = HashMap::new();
        let mut recorded: HashMap<usize, Clock> = HashMap::new();
        streams.insert(graph.origin.0, state.new_stream(begin.clone()));
        for (stream, work) in &graph.work {
            let stream = match streams.get(&stream.0) {
                Some(stream) => *stream,
                None => {
                    let made = state.new_stream(begin.clone());
                    streams.insert(stream.0, made);
                    made
                }
            };
            match work {
                Captured::Copy { to, from } => state.copy(*to, *from, stream)?,
                Captured::Read { at, from } => state.read(*at, *from, stream)?,
                Captured::Route(experts, call) => state.route(*experts, *call, stream)?,
                Captured::ReadSlots => state.read_slots(stream)?,
                Captured::Record(event) => drop(recorded.insert(*event, state.queue(stream).1)),
                Captured::Wait(event) => state.streams[stream.0].learn(&recorded[event]),
                Captured::WaitExternally(point) => {
                    let point = sync::lock(point).clone();
                    state.streams[stream.0].learn(&point);
                }
            }
        }
        let end = state.streams[streams[&graph.origin.0].0].clone();
        for stream in streams.values() {
            let all = state.streams[stream.0].clone();
            rule(end.knows(&all), "a stream of the graph is not joined")?;
        }
        state.streams[on.0].learn(&end);
        Ok(())
    }

    /// Sets whether a group's slot is acquired.
    pub fn hold(&self, slot: Span, held: bool) {
        let mut state = self.state();
        let count = &mut state.slots.entry(slot.start()).or_default().held;
        *count = if held { *count + 1 } else { *count - 1 };
    }
}

/// An error where a rule is broken: a panic would leave the library's locks taken.
pub fn rule(kept: bool, broken: &str) -> Result<()> {
    if kept { Ok(()) } else { Err(Error::new(WB_ERR_INTERNAL, broken)) }
}

// SAFETY: nothing reads or writes there: the backend only keeps account.
fn span(start: usize, bytes: usize) -> Span {
    unsafe { Span::new(start, bytes) }
}

/// A device over a new account. Host memory of the library's own, which the driver would pin, is not
/// modelled.
pub fn device() -> (Arc<Device>, Arc<Account>) {
    over(Capabilities { cuda: true, ..Capabilities::default() }, Tristate::Off)
}

/// The same, which reads host memory in place and pins it: this memory is real.
pub fn device_of_caches() -> (Arc<Device>, Arc<Account>) {
    let can = Capabilities { cuda: true, pageable_access: true, ..Capabilities::default() };
    over(Capabilities { host_register: true, ..can }, Tristate::On)
}

fn over(capabilities: Capabilities, views: Tristate) -> (Arc<Device>, Arc<Account>) {
    let account = Arc::new(Account::default());
    let backend = Accounting { account: account.clone(), capabilities };
    let device = Device::with_backend(Box::new(backend), Tristate::Off, views).unwrap();
    (device, account)
}

struct Accounting {
    account: Arc<Account>,
    capabilities: Capabilities,
}

impl Backend for Accounting {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn registry(&self) -> &'static Registry {
        static EMPTY: LazyLock<Registry> = LazyLock::new(Registry::new);
        &EMPTY
    }

    fn check_process(&self) -> Result<()> {
        Ok(())
    }

    /// Waits for all work, as a driver.
    fn wait_unused(&self, _: Span, _: bool) -> Result<()> {
        let mut state = self.account.state();
        let State { streams, done, .. } = &mut *state;
        streams.iter().for_each(|clock| done.learn(clock));
        Ok(())
    }

    fn reserve(&self, bytes: usize) -> Result<Span> {
        Ok(self.account.state().ranges.reserve(bytes))
    }

    fn free_reserved(&self, _: Span) -> Result<()> {
        Ok(())
    }

    fn create_physical(&self, bytes: usize, kind: PhysicalKind) -> Result<PhysicalHandle> {
        self.account.state().ranges.create(bytes, kind)
    }

    fn release_physical(&self, memory: PhysicalHandle) -> Result<()> {
        self.account.state().ranges.release(memory)
    }

    fn map(&self, at: Span, memory: PhysicalHandle) -> Result<()> {
        self.account.state().ranges.map(at, memory)
    }

    fn unmap(&self, at: Span) -> Result<()> {
        let mut state = self.account.state();
        let State { ranges, done, .. } = &mut *state;
        ranges.unmap(at, done)
    }

    fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()> {
        let mut state = self.account.state();
        match state.add_captured(stream, Captured::Copy { to, from }) {
            true => Ok(()),
            false => state.copy(to, from, stream),
        }
    }

    fn new_stream(&self) -> Result<Stream> {
        Ok(self.account.new_stream())
    }

    fn release_stream(&self, _: Stream) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let mut state = self.account.state();
        let clock = state.streams[stream.0].clone();
        state.done.learn(&clock);
        Ok(())
    }

    fn new_event(&self, _: bool) -> Result<Box<dyn Event>> {
        let point = Arc::new(Mutex::new(Clock::default()));
        let captured_in = Mutex::new(None);
        Ok(Box::new(AccountedEvent { account: self.account.clone(), point, captured_in }))
    }

    fn stream_id(&self, stream: Stream) -> Result<u64> {
        Ok(stream.0 as u64)
    }

    fn capture(&self, stream: Stream) -> Result<Option<u64>> {
        Ok(self.account.state().capture(stream).map(|capture| capture.id))
    }

    fn memory(&self) -> Result<(u64, u64)> {
        unreachable!()
    }

    fn pin(&self, _: Span, _: PinOptions) -> Result<()> {
        Ok(())
    }

    fn pinned(&self, span: Span, _: PinOptions) -> Result<Pinned> {
        Ok(Pinned { device_address: None, bytes: span.bytes() as u64 })
    }

    fn unpin(&self, _: Span) -> Result<()> {
        Ok(())
    }

    fn alloc_pinned(&self, _: usize, _: PinOptions) -> Result<(Span, Pinned)> {
        unreachable!()
    }

    fn free_pinned(&self, _: Span) -> Result<()> {
        unreachable!()
    }

    fn alloc(&self, _: usize) -> Result<Span> {
        unreachable!()
    }

    fn free(&self, _: u64) -> Result<()> {
        unreachable!()
    }

    fn launch(&self, kernel: Kernel, stream: Stream) -> Result<()> {
        let mut state = self.account.state();
        match kernel {
            Kernel::Zero { span: zeroed } => {
                state.copy(zeroed, span(usize::MAX / 2, zeroed.bytes()), stream)
            }
            Kernel::ExpertsResize { state: experts, slots, .. } => {
                state.change_experts(experts, stream)?;
                state.slots_in_use = slots;
                Ok(())
            }
            Kernel::ExpertsRoute { state: experts, call } => {
                match state.add_captured(stream, Captured::Route(experts, call)) {
                    true => Ok(()),
                    false => state.route(experts, call, stream),
                }
            }
            _ => unreachable!(),
        }
    }

    fn call(&self, _: Stream, _: Box<dyn FnOnce() + Send>) -> Result<()> {
        unreachable!()
    }

    fn call_shared(&self, _: Stream, _: &Arc<HostWork>) -> Result<()> {
        unreachable!()
    }

    fn is_pinned(&self, _: Span) -> Result<bool> {
        unreachable!()
    }

    fn is_device_memory(&self, _: u64) -> Result<bool> {
        unreachable!()
    }
}
