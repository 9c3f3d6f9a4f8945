//! Parameters that are kept in 8 bits: each becomes two, the quantized tensor and its scales.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Result, fail};
use crate::plan::parameter::{Origin, Parameter, QuantizedParameter};
use crate::plan::selector::Selector;
use crate::status::WB_ERR_SELECTOR;
use crate::tensor::fp8::{Fp8Format, ScaleType, SourceType};
use crate::tensor::layout::Layout;
use crate::tensor::scale_grid::ScaleGrid;

/// Which parameters are quantized, and how.
#[derive(Debug, Clone)]
pub struct QuantizationRule {
    /// Which; all where there is none. Only matrices of wide types are.
    pub select: Vec<String>,
    /// To what.
    pub format: Fp8Format,
    /// How scales are stored.
    pub scale_type: ScaleType,
    /// Rows and columns that share a scale; 0 for all.
    pub block: (u64, u64),
    /// NaN and infinities are an error.
    pub reject_nonfinite: bool,
}

impl QuantizationRule {
    /// The name of a parameter's scales, as engines know it: `_scale_inv` for blocks of a matrix.
    fn scales_of(&self, name: &str) -> String {
        let suffix = if self.block.0.min(self.block.1) > 1 { "_scale_inv" } else { "_scale" };
        format!("{name}{suffix}")
    }

    /// Puts two parameters in the place of each that is meant.
    pub fn expand(&self, parameters: Vec<Parameter>) -> Result<Vec<Parameter>> {
        let mut selectors = Vec::with_capacity(self.select.len());
        for text in &self.select {
            selectors.push((Selector::parse(text)?, false));
        }
        let mut ties = Ties::default();
        let mut expanded = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            let mut selected = selectors.is_empty();
            for (selector, used) in &mut selectors {
                let meant = selector.matches(&parameter.name);
                *used |= meant;
                selected |= meant;
            }
            let matrix = parameter.layout.ndim() > 1 && parameter.layout.elements() > 0;
            if selected && matrix && SourceType::of(parameter.layout.dtype()).is_ok() {
                self.split(parameter, &mut ties, &mut expanded)?;
            } else {
                expanded.push(parameter);
            }
        }
        if let Some((selector, _)) = selectors.iter().find(|(_, used)| !used) {
            fail!(
                WB_ERR_SELECTOR,
                "the selector {:?} of what is quantized matches no parameter",
                selector.text()
            );
        }
        Ok(expanded)
    }

    fn split(
        &self,
        parameter: Parameter,
        ties: &mut Ties,
        expanded: &mut Vec<Parameter>,
    ) -> Result<()> {
        let Parameter { layout, source, .. } = &parameter;
        let geometry = ScaleGrid::new(layout, self.block)?;
        let leading = &layout.shape()[..layout.ndim() - 2];
        let of_scales = [geometry.scale_rows as i64, geometry.blocks.scale_cols as i64];
        let shape = [leading, &of_scales].concat();
        let number = ties.number(&parameter);
        let scales = Parameter {
            name: self.scales_of(&parameter.name),
            layout: Layout::new(self.scale_type.dtype()?, &shape, None)?,
            source: 0,
            storage_id: number,
            origin: Origin::Scales,
            ..parameter.clone()
        };
        let narrow = Layout::new(self.format.dtype()?, layout.shape(), None)?;
        let quantized = QuantizedParameter {
            layout: layout.clone(),
            source: *source,
            scales: scales.name.clone(),
            filled: [narrow.clone(), scales.layout.clone()],
        };
        expanded.push(Parameter {
            layout: narrow,
            source: 0,
            storage_id: number,
            origin: Origin::Quantized(Arc::new(quantized)),
            ..parameter
        });
        expanded.push(scales);
        Ok(())
    }
}

/// Numbers for what was tied before it was quantized: the same bytes, by address or by the caller's
/// number, in the same layout. In another layout they become other numbers in 8 bits.
#[derive(Default)]
struct Ties(HashMap<(bool, u64, Layout), u64>);

impl Ties {
    /// A number of its own for each storage; 0 without a source.
    fn number(&mut self, parameter: &Parameter) -> u64 {
        let key = match (parameter.source, parameter.storage_id) {
            (0, 0) => return 0,
            (0, number) => (false, number, parameter.layout.clone()),
            (address, _) => (true, address, parameter.layout.clone()),
        };
        let next = self.0.len() as u64 + 1;
        *self.0.entry(key).or_insert(next)
    }
}
