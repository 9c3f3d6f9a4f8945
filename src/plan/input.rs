//! What planning reads: parameters, the storages that they share, and their groups.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::error::{Result, fail};
use crate::plan::parameter::{Parameter, Storage, storages};
use crate::plan::plan::{ALIGNMENT, PlanOptions, Platform};
use crate::status::WB_ERR_OVERFLOW;

/// Everything that planning reads.
pub struct PlanInput<'a> {
    pub options: PlanOptions,
    pub platform: &'a Platform,
    pub parameters: Vec<Parameter>,
    pub storages: Vec<Storage>,
    pub groups: Vec<String>,
    /// The group of each parameter.
    pub group_of: Vec<usize>,
    /// The groups that use a storage, ascending.
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
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut groups = Vec::new();
        let mut group_of = Vec::with_capacity(parameters.len());
        for parameter in &parameters {
            let next = groups.len();
            let number = *numbers.entry(&parameter.group).or_insert(next);
            if number == next {
                groups.push(parameter.group.to_string());
            }
            group_of.push(number);
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

    /// Bytes of a storage in the arena, and on the device when it stays.
    pub fn rounded(&self, storage: usize) -> u64 {
        self.storages[storage].bytes.next_multiple_of(ALIGNMENT)
    }
}

/// Refuses what is more than 2^63 bytes in all, each storage counted for the device and for every group
/// that it goes to in a step: no sum of a plan is larger.
fn check_sums(storages: &[Storage], groups_of: &[SmallVec<[usize; 1]>]) -> Result<()> {
    let counted = |(storage, groups): (&Storage, &SmallVec<[usize; 1]>)| {
        u128::from(storage.bytes.next_multiple_of(ALIGNMENT)) * (groups.len() as u128 + 1)
    };
    let all: u128 = storages.iter().zip(groups_of).map(counted).sum();
    if all > i64::MAX as u128 {
        fail!(
            WB_ERR_OVERFLOW,
            "{} storages have {} bytes in all, more than the 2^63 that can be counted: are their shapes \
             right?",
            storages.len(),
            storages.iter().map(|storage| u128::from(storage.bytes)).sum::<u128>()
        );
    }
    Ok(())
}
