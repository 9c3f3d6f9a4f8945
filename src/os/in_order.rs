//! Work on numbered pieces on several threads, which the calling thread begins and ends in order:
//! calls of a device, which must come in order, around copies that may be made in any.

use crate::error::{Error, Result, catch_panic};
use crate::os::sync::{self, Condvar, Mutex, thread};

/// The pieces of some work.
#[derive(Debug, Clone, Copy)]
pub struct Pieces {
    /// How many there are.
    pub count: usize,
    /// Parts of each piece, on which different threads work. The calling thread wakes once for a piece.
    pub parts: usize,
    /// Pieces that have begun and not ended, at most.
    pub ahead: usize,
}

/// What the threads share.
struct Shared {
    pieces: Pieces,
    threads: usize,
    state: Mutex<State>,
    /// A piece has begun, or the work has stopped.
    begun: Condvar,
    /// The work on a piece is done, or the work has stopped.
    worked: Condvar,
}

struct State {
    /// Pieces before this one have begun.
    begun: usize,
    /// The next part of all that no thread works on.
    next: usize,
    /// Parts of each piece on which work is not done.
    left: Vec<usize>,
    error: Option<Error>,
    stopped: bool,
}

impl Shared {
    fn new(pieces: Pieces, threads: usize) -> Self {
        let left = vec![pieces.parts; pieces.count];
        let state = State { begun: 0, next: 0, left, error: None, stopped: false };
        let (begun, worked) = (Condvar::new(), Condvar::new());
        Self { pieces, threads, state: Mutex::new(state), begun, worked }
    }

    /// Works on parts of pieces until there are none, or until the pieces that have begun have none.
    fn work_on_all(&self, stays: bool, work: &(dyn Fn(usize, usize) -> Result<()> + Sync)) {
        let Pieces { count, parts, .. } = self.pieces;
        let mut state = sync::lock(&self.state);
        while !state.stopped && state.next < count * parts {
            if state.next == state.begun * parts {
                if !stays {
                    return;
                }
                state = sync::wait(&self.begun, state);
                continue;
            }
            let (piece, part) = (state.next / parts, state.next % parts);
            state.next += 1;
            drop(state);
            let result = catch_panic(|| work(piece, part));
            state = sync::lock(&self.state);
            state.left[piece] -= 1;
            if let Err(error) = result {
                state.error.get_or_insert(error);
                state.stopped = true;
                self.begun.notify_all();
            }
            if state.left[piece] == 0 || state.stopped {
                self.worked.notify_one();
            }
        }
    }

    /// Has the threads work on the pieces before `begun`. Wakes no more of them than there are parts: that takes
    /// the calling thread longer than anything else that it does for a piece.
    fn begin(&self, begun: usize) {
        sync::lock(&self.state).begun = begun;
        match self.pieces.parts {
            parts if parts < self.threads => (0..parts).for_each(|_| self.begun.notify_one()),
            _ => self.begun.notify_all(),
        }
    }

    /// Waits until the work on a piece is done.
    fn wait_for(&self, piece: usize) -> Result<()> {
        let mut state = sync::lock(&self.state);
        while state.left[piece] > 0 && !state.stopped {
            state = sync::wait(&self.worked, state);
        }
        state.error.take().map_or(Ok(()), Err)
    }
}

/// Stops the threads when it is dropped, also in a panic.
struct StopGuard<'a>(&'a Shared);

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        sync::lock(&self.0.state).stopped = true;
        self.0.begun.notify_all();
    }
}

/// Calls `begin` and `end` for each piece, on the calling thread and in order, and in between `work`
/// for each of its parts, on `threads` threads. The first error stops all.
pub fn in_order(
    pieces: Pieces,
    threads: usize,
    begin: &mut dyn FnMut(usize) -> Result<()>,
    work: &(dyn Fn(usize, usize) -> Result<()> + Sync),
    end: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let Pieces { count, parts, ahead } = pieces;
    let shared = Shared::new(pieces, threads);
    thread::scope(|scope| {
        let _stop = StopGuard(&shared);
        // The calling thread mostly waits, so it is not one of the threads, unless it is the only
        // one. If a thread cannot start, the others do its work.
        let mut alone = true;
        for _ in 0..if threads > 1 { threads.min(count * parts) } else { 0 } {
            let named = thread::Builder::new().name("weighbridge-copy".into());
            alone &= named.spawn_scoped(scope, || shared.work_on_all(true, work)).is_err();
        }
        let mut begun = 0;
        for piece in 0..count {
            while begun < count.min(piece + ahead.max(1)) {
                begin(begun)?;
                begun += 1;
                shared.begin(begun);
            }
            if alone {
                shared.work_on_all(false, work);
            }
            shared.wait_for(piece)?;
            end(piece)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::error::fail;
    use crate::status::{WB_ERR_CANCELLED, WB_ERR_INTERNAL};

    #[test]
    fn pieces_begin_and_end_in_order_around_their_work() {
        let cases =
            [(0, 1, 1, 1), (1, 1, 4, 4), (50, 1, 1, 3), (50, 2, 7, 1), (60, 3, 6, 4), (9, 8, 2, 4)];
        for (count, parts, ahead, threads) in cases {
            let calls = RefCell::new((0, 0));
            let worked = AtomicUsize::new(0);
            let ended = AtomicUsize::new(0);
            in_order(
                Pieces { count, parts, ahead },
                threads,
                &mut |piece| {
                    let mut calls = calls.borrow_mut();
                    assert_eq!(piece, calls.0);
                    assert!(piece < calls.1 + ahead, "{piece} of {count} began too early");
                    calls.0 += 1;
                    Ok(())
                },
                &|piece, part| {
                    assert!(piece < ended.load(Ordering::SeqCst) + ahead);
                    assert!(part < parts);
                    // Later pieces and parts are done earlier.
                    thread::sleep(Duration::from_micros(100 * (3 - (piece + part) as u64 % 4)));
                    worked.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
                &mut |piece| {
                    let mut calls = calls.borrow_mut();
                    assert_eq!(piece, calls.1);
                    assert!(worked.load(Ordering::SeqCst) >= (piece + 1) * parts);
                    calls.1 += 1;
                    ended.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(calls.into_inner(), (count, count));
        }
    }

    #[test]
    fn several_threads_work_at_the_same_time() {
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |_, _| {
            let now = at_once.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            at_once.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        for (count, parts) in [(9, 1), (1, 9)] {
            most.store(0, Ordering::SeqCst);
            let pieces = Pieces { count, parts, ahead: 9 };
            in_order(pieces, 3, &mut |_| Ok(()), &work, &mut |_| Ok(())).unwrap();
            assert!(most.load(Ordering::SeqCst) >= 2);
        }
    }

    #[test]
    fn the_first_error_of_any_part_stops_all() {
        for (failing, status) in
            [("begin", WB_ERR_CANCELLED), ("work", WB_ERR_INTERNAL), ("end", WB_ERR_CANCELLED)]
        {
            let ended = RefCell::new(0);
            let fails = |part: &str, piece: usize| {
                if part == failing && piece == 5 {
                    fail!(WB_ERR_CANCELLED, "{part} failed");
                }
                Ok(())
            };
            let error = in_order(
                Pieces { count: 100, parts: 2, ahead: 8 },
                3,
                &mut |piece| fails("begin", piece),
                &|piece, part| {
                    // A panic is an error, too.
                    assert!(failing != "work" || piece != 5 || part != 1, "panicked");
                    Ok(())
                },
                &mut |piece| {
                    *ended.borrow_mut() += 1;
                    fails("end", piece)
                },
            )
            .unwrap_err();
            assert_eq!(error.status, status, "{failing}: {}", error.message);
            assert!(ended.into_inner() <= 6);
        }
    }
}
