//! The input of planning: parameters, the storages that they share, and their groups.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::error::{Result, fail};
use crate::plan::parameter::{Parameter, Storage, storages};
use crate::plan::plan::{ALIGNMENT, PlanOptions, Platform};
use crate::status::WB_ERR_OVERFLOW;

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
        for parameter in &parameters {
            let next = groups.len();
            let group = *indexes.entry(&parameter.group).or_insert(next);
            if group == next {
                groups.push(parameter.group.to_string());
            }
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
        Ok(Self { options, platform, parameters, storages, groups, group_of, groups_of })
    }

    /// Bytes that a storage takes in the arena, or on the device if it stays resident.
    pub fn rounded_bytes(&self, storage: usize) -> u64 {
        self.storages[storage].bytes.next_multiple_of(ALIGNMENT)
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
