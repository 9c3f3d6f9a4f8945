//! What is behind the address of a parameter, for engines that use its memory between steps.

use crate::offload::addresses::Home;
use crate::offload::backing::{Backing, ParameterState};
use crate::offload::state::OffloadState;
use crate::plan::parameter::TransferMode;

/// What is behind the address of a parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressState {
    /// Memory with the parameter's bytes at all times, to which steps copy nothing.
    pub own: bool,
    /// A graph may exist that copies its bytes in host memory there.
    pub copied_by_graphs: bool,
    /// A resize or a rebalance that is not done takes its bytes from a copy that is being made, or exists.
    pub moving: bool,
}

impl OffloadState {
    /// What is behind a parameter's address. Of one that has no bytes: nothing.
    pub fn address_state(&self, parameter: &ParameterState) -> AddressState {
        let memory = match &parameter.backing {
            _ if parameter.incomplete => return AddressState::default(),
            Backing::Missing | Backing::Unbacked(_) => return AddressState::default(),
            Backing::Borrowed(_) => None,
            Backing::Owned { memory, .. } => Some(memory),
            Backing::Block { block, .. } => {
                let unit = self.host.unit_of(*block);
                if unit.range.is_none() && unit.transfer_mode != TransferMode::ZeroCopy {
                    return AddressState::default(); // a slot
                }
                unit.range.as_ref()
            }
        };
        let Some((memory, addresses)) = memory.zip(self.addresses.as_ref()) else {
            return AddressState { own: true, ..AddressState::default() };
        };
        let homes = addresses.homes_of(memory);
        let found = |is: &dyn Fn(usize, &Home) -> bool| {
            homes.clone().any(|at| is(at, &addresses.homes[at]))
        };
        let is_elsewhere = |home: &Home| home.unmapped || home.stale || !home.needs_no_copy();
        let moves = |at: usize, home: &Home| {
            let has_copy = home.carried.is_some() || home.host_copy.is_some();
            let leaves_for_it = home.needs_no_copy() && has_copy;
            self.resize.as_ref().is_some_and(|resize| {
                resize.is_moving(at) || leaves_for_it && !resize.is_done(at, home)
            })
        };
        AddressState {
            own: !found(&|_, home| is_elsewhere(home)),
            copied_by_graphs: found(&|_, home| home.copied_by_graphs),
            moving: found(&moves),
        }
    }
}
