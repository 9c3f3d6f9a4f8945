//! Engines whose weights are compressed, or have fixed addresses.

use std::ffi::{CStr, c_void};
use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use weighbridge::capi::device::WB_TRISTATE_ON;
use weighbridge::capi::parameter::WB_TRANSFER_MODE_ZERO_COPY;
use weighbridge::capi::plan::*;

use super::engine::{Engine, GROUPS, Kind, with_parameters};
use super::moves::PIECE;
use super::references::Reference;
use super::sequence::Sequence;
use crate::c;

/// Values that are encoded together.
const TILE: usize = 8192;

/// Reads the bytes of a weight of a kind: numbers in FP8 of few or of all exponents, or bytes that differ
/// from piece to piece.
pub fn bytes(kind: Kind, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (first, few): (u8, usize) = (u.arbitrary()?, u.int_in_range(0..=3000)?);
    let bytes = match kind {
        Kind::Plain | Kind::Fixed => few,
        Kind::Compressed => few * 8,
        Kind::Windowed => (3 << 20) + few,
        Kind::Pieces => PIECE as usize * u.int_in_range(1..=2)? + few - 1500.min(few),
    };
    let mask = if kind.is_compressed() && first.is_multiple_of(4) { 0x9f } else { 0xff };
    let number = |at: usize| (at.wrapping_mul(usize::from(first) | 0x9e01) >> 7) as u8 & mask;
    let tile: Vec<u8> = (0..TILE.min(bytes)).map(number).collect();
    let mut all = Vec::with_capacity(bytes);
    while all.len() < bytes {
        let (at, start) = (all.len() / TILE, all.len());
        all.extend_from_slice(&tile[..TILE.min(bytes - start)]);
        all[start] = (at as u8 ^ first) & mask;
    }
    Ok(all)
}

impl Sequence {
    /// Plans a few weights that are compressed, or whose addresses are fixed.
    pub fn plan_carried(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        // The slow ones are rare.
        let kind = match u.int_in_range(0..=31)? {
            0..=11 => Kind::Compressed,
            12..=23 => Kind::Fixed,
            24..=30 => Kind::Pieces,
            _ => Kind::Windowed,
        };
        let engine = Engine::new(kind);
        let most = if kind == Kind::Windowed { 2 } else { 4 };
        let mut addresses: Vec<*const c_void> = Vec::new();
        for _ in 0..u.int_in_range(1..=most)? {
            let group = u.choose_index(GROUPS.len())?;
            let bytes = engine.bytes(u)?;
            addresses.push(engine.host_source(&bytes));
            engine.add_weight(group, bytes, None);
        }
        if let Some(plan) = engine.plan_carried(self, u, &addresses)? {
            self.references.push(Reference::Plan(plan, Rc::new(engine)));
        }
        Ok(())
    }
}

impl Engine {
    fn plan_carried(
        &self,
        sequence: &Sequence,
        u: &mut Unstructured<'_>,
        addresses: &[*const c_void],
    ) -> Result<Option<*mut wb_plan>> {
        let every: *const CStr = c"*";
        let every = every.cast();
        // SAFETY: a struct of the interface.
        let mut options: wb_plan_options = unsafe { c::sized() };
        let by_device = u.ratio(1, 3)?;
        options.budget_kind =
            if by_device { WB_BUDGET_DEVICE_BYTES } else { WB_BUDGET_OFFLOAD_BYTES };
        options.transfer_mode = u.int_in_range(0..=3)?;
        options.order = u.int_in_range(0..=2)?;
        options.depth = u.int_in_range(0..=3)?;
        options.allow = WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_EVERYTHING_FITS;
        let part = u.int_in_range(0..=8)?;
        options.budget_bytes = match self.kind {
            Kind::Windowed if by_device => (1 << 30) - 1 + part,
            Kind::Windowed => u64::MAX,
            Kind::Compressed => part * 8192,
            _ => part * PIECE,
        };
        if self.kind.is_compressed() {
            options.compress = u.int_in_range(WB_COMPRESS_AUTO..=WB_COMPRESS_SELECTED)?;
            (options.compress_select, options.compress_select_count) = (&raw const every, 1);
            // So slow that the device keeps what it can.
            options.link_bytes_per_second = if u.arbitrary()? { 1e6 } else { 0.0 };
        } else {
            options.fixed_addresses = WB_TRISTATE_ON;
            options.keep_host_copy = u.int_in_range(0..=1)?;
        }
        if self.kind == Kind::Pieces {
            options.transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
        }
        let weights = self.weights.borrow();
        // SAFETY: all pointers are valid.
        let made = with_parameters(&weights, addresses, |parameters| unsafe {
            let (parameters, count) = (parameters.as_ptr(), parameters.len() as u64);
            c::make(|plan, error| {
                wb_plan_new(sequence.device, parameters, count, &raw const options, plan, error)
            })
        });
        Ok(made.ok())
    }
}
