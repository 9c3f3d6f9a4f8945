//! Parameters that are kept in 8 bits: as two, the numbers and their scales beside them.

use std::collections::HashMap;

use super::keeping::Source;
use super::parameter::{Origin, Parameter, Source as Given};
use super::selector::Selector;
use super::state::State;
use crate::device::Device;
use crate::device::kernel::{Format, ScaleKind, Wide};
use crate::error::{Result, fail};
use crate::memory::parallel::Progress;
use crate::quant::geometry::Geometry;
use crate::quant::quantizer::{Place, Quantizer, Task, Way};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_SELECTOR};
use crate::sync::Arc;
use crate::tensor::Layout;

/// Bytes of device memory that quantizing takes at most while it works.
const STAGING_BYTES: u64 = 128 << 20;

/// Which parameters are quantized, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Which; all where there is none. Only matrices of wide types are.
    pub select: Vec<String>,
    /// To what.
    pub format: Format,
    /// How scales are stored.
    pub kind: ScaleKind,
    /// Rows and columns that share a scale; 0 for all.
    pub block: (u64, u64),
    /// NaN and infinities are an error.
    pub refuse_odd: bool,
}

/// What an 8-bit parameter is made of.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// Type, shape and strides of what it comes from.
    pub layout: Layout,
    /// Where that is.
    pub source: Given,
    /// The name of its scales.
    pub scales: String,
    /// Type and shape of its numbers and of its scales, whenever they were quantized here.
    pub filled: [Layout; 2],
}

impl Rule {
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
            if selected && matrix && Wide::of(parameter.layout.dtype()).is_ok() {
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
        let geometry = Geometry::new(layout, self.block)?;
        let leading = &layout.shape()[..layout.ndim() - 2];
        let of_scales = [geometry.scale_rows as i64, geometry.blocks.scale_cols as i64];
        let shape = [leading, &of_scales].concat();
        let number = ties.number(&parameter);
        let scales = Parameter {
            name: self.scales_of(&parameter.name),
            layout: Layout::new(self.kind.dtype()?, &shape, None)?,
            source: Given { address: 0, on_device: false },
            storage: number,
            origin: Origin::Scales,
            ..parameter.clone()
        };
        let narrow = Layout::new(self.format.dtype()?, layout.shape(), None)?;
        let quantized = Quantized {
            layout: layout.clone(),
            source: *source,
            scales: scales.name.clone(),
            filled: [narrow.clone(), scales.layout.clone()],
        };
        expanded.push(Parameter {
            layout: narrow,
            source: Given { address: 0, on_device: false },
            storage: number,
            origin: Origin::Quantized(Arc::new(quantized)),
            ..parameter
        });
        expanded.push(scales);
        Ok(())
    }

    /// Quantizes a parameter's source to where its numbers and scales are kept.
    pub fn fill(
        &self,
        quantizer: &Quantizer,
        state: &State,
        at: usize,
        layout: &Layout,
        source: Source,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let Some(quantized) = &state.kept[at].quantized else { return Ok(()) };
        let scales = state.find(&quantized.scales)?;
        let (Some(narrow), Some(scales)) = (state.place_of(at), state.place_of(scales)) else {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameter {:?} is quantized, and there is no memory for it yet",
                state.kept[at].name
            )
        };
        let task = Task {
            way: Way::Quantize,
            layout: layout.clone(),
            wide: Place { span: source.span, on_device: source.on_device },
            narrow,
            format: self.format,
            scales,
            kind: self.kind,
            given: false,
            block: self.block,
            refuse_odd: self.refuse_odd,
        };
        quantizer.run(&task, progress).map(drop)
    }

    /// What quantizes for a device.
    pub fn quantizer(device: &Arc<Device>) -> Result<Arc<Quantizer>> {
        Quantizer::new(device, STAGING_BYTES)
    }
}

/// Numbers for what was tied before it was quantized: the same bytes, by address or by the caller's
/// number, in the same layout. In another layout they become other numbers in 8 bits.
#[derive(Default)]
struct Ties(HashMap<(bool, u64, Layout), u64>);

impl Ties {
    /// A number of its own for each storage; 0 without a source.
    fn number(&mut self, parameter: &Parameter) -> u64 {
        let key = match (parameter.source.address, parameter.storage) {
            (0, 0) => return 0,
            (0, number) => (false, number, parameter.layout.clone()),
            (address, _) => (true, address, parameter.layout.clone()),
        };
        let next = self.0.len() as u64 + 1;
        *self.0.entry(key).or_insert(next)
    }
}
