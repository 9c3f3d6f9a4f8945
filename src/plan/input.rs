//! The input of planning: parameters, the storages that they share, and their groups.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::error::{Result, fail};
use crate::plan::parameter::{AccessPattern, TransferMode};
use crate::plan::parameter::{Parameter, Storage, storages};
use crate::plan::plan::{ALIGNMENT, PlanOptions, Platform};
use crate::plan::step_model::StepModel;
use crate::status::{WB_ERR_NOT_MAPPED, WB_ERR_OVERFLOW};

/// Everything that planning depends on.
pub struct PlanInput<'a> {
    pub options: PlanOptions,
    pub platform: &'a Platform,
    pub parameters: Vec<Parameter>,
    pub storages: Vec<Storage>,
    pub groups: Vec<String>,
    /// The index of each parameter's group.
    pub group_of: Vec<usize>,
    /// The groups that use each storage, ascending.
    pub groups_of: Vec<SmallVec<[usize; 1]>>,
    /// Predicts the time of a step.
    pub model: StepModel,
}

impl<'a> PlanInput<'a> {
    pub fn new(
        parameters: Vec<Parameter>,
        options: PlanOptions,
        platform: &'a Platform,
    ) -> Result<Self> {
        let parameters = match &options.quantize {
            Some(rule) => rule.expand(parameters)?,
            None => parameters,
        };
        let storages = storages(&parameters)?;
        let mut indexes: HashMap<&str, usize> = HashMap::new();
        let mut groups = Vec::new();
        let mut group_of = Vec::with_capacity(parameters.len());
        let mut last: Option<(&Arc<str>, usize)> = None;
        for parameter in &parameters {
            let next = groups.len();
            let group = match last {
                // Parameters that follow one another share the name of their group.
                Some((name, group)) if Arc::ptr_eq(name, &parameter.group) => group,
                _ => *indexes.entry(&parameter.group).or_insert(next),
            };
            if group == next {
                groups.push(parameter.group.to_string());
            }
            last = Some((&parameter.group, group));
            group_of.push(group);
        }
        let groups_of: Vec<SmallVec<[usize; 1]>> = storages
            .iter()
            .map(|storage| {
                let mut groups: SmallVec<[usize; 1]> =
                    storage.parameters.iter().map(|(index, _)| group_of[*index]).collect();
                groups.sort_unstable();
                groups.dedup();
                groups
            })
            .collect();
        check_sums(&storages, &groups_of)?;
        let mut group_bytes = vec![0; groups.len()];
        for (storage, groups) in storages.iter().zip(&groups_of) {
            groups.iter().for_each(|group| group_bytes[*group] += storage.bytes);
        }
        let model = StepModel::new(&options, group_bytes)?;
        Ok(Self { options, platform, parameters, storages, groups, group_of, groups_of, model })
    }

    /// Bytes that a storage takes in the arena, or on the device if it stays resident.
    pub fn rounded_bytes(&self, storage: usize) -> u64 {
        self.storages[storage].bytes.next_multiple_of(ALIGNMENT)
    }

    /// The mode that one of a storage's parameters, or else the options, request.
    pub fn requested_mode(&self, storage: usize) -> TransferMode {
        self.storages[storage]
            .parameters
            .iter()
            .map(|(index, _)| self.parameters[*index].transfer_mode)
            .find(|transfer_mode| *transfer_mode != TransferMode::Auto)
            .unwrap_or(self.options.transfer_mode)
    }

    /// The mode of a storage whose group is not too large for its slot.
    pub fn preferred_mode(&self, storage: usize) -> Result<TransferMode> {
        let views = self.platform.views;
        let shared = self.groups_of[storage].len() > 1;
        Ok(match self.requested_mode(storage) {
            TransferMode::ZeroCopy if !views => fail!(
                WB_ERR_NOT_MAPPED,
                "parameter {:?} is to be read in place (zero-copy), and views are off: {}",
                self.first_name(storage),
                self.platform.views_reason
            ),
            TransferMode::Auto if views && (shared || self.is_sparse(storage)) => {
                TransferMode::ZeroCopy
            }
            // Not in the ring, where a slot for several positions would leave gaps.
            TransferMode::Auto if shared => TransferMode::OnDemand,
            TransferMode::Auto => TransferMode::Prefetch,
            requested => requested,
        })
    }

    /// Whether a storage may be transferred in another mode than the preferred one.
    pub fn mode_is_free(&self, storage: usize) -> bool {
        self.requested_mode(storage) == TransferMode::Auto
    }

    /// Whether all of a storage's parameters are sparse.
    pub fn is_sparse(&self, storage: usize) -> bool {
        let mut parameters = self.storages[storage].parameters.iter();
        parameters.all(|(index, _)| self.parameters[*index].access_pattern == AccessPattern::Sparse)
    }

    /// The groups that read all of a storage, ascending.
    pub fn dense_groups(&self, storage: usize) -> SmallVec<[usize; 1]> {
        let mut groups: SmallVec<[usize; 1]> = self.storages[storage]
            .parameters
            .iter()
            .filter(|(index, _)| self.parameters[*index].access_pattern == AccessPattern::Dense)
            .map(|(index, _)| self.group_of[*index])
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// The name of a storage's first parameter.
    pub fn first_name(&self, storage: usize) -> &str {
        &self.parameters[self.storages[storage].parameters[0].0].name
    }
}

/// Fails with `WB_ERR_OVERFLOW` if the storages have more than 2^63 bytes, each counted once for
/// the device and once for every group that uses it. No sum of a plan is larger.
fn check_sums(storages: &[Storage], groups_of: &[SmallVec<[usize; 1]>]) -> Result<()> {
    let bytes_in_step = |(storage, groups): (&Storage, &SmallVec<[usize; 1]>)| {
        u128::from(storage.bytes.next_multiple_of(ALIGNMENT)) * (groups.len() as u128 + 1)
    };
    let all: u128 = storages.iter().zip(groups_of).map(bytes_in_step).sum();
    if all > i64::MAX as u128 {
        fail!(
            WB_ERR_OVERFLOW,
            "{} storages have {} bytes; at most 2^63 can be planned: check their shapes",
            storages.len(),
            storages.iter().map(|storage| u128::from(storage.bytes)).sum::<u128>()
        );
    }
    Ok(())
}
