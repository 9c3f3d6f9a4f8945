//! Expert caches whose experts are parameters of an offloader: they take their device memory from the
//! plan, and follow their parameters where changes move them.

use crate::cache::cache::{CacheOptions, ExpertCache};
use crate::cache::experts::ExpertTensor;
use crate::device::backend::Stream;
use crate::error::{Result, fail};
use crate::offload::backing::Backing;
use crate::offload::expert_table::ExpertParameter;
use crate::offload::offloader::Offloader;
use crate::offload::state::OffloadState;
use crate::os::sync::{Arc, downgrade};
use crate::plan::parameter::TransferMode;
use crate::status::{WB_ERR_BUDGET, WB_ERR_BUSY, WB_ERR_INVALID_ARGUMENT};

impl Offloader {
    /// Makes a cache of experts that are offloaded parameters. It takes no more device memory than
    /// the plan has left for caches: with no size in the options, all of it.
    pub fn new_expert_cache(
        &self,
        tensors: Vec<ExpertParameter>,
        mut options: CacheOptions,
    ) -> Result<Arc<ExpertCache>> {
        let mut state = self.state()?;
        let state = &mut *state;
        state.expert_caches.0.retain(|(cache, _)| cache.upgrade().is_some());
        let described = state.expert_tensors(&tensors)?;
        if state.addresses.is_some() {
            self.check_not_resized(state)?;
            options.piece = self.plan().granularity;
        }
        let limit = self.expert_limit(state);
        if let Some(limit) = limit {
            let left = limit.saturating_sub(state.expert_caches.device_bytes());
            if left == 0 {
                fail!(
                    WB_ERR_BUDGET,
                    "{limit} bytes of device memory are planned for expert caches, and none are left: raise \
                     expert_bytes of the plan's options"
                );
            }
            if options.slots == 0 && options.device_bytes == 0 {
                options.device_bytes = left;
            }
            let size = ExpertCache::measure(self.device(), described.clone(), options)?;
            if size.bytes() > left {
                fail!(
                    WB_ERR_BUDGET,
                    "asked for a cache of {} bytes of device memory, with {} slots; of the {limit} that are \
                     planned for expert caches {left} are left",
                    size.bytes(),
                    size.slots
                );
            }
        }
        let cache = ExpertCache::new(self.device(), described, options)?;
        let units = state.expert_units(&tensors)?;
        state.expert_caches.0.push((downgrade(&cache), tensors));
        if let Some(addresses) = &mut state.addresses {
            addresses.pools.add(&cache, units, cache.info().slots as u32);
            if let Some(resize) = &mut state.resize {
                resize.permit(addresses.held_bytes());
            }
        }
        Ok(cache)
    }

    /// Bytes of device memory for all caches; `None` if no budget limits them.
    fn expert_limit(&self, state: &OffloadState) -> Option<u64> {
        if let Some(addresses) = &state.addresses {
            return addresses.pools.limit;
        }
        let plan = self.plan();
        let limited = plan.expert_bytes > 0 || plan.options.budget.device_bytes().is_some();
        limited.then_some(plan.expert_bytes)
    }

    /// Fails while a resize, or an arbiter, decides what a new cache would take memory from.
    fn check_not_resized(&self, state: &OffloadState) -> Result<()> {
        self.check_not_shared()?;
        let resizes = match (&state.addresses, &state.resize) {
            (Some(addresses), Some(resize)) => !resize.is_idle(addresses) || resize.sleeps(),
            _ => false,
        };
        if resizes {
            fail!(
                WB_ERR_BUSY,
                "asked for an expert cache of an offloader that is asleep or is resized: wait for that with \
                 wb_offloader_resize_wait"
            );
        }
        Ok(())
    }
}

impl OffloadState {
    /// The tensors with the memory in which they are now.
    fn expert_tensors(&self, tensors: &[ExpertParameter]) -> Result<Vec<ExpertTensor>> {
        tensors.iter().map(|tensor| self.expert_tensor(tensor)).collect()
    }

    /// The units that the tensors are in.
    fn expert_units(&self, tensors: &[ExpertParameter]) -> Result<Vec<usize>> {
        let mut units = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let described = &self.parameters[self.find(&tensor.parameter)?];
            if let Backing::Block { block, .. } = described.backing {
                units.push(self.host.blocks()[block].unit);
            }
        }
        Ok(units)
    }

    fn expert_tensor(&self, tensor: &ExpertParameter) -> Result<ExpertTensor> {
        let ExpertParameter { layer, name, parameter } = tensor.clone();
        let described = &self.parameters[self.find(&parameter)?];
        if described.incomplete {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameter {parameter:?} has no bytes, since its replacement failed: replace it again"
            );
        }
        let mode = self.transfer_mode(described);
        let Backing::Block { block, offset } = described.backing else {
            let is = if mode.is_some() { "has no bytes" } else { "is resident" };
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameter {parameter:?} {is}: an expert cache takes offloaded parameters; give them the \
                 access pattern of experts, and plan"
            );
        };
        if let Some(mode) = mode.filter(|mode| *mode != TransferMode::ZeroCopy) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameter {parameter:?} is carried by {}, and an expert cache reads host memory in place: \
                 give it the access pattern of experts, or the transfer mode zero-copy",
                mode.name()
            );
        }
        let unit = self.host.unit_of(block);
        let layout = described.layout.clone();
        let before = unit.offset_in_buffer() + self.host.blocks()[block].offset + offset;
        let offset = before + layout.bytes_before();
        Ok(ExpertTensor { layer, name, layout, offset, buffer: unit.buffer.clone() })
    }

    /// Tells the caches where their parameters are now, after a change that wrote or moved the units
    /// `touched`, or any. The first error is returned once all of them know.
    pub(super) fn follow_experts(&self, touched: Option<&[usize]>, stream: Stream) -> Result<()> {
        let mut done = Ok(());
        for (cache, tensors) in self.expert_caches.alive() {
            let is_touched = |tensor: &ExpertParameter| {
                let at = self.parameters.get_index(&tensor.parameter);
                match (at.map(|at| &self.parameters[at].backing), touched) {
                    (Some(Backing::Block { block, .. }), Some(touched)) => {
                        touched.contains(&self.host.blocks()[*block].unit)
                    }
                    _ => true,
                }
            };
            if tensors.iter().any(is_touched) {
                let changed = cache.set_tensors(self.expert_tensors(tensors), stream);
                done = done.and(changed);
            }
        }
        done
    }
}
