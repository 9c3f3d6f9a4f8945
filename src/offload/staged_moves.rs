//! Moves of units between the device and pageable memory, through staging memory: one transfer of all of them
//! on a thread of its own, so that the link has work while one ends. The pages that units leave to are made
//! present by the threads that write them, and never pinned, which would take as long as the copies again.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::backend::Event;
use crate::device::device::Device;
use crate::device::owned::OwnedStream;
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::memory::deferred;
use crate::memory::transfer::{Direction, PIECE_BYTES, Pages, Piece, Transfer};
use crate::offload::move_target::{Goal, Target};
use crate::os::beside::Beside;
use crate::os::cgroup::Reservation;
use crate::os::parallel::threads_for;
use crate::os::span::Span;
use crate::os::sync::{Arc, Mutex};
use crate::os::{bytes, sync};
use crate::status::WB_ERR_CANCELLED;

/// Bytes that a thread copies to memory at a time: of many more some implementations bypass the caches, which
/// have the page that was cleared last.
const COPY_BYTES: usize = 512 << 10;

/// A unit that is to move. Its bytes stay where they are until the move has ended.
#[derive(Debug, Clone, Copy)]
pub struct StagedMove {
    /// Its index.
    pub home: usize,
    /// Where its bytes are: on the device if it leaves to a buffer, else in host memory.
    pub from: Span,
    /// Where they go.
    pub goal: Goal,
}

/// A unit whose bytes are in other memory once the event has passed.
pub struct Moved {
    /// Its index.
    pub home: usize,
    /// The memory.
    pub to: Target,
    /// The end of the copy.
    pub copied: Box<dyn Event>,
}

/// Units that move, all in one direction. A drop waits for the end, which is soon after [`StagedMoves::cancel`].
pub struct StagedMoves {
    work: Beside<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    moved: Mutex<Vec<Moved>>,
    cancelled: AtomicBool,
}

impl StagedMoves {
    /// Begins to move units one after another.
    pub fn begin(device: &Arc<Device>, direction: Direction, moves: Vec<StagedMove>) -> Self {
        let shared = Arc::new(Shared::default());
        let (device, seen) = (device.clone(), shared.clone());
        let work = move || seen.run(&device, direction, &moves);
        Self { work: Beside::begin("weighbridge-move", work), shared }
    }

    /// Has it end after the pieces that are in flight. Units that have not moved stay where they are.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it goes on.
    pub fn is_running(&self) -> bool {
        self.work.is_running()
    }

    /// The units that have moved since the last call.
    pub fn take_moved(&self) -> Vec<Moved> {
        std::mem::take(&mut sync::lock(&self.shared.moved))
    }

    /// Waits for the end. Returns the error that has ended it.
    pub fn finish(self) -> Result<()> {
        match self.work.finish() {
            Err(error) if error.status == WB_ERR_CANCELLED => Ok(()),
            ended => ended,
        }
    }
}

/// Both ends of a move.
struct Ends {
    device: Span,
    host: Span,
    /// In which absent pages of the host's are made present.
    absent: Option<Reservation>,
}

impl Ends {
    /// With new memory at the end that the unit goes to.
    fn new(device: &Arc<Device>, one: StagedMove) -> Result<(Self, Target)> {
        let StagedMove { from, goal, .. } = one;
        if goal == Goal::Buffer {
            let (buffer, reservation) = Buffer::alloc_absent(device, from.bytes())?;
            let (host, absent) = (buffer.data(), Some(reservation));
            return Ok((Self { device: from, host, absent }, Target::Buffer(buffer)));
        }
        let target = Target::new(device, from.bytes(), goal)?;
        Ok((Self { device: target.span(), host: from, absent: None }, target))
    }

    /// Copies bytes at an offset in host memory to staging memory, or from there.
    fn stage(&self, offset: usize, staging: Span) -> Result<()> {
        let host = self.host.part(offset, staging.bytes());
        let Some(reservation) = &self.absent else {
            bytes::copy(staging, host);
            return Ok(());
        };
        reservation.fault(host, || {
            for at in (0..host.bytes()).step_by(COPY_BYTES) {
                bytes::copy(host.part(at, COPY_BYTES), staging.part(at, COPY_BYTES));
            }
            Ok(())
        })
    }
}

impl Shared {
    fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            fail!(WB_ERR_CANCELLED, "the units are to go elsewhere");
        }
        Ok(())
    }

    /// Allocates memory for the first units, as many as there is memory for: the next call begins with the others,
    /// and fails if there still is none for them.
    fn allocate(&self, device: &Arc<Device>, moves: &[StagedMove]) -> Result<Vec<(Ends, Target)>> {
        let mut all = Vec::with_capacity(moves.len());
        for one in moves {
            self.check()?;
            match Ends::new(device, *one) {
                Ok(ends) => all.push(ends),
                Err(error) if all.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(all)
    }

    fn run(&self, device: &Arc<Device>, direction: Direction, moves: &[StagedMove]) -> Result<()> {
        let (ends, targets): (Vec<_>, Vec<_>) = self.allocate(device, moves)?.into_iter().unzip();
        let bytes = |ends: &Ends| ends.device.bytes();
        let offsets = |unit: usize| (0..bytes(&ends[unit])).step_by(PIECE_BYTES);
        let places: Vec<_> =
            (0..ends.len()).flat_map(|unit| offsets(unit).map(move |at| (unit, at))).collect();
        let piece = |(unit, at): &(usize, usize)| Piece {
            device: ends[*unit].device.part(*at, PIECE_BYTES),
            direct: None,
            lane: 0,
        };
        let pieces: Vec<_> = places.iter().map(piece).collect();
        let stream = OwnedStream::new(device)?;
        let transfer = Transfer {
            device,
            direction,
            streams: &[stream.get()],
            pieces: &pieces,
            threads: threads_for(0, ends.iter().map(bytes).sum()),
            pages: match direction {
                Direction::ToDevice => Pages::Present,
                Direction::FromDevice => Pages::Absent,
            },
            stage: &|piece, offset, staging| {
                let (unit, at) = places[piece];
                ends[unit].stage(at + offset, staging)
            },
            then: None,
        };
        let mut units = moves.iter().zip(targets);
        let mut last = None;
        let workspace = transfer.workspace()?;
        self.check()?;
        let ran = transfer.run_in(&workspace, &mut |piece| {
            self.check()?;
            let next = places.get(piece + 1);
            if next.is_some_and(|next| next.0 == places[piece].0) {
                return Ok(());
            }
            let copied = device.backend().new_event(false)?;
            copied.record(stream.get())?;
            let moved = units.next().map(|(one, to)| Moved { home: one.home, to, copied });
            match next {
                Some(_) => sync::lock(&self.moved).extend(moved),
                None => last = moved,
            }
            Ok(())
        });
        // To unpin the staging memory takes milliseconds. When the last unit has moved, that has been queued.
        deferred::drop_after(None, Box::new(workspace), device);
        sync::lock(&self.moved).extend(last.filter(|_| ran.is_ok()));
        ran
    }
}
