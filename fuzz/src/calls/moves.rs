//! Calls that move the memory of an offloader with fixed addresses.

use arbitrary::{Result, Unstructured};
use weighbridge::capi::offloader::*;
use weighbridge::capi::plan::*;
use weighbridge::status::*;

use super::engine::Kind;
use super::offloader::Offloader;
use crate::c;

/// Bytes of a piece.
pub const PIECE: u64 = 2 << 20;

impl Offloader<'_> {
    /// Makes a call, of which there are 15.
    pub fn move_memory(&self, number: i32, u: &mut Unstructured<'_>) -> Result<()> {
        match number {
            0..=3 => self.resize(u)?,
            4..=5 => drop(self.resize_advance()),
            6..=8 => self.resize_wait(),
            9..=11 => self.prefer(u)?,
            _ => self.rebalance(u)?,
        }
        self.check();
        Ok(())
    }

    fn resize_advance(&self) -> wb_offloader_resize_progress {
        // SAFETY: the offloader and the stream are alive.
        unsafe {
            let mut progress: wb_offloader_resize_progress = c::sized();
            c::call(|error| {
                wb_offloader_resize_advance(self.raw, self.stream, &raw mut progress, error)
            })
            .expect("memory is available");
            progress
        }
    }

    /// To the slots and some pieces, or to nothing.
    fn resize(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let before = self.resize_advance().device_bytes;
        // SAFETY: the offloader and the stream are alive.
        unsafe {
            let mut stats: wb_offloader_stats = c::sized();
            c::call(|error| wb_offloader_get_stats(self.raw, &raw mut stats, error))
                .expect("it has stats");
            // There are none while it is asleep.
            let slot_bytes = self.engine.slot_bytes.get().unwrap_or(stats.slot_bytes);
            self.engine.slot_bytes.set(Some(slot_bytes));
            let mut options: wb_offloader_resize_options = c::sized();
            options.budget_kind = WB_BUDGET_DEVICE_BYTES;
            options.budget_bytes = match u.int_in_range(0..=8)? {
                0 => 0,
                // Without slots, the least is a piece.
                pieces => slot_bytes + (pieces - u64::from(slot_bytes > 0)) * PIECE,
            };
            options.graphs_dropped = u.int_in_range(0..=1)?;
            let mut progress: wb_offloader_resize_progress = c::sized();
            c::call(|error| {
                let (options, progress) = (&raw const options, &raw mut progress);
                wb_offloader_resize(self.raw, options, self.stream, progress, error)
            })
            .expect("memory is available");
            assert!(
                progress.device_bytes <= before.max(options.budget_bytes),
                "a budget is a limit"
            );
            // Asleep until it is awake again, which a wait says.
            let asleep = &self.engine.asleep;
            asleep.set(asleep.get() || options.budget_bytes == 0);
            self.engine.target.set(options.budget_bytes);
        }
        Ok(())
    }

    /// Until all is where it is to be, unless a group stays acquired.
    fn resize_wait(&self) {
        let timeout_ms = if self.any_acquired() { 1 } else { 10_000 };
        // SAFETY: the offloader and the stream are alive.
        let outcome = unsafe {
            let mut progress: wb_offloader_resize_progress = c::sized();
            c::call(|error| {
                let progress = &raw mut progress;
                wb_offloader_resize_wait(self.raw, self.stream, timeout_ms, progress, error)
            })
            .map(|()| progress)
        };
        let target = self.engine.target.get();
        match outcome {
            Ok(progress) => {
                assert_eq!(progress.pending_units, 0);
                assert!(progress.device_bytes <= target, "a budget is a limit");
                self.engine.asleep.set(target == 0);
            }
            Err(refused) => {
                assert!(refused.status == WB_ERR_TIMEOUT && self.any_acquired(), "{refused:?}");
            }
        }
    }

    /// Says how often a step reads a part of a weight.
    fn prefer(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.a_weight(u)? else { return Ok(()) };
        let (index, bytes) = {
            let weight = &self.engine.weights.borrow()[at];
            (self.find(&weight.name), weight.bytes.len() as u64)
        };
        let start = u.int_in_range(0..=bytes)?;
        let count = u.int_in_range(0..=bytes - start + 1)?;
        let reads = if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=3)? as f64 };
        // SAFETY: the offloader is alive.
        let outcome = c::call(|error| unsafe {
            wb_offloader_prefer(self.raw, index, start, count, reads, error)
        });
        let expected = if !reads.is_finite() || reads < 0.0 {
            WB_ERR_INVALID_ARGUMENT
        } else if start + count > bytes {
            WB_ERR_OUT_OF_RANGE
        } else if self.engine.kind == Kind::Fixed {
            WB_ERR_NOT_SUPPORTED
        } else {
            WB_OK
        };
        let status = outcome.err().map_or(WB_OK, |refused| refused.status);
        // Of a group with less than a piece nothing is in pieces.
        assert!(status == expected || status == WB_ERR_NOT_SUPPORTED, "{status}, not {expected}");
        Ok(())
    }

    fn rebalance(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let (before, most) = (self.resize_advance(), u.int_in_range(0..=6)? * (PIECE + 1));
        // SAFETY: the offloader and the stream are alive.
        unsafe {
            let mut moved: wb_offloader_rebalance_progress = c::sized();
            c::call(|error| {
                wb_offloader_rebalance(self.raw, most, self.stream, &raw mut moved, error)
            })
            .expect("memory is available");
            assert!(moved.moved_bytes <= most);
            // A resize that is in progress goes on.
            let limit = before.device_bytes.max(self.engine.target.get());
            assert!(moved.device_bytes <= limit, "a budget is a limit");
        }
        Ok(())
    }
}
