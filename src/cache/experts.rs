//! [`Experts`]: the expert tensors of all layers, checked: what is an expert, and where its rows are.

use std::collections::HashMap;

use crate::device::device::Device;
use crate::device::experts::MOST_EXPERTS;
use crate::error::{Result, fail};
use crate::memory::buffer::Buffer;
use crate::os::sync::Arc;
use crate::status::{
    WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
};
use crate::tensor::dtype::Dtype;
use crate::tensor::layout::Layout;

/// The most layers, and the most experts of all of them: their numbers fit in 32 bits.
const MOST: u64 = i32::MAX as u64;

/// One expert tensor of one layer, as a caller describes it.
#[derive(Clone)]
pub struct ExpertTensor {
    /// The layer.
    pub layer: u64,
    /// The name, such as `"w13"`: the same in every layer.
    pub name: String,
    /// Type, shape and strides, of which the first dimension counts the experts.
    pub layout: Layout,
    /// Bytes from the start of the buffer to the first element.
    pub offset: u64,
    /// The memory, mapped for the device.
    pub buffer: Arc<Buffer>,
}

/// What the tensors of one name have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorKind {
    /// The name.
    pub name: String,
    /// The type.
    pub dtype: Dtype,
    /// The shape of an expert: all dimensions but the first.
    pub shape: Vec<i64>,
    /// Bytes of an expert.
    pub bytes: u64,
}

/// Where the experts of one tensor are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Source {
    /// Address of expert 0 on the device.
    pub address: u64,
    /// Bytes from an expert to the next.
    pub stride: i64,
}

impl Source {
    /// As the device reads it: `wb_experts_source`.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.stride.to_ne_bytes());
        bytes
    }
}

/// The expert tensors of all layers.
pub struct Experts {
    /// One for each name, in the order of the first layer that was described.
    pub kinds: Vec<TensorKind>,
    /// Experts of each layer.
    pub layers: Vec<u32>,
    /// The index of each layer's first expert among those of all layers.
    pub bases: Vec<u32>,
    /// Of each layer, one for each kind.
    pub sources: Vec<Source>,
    /// The memory.
    pub buffers: Vec<Arc<Buffer>>,
}

impl Experts {
    /// Checks a description. Each layer from 0 on must have the same tensors, of the same type and
    /// the same bytes for an expert.
    pub fn new(device: &Arc<Device>, tensors: Vec<ExpertTensor>) -> Result<Self> {
        let count = tensors.iter().map(|tensor| tensor.layer).max().map_or(0, |last| {
            // Every layer has a tensor, so there are no more layers than tensors.
            last.saturating_add(1).min(tensors.len() as u64 + 1)
        }) as usize;
        let mut kinds: Vec<TensorKind> = Vec::new();
        let mut index_of: HashMap<String, usize> = HashMap::new();
        let mut found: Vec<Vec<Option<Source>>> = vec![Vec::new(); count];
        let mut layers: Vec<Option<(u32, String)>> = vec![None; count];
        let mut buffers: HashMap<usize, Arc<Buffer>> = HashMap::new();
        for tensor in tensors {
            let what = format!("tensor {:?} of layer {}", tensor.name, tensor.layer);
            let (kind, experts) = kind_of(&tensor, &what)?;
            let source = source_of(device, &tensor, &kind, &what)?;
            let Some(of_layer) = found.get_mut(tensor.layer as usize) else {
                fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "{what}: layers count from 0 without a gap, and fewer tensors were given than \
                     there would be layers"
                )
            };
            let at = *index_of.entry(kind.name.clone()).or_insert(kinds.len());
            match kinds.get(at) {
                None => kinds.push(kind),
                Some(known) if *known != kind => fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "an expert of {what} is {:?} of {}, and of another layer {:?} of {}: layers whose \
                     experts differ need a cache of their own",
                    kind.shape,
                    kind.dtype.name(),
                    known.shape,
                    known.dtype.name()
                ),
                Some(_) => {}
            }
            of_layer.resize(of_layer.len().max(at + 1), None);
            if of_layer[at].replace(source).is_some() {
                fail!(WB_ERR_INVALID_ARGUMENT, "{what} is described twice");
            }
            match &layers[tensor.layer as usize] {
                Some((known, other)) if *known != experts => fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "{what} has {experts} experts, and tensor {other:?} of the same layer {known}: the \
                     first dimension counts the experts"
                ),
                _ => layers[tensor.layer as usize] = Some((experts, tensor.name)),
            }
            buffers.insert(Arc::as_ptr(&tensor.buffer) as usize, tensor.buffer);
        }
        if kinds.is_empty() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "no expert tensor was described: give one of each layer at least"
            );
        }
        let mut sources = Vec::with_capacity(count * kinds.len());
        for (layer, mut of_layer) in found.into_iter().enumerate() {
            of_layer.resize(kinds.len(), None);
            for (kind, source) in kinds.iter().zip(of_layer) {
                let Some(source) = source else {
                    fail!(
                        WB_ERR_INVALID_ARGUMENT,
                        "layer {layer} has no tensor {:?}, and another layer has: describe the same \
                         tensors of every layer, or give layers that differ a cache of their own",
                        kind.name
                    )
                };
                sources.push(source);
            }
        }
        let layers: Vec<u32> =
            layers.into_iter().map(|layer| layer.map_or(0, |(experts, _)| experts)).collect();
        let all: u64 = layers.iter().map(|experts| u64::from(*experts)).sum();
        if all > MOST {
            fail!(WB_ERR_NOT_SUPPORTED, "there are {all} experts; a cache has at most {MOST}");
        }
        let bases = layers.iter().scan(0, |next, experts| {
            let base = *next;
            *next += experts;
            Some(base)
        });
        let (bases, buffers) = (bases.collect(), buffers.into_values().collect());
        Ok(Self { kinds, layers, bases, sources, buffers })
    }

    /// Experts of all layers.
    pub fn count(&self) -> u32 {
        self.layers.iter().sum()
    }

    /// Experts of the largest layer.
    pub fn most(&self) -> u32 {
        self.layers.iter().copied().max().unwrap_or(0)
    }

    /// Bytes of an expert, of all tensors.
    pub fn bytes(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.bytes).sum()
    }
}

/// What a tensor has in common with those of its name, and the number of its experts.
fn kind_of(tensor: &ExpertTensor, what: &str) -> Result<(TensorKind, u32)> {
    let layout = &tensor.layout;
    let (dtype, ndim) = (layout.dtype(), layout.ndim());
    let least = if dtype.is_opaque() { 2 } else { 1 };
    if ndim < least || layout.elements() == 0 {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "{what} has the shape {:?}: the first dimension counts the experts, the others are an \
             expert, and none is 0",
            layout.shape()
        );
    }
    let (experts, shape) = (layout.shape()[0] as u64, &layout.shape()[1..]);
    if experts > MOST_EXPERTS {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "{what} has {experts} experts; a layer has at most {MOST_EXPERTS}"
        );
    }
    let mut stride = 1;
    for (size, found) in shape.iter().zip(&layout.strides()[1..]).rev() {
        if *size != 1 && *found != stride {
            fail!(
                WB_ERR_NOT_SUPPORTED,
                "{what} has the strides {:?}: an expert must be contiguous, so that it moves as a \
                 whole; copy the tensor to a contiguous one",
                layout.strides()
            );
        }
        stride *= size;
    }
    let bytes = stride as u64 / u64::from(dtype.block_elements()) * dtype.bytes() as u64;
    let kind = TensorKind { name: tensor.name.clone(), dtype, shape: shape.to_vec(), bytes };
    Ok((kind, experts as u32))
}

/// Where the experts of a tensor are.
fn source_of(
    device: &Arc<Device>,
    tensor: &ExpertTensor,
    kind: &TensorKind,
    what: &str,
) -> Result<Source> {
    let (layout, buffer) = (&tensor.layout, &tensor.buffer);
    if !Arc::ptr_eq(buffer.device(), device) {
        fail!(WB_ERR_INVALID_ARGUMENT, "{what} is in a buffer of another device than the cache's");
    }
    let stride = match layout.shape()[0] {
        1 => kind.bytes,
        _ if layout.strides()[0] < 0 => 0,
        // Whole blocks: of an opaque type the rows of an expert are contiguous, and it is, too.
        _ => {
            layout.strides()[0] as u64 / u64::from(kind.dtype.block_elements())
                * kind.dtype.bytes() as u64
        }
    };
    if stride < kind.bytes {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "{what} has the strides {:?}: experts must not overlap, nor be in descending order",
            layout.strides()
        );
    }
    let have = buffer.data().bytes() as u64;
    if tensor.offset.checked_add(layout.span_bytes()).is_none_or(|end| end > have) {
        fail!(
            WB_ERR_OUT_OF_RANGE,
            "{what} has {} bytes from byte {} on; its buffer has {have}",
            layout.span_bytes(),
            tensor.offset
        );
    }
    buffer.check_file()?;
    let Some(address) = buffer.device_address() else {
        fail!(
            WB_ERR_NOT_MAPPED,
            "{what} is in memory that the device does not read in place ({}): an expert cache gathers \
             through the mapping, so allow pinning and views",
            match buffer.fallback_reason() {
                "" => &device.policy().views_reason,
                reason => reason,
            }
        )
    };
    Ok(Source { address: address + tensor.offset, stride: stride as i64 })
}
