//! Parameters that are quantized at commit: each is planned as two, the FP8 tensor and its scales.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Result, fail};
use crate::plan::parameter::{Origin, Parameter, QuantizedParameter};
use crate::plan::selector::SelectorList;
use crate::status::{WB_ERR_NOT_SUPPORTED, WB_ERR_SELECTOR};
use crate::tensor::fp8::{Fp8Format, ScaleType, SourceType};
use crate::tensor::layout::Layout;
use crate::tensor::scale_grid::ScaleGrid;

/// Which parameters are quantized, and how.
#[derive(Debug, Clone)]
pub struct QuantizationRule {
    /// Selectors of the parameters; empty for all. Only matrices of a [`SourceType`] are quantized.
    pub select: Vec<String>,
    /// Type of the numbers.
    pub format: Fp8Format,
    /// Type of the scales.
    pub scale_type: ScaleType,
    /// Rows and columns that share a scale; 0 for all.
    pub block: (u64, u64),
    /// Whether NaN and infinities are an error.
    pub reject_nonfinite: bool,
}

impl QuantizationRule {
    /// The name that engines expect of a parameter's scales: `_scale_inv` for blocks of a matrix.
    fn name_of_scales(&self, name: &str) -> String {
        let suffix = if self.block.0.min(self.block.1) > 1 { "_scale_inv" } else { "_scale" };
        format!("{name}{suffix}")
    }

    /// Replaces each selected parameter by its FP8 tensor and its scales.
    pub fn expand(&self, parameters: Vec<Parameter>) -> Result<Vec<Parameter>> {
        let mut select = SelectorList::parse(&self.select)?;
        let mut ids = StorageIds::default();
        let mut expanded = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            let matched = select.find_match(&parameter.name).is_some();
            let selected = matched || select.is_empty();
            if matched && parameter.layout.dtype().is_opaque() {
                fail!(
                    WB_ERR_NOT_SUPPORTED,
                    "asked to quantize parameter {:?}, which has the opaque type {:?}: its values are not \
                     known, so leave it out of quantize_select",
                    parameter.name,
                    parameter.layout.dtype().name()
                );
            }
            let matrix = parameter.layout.ndim() > 1 && parameter.layout.elements() > 0;
            if selected && matrix && SourceType::of(parameter.layout.dtype()).is_ok() {
                expanded.extend(self.split(parameter, &mut ids)?);
            } else {
                expanded.push(parameter);
            }
        }
        if let Some(text) = select.unmatched().next() {
            fail!(WB_ERR_SELECTOR, "the selector {text:?} of quantize_select matches no parameter");
        }
        Ok(expanded)
    }

    /// The FP8 tensor and the scales of a parameter.
    fn split(&self, parameter: Parameter, ids: &mut StorageIds) -> Result<[Parameter; 2]> {
        let Parameter { layout, source, .. } = &parameter;
        let grid = ScaleGrid::new(layout, self.block)?;
        let leading = &layout.shape()[..layout.ndim() - 2];
        let scales_of_matrix = [grid.scale_rows as i64, grid.blocks.scale_cols as i64];
        let shape = [leading, &scales_of_matrix].concat();
        let storage_id = ids.id(&parameter);
        let scales = Parameter {
            name: self.name_of_scales(&parameter.name),
            layout: Layout::new(self.scale_type.dtype()?, &shape, None)?,
            source: 0,
            storage_id,
            origin: Origin::Scales,
            encoded_bytes: None,
            ..parameter.clone()
        };
        let fp8 = Layout::new(self.format.dtype()?, layout.shape(), None)?;
        let quantized = QuantizedParameter {
            layout: layout.clone(),
            source: *source,
            encoded_bytes: parameter.encoded_source(),
            scales: scales.name.clone(),
            output: [fp8.clone(), scales.layout.clone()],
        };
        let numbers = Parameter {
            layout: fp8,
            source: 0,
            storage_id,
            origin: Origin::Quantized(Arc::new(quantized)),
            encoded_bytes: None,
            ..parameter
        };
        Ok([numbers, scales])
    }
}

/// Storage ids for quantized parameters. Those that were tied, by address or by the caller's id,
/// stay tied if their layouts are the same: another layout gives other FP8 numbers.
#[derive(Default)]
struct StorageIds(HashMap<(bool, u64, Layout), u64>);

impl StorageIds {
    /// The id of a parameter; 0 if it has neither a source nor an id.
    fn id(&mut self, parameter: &Parameter) -> u64 {
        let key = match (parameter.source, parameter.storage_id) {
            (0, 0) => return 0,
            (0, id) => (false, id, parameter.layout.clone()),
            (address, _) => (true, address, parameter.layout.clone()),
        };
        let next = self.0.len() as u64 + 1;
        *self.0.entry(key).or_insert(next)
    }
}
