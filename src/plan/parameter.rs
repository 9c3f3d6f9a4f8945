//! Parameters as an engine describes them, and the storages that tied parameters share.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::mem::discriminant;

use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

use crate::error::{Result, fail};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW};
use crate::tensor::layout::Layout;

/// How a step reads a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessPattern {
    /// All of it.
    Dense,
    /// A few rows of it, as of an embedding table.
    Sparse,
    /// A few rows of it, experts, which an expert cache keeps on the device once they were used.
    Experts,
}

/// How the kernels that read an offloaded parameter get its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMode {
    /// The plan chooses.
    Auto,
    /// The device reads them in host memory.
    ZeroCopy,
    /// They are copied into a slot when the group is acquired.
    OnDemand,
    /// They are copied into a slot before the group is acquired.
    Prefetch,
}

impl TransferMode {
    /// The number of modes.
    pub const COUNT: usize = 4;

    /// The name in plans and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ZeroCopy => "zero-copy",
            Self::OnDemand => "on-demand",
            Self::Prefetch => "prefetch",
        }
    }
}

/// A parameter of a model.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name, unique in the model.
    pub name: String,
    /// The name of its group, a layer for instance, whose parameters are acquired together.
    pub group: Arc<str>,
    /// Type, shape and strides.
    pub layout: Layout,
    /// Address of its lowest byte in host or device memory; 0 if it has no source.
    pub source: u64,
    /// Ties parameters that have no source: those with the same number, other than 0, and the same
    /// kind of origin.
    pub storage_id: u64,
    /// How a step reads it.
    pub access_pattern: AccessPattern,
    /// Whether it must stay on the device.
    pub resident: bool,
    /// How it is transferred if it is offloaded.
    pub transfer_mode: TransferMode,
    /// The origin of its bytes.
    pub origin: Origin,
    /// Bytes that its source is compressed to, as a sample of it tells.
    pub encoded_bytes: Option<u64>,
}

impl Parameter {
    /// Bytes that its source is compressed to, if it is.
    pub fn encoded_source(&self) -> Option<u64> {
        match self.origin {
            Origin::Encoded(bytes) => Some(bytes),
            Origin::Given | Origin::Quantized(_) | Origin::Scales => None,
        }
    }

    /// Bytes at its source.
    pub fn source_bytes(&self) -> u64 {
        self.encoded_source().unwrap_or(self.layout.span_bytes())
    }
}

/// The origin of a parameter's bytes.
#[derive(Debug, Clone)]
pub enum Origin {
    /// They are copied from its source.
    Given,
    /// They are decoded from its source, which has them compressed to this many bytes.
    Encoded(u64),
    /// They are quantized at commit, from a source of another type.
    Quantized(Arc<QuantizedParameter>),
    /// They are the scales that quantizing another parameter writes.
    Scales,
}

/// The source of a parameter that is kept in FP8.
#[derive(Debug, Clone)]
pub struct QuantizedParameter {
    /// Type, shape and strides of the source.
    pub layout: Layout,
    /// Address of the source's lowest byte; 0 if there is none.
    pub source: u64,
    /// Bytes that the source is compressed to, if it is.
    pub encoded_bytes: Option<u64>,
    /// The name of the parameter's scales.
    pub scales: String,
    /// Layouts of the FP8 numbers and of the scales, as quantizing writes them.
    pub output: [Layout; 2],
}

/// The bytes of one parameter, or of several that are tied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Number of bytes.
    pub bytes: u64,
    /// Indexes of the parameters, ascending, each with its offset in the storage.
    pub parameters: SmallVec<[(usize, u64); 1]>,
}

/// Finds the parameters that share bytes: those whose sources overlap, and those without a source
/// that have the same `storage_id`. In the order of each storage's first parameter.
pub fn storages(parameters: &[Parameter]) -> Result<Vec<Storage>> {
    check_names(parameters)?;
    let mut found = by_address(parameters)?;
    let mut by_id: HashMap<_, usize> = HashMap::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let bytes = parameter.layout.span_bytes();
        if has_bytes_at_source(parameter) {
            continue;
        }
        if parameter.storage_id != 0 && bytes > 0 {
            // Ids of quantized parameters are assigned by the plan and may equal a caller's.
            let tie = (parameter.storage_id, discriminant(&parameter.origin));
            if let Some(&at) = by_id.get(&tie) {
                let first = &parameters[found[at].parameters[0].0];
                if found[at].bytes != bytes {
                    fail!(
                        WB_ERR_INVALID_ARGUMENT,
                        "parameters {:?} and {:?} are tied (storage {}), but one has {} bytes and \
                         the other {bytes}",
                        first.name,
                        parameter.name,
                        parameter.storage_id,
                        found[at].bytes
                    );
                }
                found[at].parameters.push((index, 0));
                continue;
            }
            by_id.insert(tie, found.len());
        }
        found.push(Storage { bytes, parameters: smallvec![(index, 0)] });
    }
    for storage in &mut found {
        storage.parameters.sort_unstable();
    }
    found.sort_by_key(|storage| storage.parameters[0]);
    Ok(found)
}

fn has_bytes_at_source(parameter: &Parameter) -> bool {
    parameter.source != 0 && parameter.layout.span_bytes() > 0
}

/// Fails if two parameters have the same name. Sorted hashes show that none have, in a sixth of the
/// memory of a map of all names.
fn check_names(parameters: &[Parameter]) -> Result<()> {
    let state = RandomState::new();
    let mut hashes: Vec<u64> =
        parameters.iter().map(|parameter| state.hash_one(parameter.name.as_str())).collect();
    hashes.sort_unstable();
    if hashes.windows(2).all(|pair| pair[0] < pair[1]) {
        return Ok(());
    }
    let mut seen = HashMap::with_capacity(parameters.len());
    for (index, parameter) in parameters.iter().enumerate() {
        if let Some(before) = seen.insert(parameter.name.as_str(), index) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameters {before} and {index} are both named {:?}",
                parameter.name
            );
        }
    }
    Ok(())
}

/// The storages of parameters with a source, by one sweep over the addresses.
fn by_address(parameters: &[Parameter]) -> Result<Vec<Storage>> {
    let with_source = parameters.iter().enumerate().filter(|(_, one)| has_bytes_at_source(one));
    // Pairs of numbers, whose sorting other code needs, too.
    let mut order: Vec<(u64, u64)> =
        with_source.map(|(index, parameter)| (parameter.source, index as u64)).collect();
    order.sort_unstable();
    let mut found: Vec<Storage> = Vec::new();
    let mut open = (0, 0);
    for index in order.into_iter().map(|(_, index)| index as usize) {
        let parameter = &parameters[index];
        let start = parameter.source;
        let Some(end) = start.checked_add(parameter.source_bytes()) else {
            fail!(
                WB_ERR_OVERFLOW,
                "parameter {:?} at {start:#x} goes past the last address",
                parameter.name
            );
        };
        match found.last_mut() {
            Some(storage) if start < open.1 => {
                let first = &parameters[storage.parameters[0].0];
                if first.encoded_source().or(parameter.encoded_source()).is_some() {
                    check_same_encoded(first, parameter)?;
                    storage.parameters.push((index, 0));
                    continue;
                }
                storage.parameters.push((index, start - open.0));
                open.1 = open.1.max(end);
                storage.bytes = open.1 - open.0;
            }
            _ => {
                open = (start, end);
                let bytes = parameter.layout.span_bytes();
                found.push(Storage { bytes, parameters: smallvec![(index, 0)] });
            }
        }
    }
    Ok(found)
}

/// Fails unless two parameters, one of which has a compressed source, have the same one.
fn check_same_encoded(one: &Parameter, other: &Parameter) -> Result<()> {
    let what = |parameter: &Parameter| {
        (parameter.source, parameter.encoded_source(), parameter.layout.span_bytes())
    };
    if what(one) != what(other) {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "the sources of parameters {:?} and {:?} overlap, and are not the same compressed bytes: \
             compressed sources are tied as a whole",
            one.name,
            other.name
        );
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tensor::dtype::{Dtype, WB_DTYPE_I8};

    /// A parameter of `bytes` bytes.
    pub fn parameter(name: &str, group: &str, bytes: i64, address: u64) -> Parameter {
        let dtype = Dtype::from_code(WB_DTYPE_I8).unwrap();
        Parameter {
            name: name.into(),
            group: group.into(),
            layout: Layout::new(dtype, &[bytes], None).unwrap(),
            source: address,
            storage_id: 0,
            access_pattern: AccessPattern::Dense,
            resident: false,
            transfer_mode: TransferMode::Auto,
            origin: Origin::Given,
            encoded_bytes: None,
        }
    }

    fn found(parameters: &[Parameter]) -> Vec<(u64, Vec<(usize, u64)>)> {
        let found = storages(parameters).unwrap();
        found.into_iter().map(|storage| (storage.bytes, storage.parameters.into_vec())).collect()
    }

    #[test]
    fn overlapping_sources_are_tied_and_adjacent_ones_are_not() {
        let parameters = [
            parameter("tail", "b", 50, 1100),
            parameter("whole", "a", 100, 1000),
            parameter("part", "a", 60, 1050),
            parameter("next", "a", 8, 1150),
            parameter("empty", "a", 0, 1000),
        ];
        // "whole" ends at 1100, where "tail" begins, but "part" spans both.
        assert_eq!(
            found(&parameters),
            [(150, vec![(0, 100), (1, 0), (2, 50)]), (8, vec![(3, 0)]), (0, vec![(4, 0)])]
        );
    }

    #[test]
    fn parameters_without_sources_are_tied_by_storage_id() {
        let mut parameters = [
            parameter("in", "a", 64, 0),
            parameter("other", "a", 64, 0),
            parameter("out", "b", 64, 0),
        ];
        assert_eq!(found(&parameters).len(), 3);
        parameters[0].storage_id = 7;
        parameters[2].storage_id = 7;
        assert_eq!(found(&parameters), [(64, vec![(0, 0), (2, 0)]), (64, vec![(1, 0)])]);
        parameters[2] = Parameter { storage_id: 7, ..parameter("out", "b", 65, 0) };
        let error = storages(&parameters).unwrap_err();
        assert!(error.message.contains("\"in\"") && error.message.contains("65"), "{error:?}");
    }

    #[test]
    fn compressed_sources_are_tied_as_a_whole() {
        let encoded = |name, address, bytes| Parameter {
            origin: Origin::Encoded(bytes),
            ..parameter(name, "a", 1000, address)
        };
        // They have fewer bytes in memory than their values, so their neighbours begin early.
        let parameters = [
            encoded("one", 1024, 600),
            parameter("next", "a", 100, 1624),
            encoded("tied", 1024, 600),
        ];
        assert_eq!(found(&parameters), [(1000, vec![(0, 0), (2, 0)]), (100, vec![(1, 0)])]);
        for other in [
            encoded("other", 1024, 608),
            encoded("other", 1040, 600),
            parameter("other", "a", 1000, 1024),
            parameter("other", "a", 24, 1600),
        ] {
            let error = storages(&[encoded("one", 1024, 600), other]).unwrap_err();
            assert!(error.message.contains("compressed"), "{error:?}");
        }
    }

    #[test]
    fn duplicate_names_and_overflowing_addresses_fail() {
        let error = storages(&[parameter("a", "g", 1, 0), parameter("a", "h", 1, 0)]).unwrap_err();
        assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT);
        let error = storages(&[parameter("a", "g", 9, u64::MAX - 3)]).unwrap_err();
        assert_eq!(error.status, WB_ERR_OVERFLOW);
    }
}
