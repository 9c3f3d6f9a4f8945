//! What an engine says of its parameters, and which of them share bytes.

use std::collections::HashMap;
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
    /// Few rows of it: an embedding, experts.
    Sparse,
}

/// How an offloaded parameter gets to the kernels that read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMode {
    /// As the plan sees fit.
    Auto,
    /// The device reads it in host memory.
    ZeroCopy,
    /// It is copied when its group is acquired.
    OnDemand,
    /// It is copied ahead of that.
    Prefetch,
}

impl TransferMode {
    /// How many there are.
    pub const KINDS: usize = 4;

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ZeroCopy => "view",
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
    /// What is acquired together with it: a layer.
    pub group: Arc<str>,
    /// Type, shape and strides.
    pub layout: Layout,
    /// Address of its lowest byte in host or device memory; 0 while it has no bytes.
    pub source: u64,
    /// Ties parameters that have no source: those with the same number, other than 0, and the same kind
    /// of origin.
    pub storage_id: u64,
    /// How a step reads it.
    pub access_pattern: AccessPattern,
    /// Whether it must stay on the device.
    pub resident: bool,
    /// How it is transferred if it is offloaded.
    pub transfer_mode: TransferMode,
    /// Where its bytes come from.
    pub origin: Origin,
}

/// Where a parameter's bytes come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// From its source, as they are.
    Given,
    /// From another parameter's source, quantized.
    Quantized(Arc<QuantizedParameter>),
    /// They are made beside those.
    Scales,
}

/// What an 8-bit parameter is made of.
#[derive(Debug, Clone)]
pub struct QuantizedParameter {
    /// Type, shape and strides of what it comes from.
    pub layout: Layout,
    /// Where that is.
    pub source: u64,
    /// The name of its scales.
    pub scales: String,
    /// Type and shape of its numbers and of its scales, whenever they were quantized here.
    pub filled: [Layout; 2],
}

/// Bytes of one parameter, or of several that are tied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Bytes in all.
    pub bytes: u64,
    /// The parameters, in the order in which they were given, each with the bytes before it.
    pub parameters: SmallVec<[(usize, u64); 1]>,
}

/// Finds which parameters share bytes: those whose sources overlap, and those without a source that
/// have the same number. In the order of each storage's first parameter.
pub fn storages(parameters: &[Parameter]) -> Result<Vec<Storage>> {
    check_names(parameters)?;
    let mut found = by_address(parameters)?;
    let mut numbered: HashMap<_, usize> = HashMap::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let bytes = parameter.layout.span_bytes();
        if has_bytes_at_source(parameter) {
            continue;
        }
        if parameter.storage_id != 0 && bytes > 0 {
            // The caller's numbers are not those that quantizing gives.
            let tie = (parameter.storage_id, discriminant(&parameter.origin));
            if let Some(&at) = numbered.get(&tie) {
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
            numbered.insert(tie, found.len());
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

fn check_names(parameters: &[Parameter]) -> Result<()> {
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

/// One sweep over the sources by address.
fn by_address(parameters: &[Parameter]) -> Result<Vec<Storage>> {
    let mut order: Vec<usize> =
        (0..parameters.len()).filter(|index| has_bytes_at_source(&parameters[*index])).collect();
    order.sort_by_key(|index| (parameters[*index].source, *index));
    let mut found: Vec<Storage> = Vec::new();
    let mut open = (0, 0);
    for index in order {
        let parameter = &parameters[index];
        let start = parameter.source;
        let Some(end) = start.checked_add(parameter.layout.span_bytes()) else {
            fail!(
                WB_ERR_OVERFLOW,
                "parameter {:?} at {start:#x} goes past the last address",
                parameter.name
            );
        };
        match found.last_mut() {
            Some(storage) if start < open.1 => {
                storage.parameters.push((index, start - open.0));
                open.1 = open.1.max(end);
                storage.bytes = open.1 - open.0;
            }
            _ => {
                open = (start, end);
                found.push(Storage { bytes: end - start, parameters: smallvec![(index, 0)] });
            }
        }
    }
    Ok(found)
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
        }
    }

    fn found(parameters: &[Parameter]) -> Vec<(u64, Vec<(usize, u64)>)> {
        let found = storages(parameters).unwrap();
        found.into_iter().map(|storage| (storage.bytes, storage.parameters.into_vec())).collect()
    }

    #[test]
    fn overlapping_sources_are_tied_and_neighbours_are_not() {
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
    fn without_sources_the_number_ties() {
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
    fn a_name_is_given_once() {
        let error = storages(&[parameter("a", "g", 1, 0), parameter("a", "h", 1, 0)]).unwrap_err();
        assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT);
        let error = storages(&[parameter("a", "g", 9, u64::MAX - 3)]).unwrap_err();
        assert_eq!(error.status, WB_ERR_OVERFLOW);
    }
}
