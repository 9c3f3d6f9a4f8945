//! Work on numbered pieces on several threads, which the calling thread begins and ends in order:
//! calls of a device, which must come in order, around copies that may be made in any.

use crate::error::{Error, Result, catch_panic};
use crate::os::sync::{self, Condvar, Mutex, thread};

/// What the threads share.
struct Shared {
    state: Mutex<State>,
    /// A piece has begun, or the work has stopped.
    begun: Condvar,
    /// The work on a piece is done, or the work has stopped.
    worked: Condvar,
}

struct State {
    /// Pieces before this one have begun.
    begun: usize,
    /// The next piece that no thread works on.
    next: usize,
    /// Whether the work on each piece is done.
    worked: Vec<bool>,
    error: Option<Error>,
    stopped: bool,
}

impl Shared {
    /// Works on a piece, which the caller has taken.
    fn work(&self, piece: usize, work: &(dyn Fn(usize) -> Result<()> + Sync)) {
        let result = catch_panic(|| work(piece));
        let mut state = sync::lock(&self.state);
        state.worked[piece] = true;
        if let Err(error) = result {
            state.error.get_or_insert(error);
            state.stopped = true;
            self.begun.notify_all();
        }
        self.worked.notify_one();
    }

    /// Works on pieces until there are none.
    fn work_on_all(&self, work: &(dyn Fn(usize) -> Result<()> + Sync)) {
        let mut state = sync::lock(&self.state);
        while !state.stopped && state.next < state.worked.len() {
            if state.next == state.begun {
                state = sync::wait(&self.begun, state);
                continue;
            }
            let piece = state.next;
            state.next += 1;
            drop(state);
            self.work(piece, work);
            state = sync::lock(&self.state);
        }
    }

    /// Waits until the work on a piece is done.
    fn wait_for(&self, piece: usize) -> Result<()> {
        let mut state = sync::lock(&self.state);
        while !state.worked[piece] && !state.stopped {
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

/// Calls `begin`, `work` and `end` for each of `count` pieces: `begin` and `end` on the calling
/// thread and in order, `work` on `threads` threads in between. At most `ahead` pieces have begun and
/// not ended. The first error stops all.
pub fn in_order(
    count: usize,
    ahead: usize,
    threads: usize,
    begin: &mut dyn FnMut(usize) -> Result<()>,
    work: &(dyn Fn(usize) -> Result<()> + Sync),
    end: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let state =
        State { begun: 0, next: 0, worked: vec![false; count], error: None, stopped: false };
    let shared = Shared { state: Mutex::new(state), begun: Condvar::new(), worked: Condvar::new() };
    thread::scope(|scope| {
        let _stop = StopGuard(&shared);
        // The calling thread mostly waits, so it is not one of the threads, unless it is the only
        // one. If a thread cannot start, the others do its work.
        let mut alone = true;
        for _ in 0..if threads > 1 { threads.min(count) } else { 0 } {
            let named = thread::Builder::new().name("weighbridge-copy".into());
            alone &= named.spawn_scoped(scope, || shared.work_on_all(work)).is_err();
        }
        let mut begun = 0;
        for piece in 0..count {
            while begun < count.min(piece + ahead.max(1)) {
                begin(begun)?;
                begun += 1;
                sync::lock(&shared.state).begun = begun;
                shared.begun.notify_one();
            }
            if alone {
                shared.work(piece, work);
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
        for (count, ahead, threads) in [(0, 1, 1), (1, 4, 4), (50, 1, 3), (50, 7, 1), (200, 6, 4)] {
            let calls = RefCell::new((0, 0));
            let worked = AtomicUsize::new(0);
            let ended = AtomicUsize::new(0);
            in_order(
                count,
                ahead,
                threads,
                &mut |piece| {
                    let mut calls = calls.borrow_mut();
                    assert_eq!(piece, calls.0);
                    assert!(piece < calls.1 + ahead, "{piece} of {count} began too early");
                    calls.0 += 1;
                    Ok(())
                },
                &|piece| {
                    assert!(piece < ended.load(Ordering::SeqCst) + ahead);
                    // Later pieces are done earlier.
                    thread::sleep(Duration::from_micros(100 * (3 - piece as u64 % 4)));
                    worked.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
                &mut |piece| {
                    let mut calls = calls.borrow_mut();
                    assert_eq!(piece, calls.1);
                    assert!(worked.load(Ordering::SeqCst) > piece);
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
        let work = |_| {
            let now = at_once.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            at_once.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        in_order(9, 9, 3, &mut |_| Ok(()), &work, &mut |_| Ok(())).unwrap();
        assert!(most.into_inner() >= 2);
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
                100,
                8,
                3,
                &mut |piece| fails("begin", piece),
                &|piece| {
                    // A panic is an error, too.
                    assert!(failing != "work" || piece != 5, "panicked");
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
