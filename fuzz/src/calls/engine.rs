//! An engine with a few groups of weights: the model of the weights, their plan and their offloader.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_void};
use std::ptr;
use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use weighbridge::capi::device::{wb_device_alloc, wb_device_copy};
use weighbridge::capi::offloader::*;
use weighbridge::capi::parameter::*;
use weighbridge::capi::plan::*;
use weighbridge::capi::view::wb_layout;
use weighbridge::tensor::dtype::{WB_DTYPE_F8_E4M3FN, WB_DTYPE_U8, wb_dtype};

use super::carried;
use super::references::Reference;
use super::sequence::Sequence;
use crate::c;

pub const GROUPS: [&str; 3] = ["g0", "g1", "g2"];

/// A parameter and the bytes that it must have.
pub struct Weight {
    pub name: CString,
    pub group: usize,
    pub bytes: Vec<u8>,
    /// Tied weights, which change together, have the same number.
    pub tie: usize,
    pub dtype: wb_dtype,
}

/// What is special about the weights of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// They are compressed.
    Compressed,
    /// They are compressed, and so large that they pass through windows.
    Windowed,
    /// Their addresses are fixed.
    Fixed,
    /// Their addresses are fixed, and they are in pieces.
    Pieces,
}

impl Kind {
    pub fn is_fixed(self) -> bool {
        matches!(self, Self::Fixed | Self::Pieces)
    }

    pub fn is_compressed(self) -> bool {
        matches!(self, Self::Compressed | Self::Windowed)
    }
}

/// The model of a plan's parameters, and of the one offloader that is made of the plan.
pub struct Engine {
    pub kind: Kind,
    /// Whether steps may be refused since nothing is on the device.
    pub asleep: Cell<bool>,
    /// Bytes of its slots, and what it was resized to last.
    pub slot_bytes: Cell<Option<u64>>,
    pub target: Cell<u64>,
    /// Sources of weights in host memory; the plan points to them.
    sources: RefCell<Vec<Vec<u8>>>,
    pub weights: RefCell<Vec<Weight>>,
    /// The groups in their order, each with how often it is acquired.
    pub groups: RefCell<Vec<(usize, u32)>>,
    committed: Cell<bool>,
    /// The number of the next weight or tie.
    made: Cell<usize>,
}

impl Sequence {
    /// Plans a few weights.
    pub fn plan(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let mut engine = Engine::new(Kind::Plain);
        let mut addresses: Vec<*const c_void> = Vec::new();
        for index in 0..u.int_in_range(1..=6)? {
            let tied = index > 0 && u.ratio(1, 6)?;
            let tie = if tied { u.choose_index(index)? } else { index };
            let group = u.choose_index(GROUPS.len())?;
            let (bytes, address) = match tied {
                true => (engine.weights.get_mut()[tie].bytes.clone(), addresses[tie]),
                false => {
                    let bytes = engine.bytes(u)?;
                    let address = engine.source(self, u, &bytes)?;
                    (bytes, address)
                }
            };
            let tie = engine.weights.get_mut().get(tie).map_or(tie, |first| first.tie);
            addresses.push(address);
            engine.add_weight(group, bytes, Some(tie));
        }
        let Some(plan) = engine.plan(self, u, &addresses)? else { return Ok(()) };
        self.references.push(Reference::Plan(plan, Rc::new(engine)));
        Ok(())
    }

    /// Makes the offloader of a plan.
    pub fn commit(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let plan = self.pick(u, |reference| match reference {
            Reference::Plan(raw, engine) => Some((*raw, engine.clone())),
            _ => None,
        })?;
        let Some((plan, engine)) = plan.filter(|(_, engine)| !engine.committed.replace(true))
        else {
            return Ok(());
        };
        let stream = self.a_stream(u)?;
        // SAFETY: the sources belong to the engine, which the reference keeps alive.
        let made = c::make(|made, error| unsafe {
            wb_offloader_new(plan, stream, ptr::null(), made, error)
        });
        let made = made.expect("memory is available");
        self.references.push(Reference::Offloader(made, engine));
        Ok(())
    }
}

impl Engine {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            asleep: Cell::new(false),
            slot_bytes: Cell::new(None),
            target: Cell::new(u64::MAX),
            sources: RefCell::default(),
            weights: RefCell::default(),
            groups: RefCell::default(),
            committed: Cell::new(false),
            made: Cell::new(0),
        }
    }

    /// Reads the bytes of a weight.
    pub fn bytes(&self, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        if self.kind != Kind::Plain {
            return carried::bytes(self.kind, u);
        }
        let (first, bytes): (u8, usize) = (u.arbitrary()?, u.int_in_range(0..=3000)?);
        Ok((0..bytes).map(|at| first.wrapping_add(at as u8)).collect())
    }

    fn next_number(&self) -> usize {
        self.made.replace(self.made.get() + 1)
    }

    /// The number of a tie that no other weight has.
    pub fn new_tie(&self) -> usize {
        self.next_number() + 1000
    }

    /// Copies the bytes to host memory, and returns their address.
    pub fn host_source(&self, bytes: &[u8]) -> *const c_void {
        self.sources.borrow_mut().push(bytes.to_vec());
        let sources = self.sources.borrow();
        sources[sources.len() - 1].as_ptr().cast()
    }

    /// Copies the bytes to host memory or to device memory, and returns their address.
    fn source(
        &self,
        sequence: &mut Sequence,
        u: &mut Unstructured<'_>,
        bytes: &[u8],
    ) -> Result<*const c_void> {
        let host = self.host_source(bytes);
        if bytes.is_empty() || !u.ratio(1, 4)? {
            return Ok(host);
        }
        let (device, bytes) = (sequence.device, bytes.len() as u64);
        // SAFETY: all pointers are valid.
        let made =
            c::make(|address, error| unsafe { wb_device_alloc(device, bytes, address, error) });
        let address = made.expect("memory is available");
        // SAFETY: both addresses are valid until the stream has completed.
        c::call(|error| unsafe {
            wb_device_copy(device, address, host, bytes, ptr::null_mut(), error)
        })
        .expect("it is queued");
        sequence.synchronize(ptr::null_mut());
        sequence.sources.push(address);
        Ok(address)
    }

    /// Adds a weight to the model, tied to others or to none.
    pub fn add_weight(&self, group: usize, bytes: Vec<u8>, tie: Option<usize>) {
        let mut groups = self.groups.borrow_mut();
        if !groups.iter().any(|(known, _)| *known == group) {
            groups.push((group, 0));
        }
        let number = self.next_number();
        let (name, tie) = (c::text(format!("w{number}").as_bytes()), tie.unwrap_or(number + 1000));
        let dtype = if self.kind.is_compressed() { WB_DTYPE_F8_E4M3FN } else { WB_DTYPE_U8 };
        self.weights.borrow_mut().push(Weight { name, group, bytes, tie, dtype });
    }

    fn plan(
        &self,
        sequence: &Sequence,
        u: &mut Unstructured<'_>,
        addresses: &[*const c_void],
    ) -> Result<Option<*mut wb_plan>> {
        // SAFETY: a struct of the interface.
        let mut options: wb_plan_options = unsafe { c::sized() };
        options.budget_bytes = u.int_in_range(0..=16_000)?;
        let by_device = u.ratio(1, 3)?;
        options.budget_kind =
            if by_device { WB_BUDGET_DEVICE_BYTES } else { WB_BUDGET_OFFLOAD_BYTES };
        // 0 is the default.
        options.slot_bytes = if u.ratio(1, 6)? { u.int_in_range(0..=6000)?.max(1) } else { 0 };
        options.transfer_mode = u.int_in_range(0..=3)?;
        options.order = u.int_in_range(0..=2)?;
        options.depth = u.int_in_range(0..=3)?;
        options.allow = WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_EVERYTHING_FITS;
        let first = if u.ratio(1, 4)? { u.int_in_range(-1..=3)? } else { WB_TRANSFER_MODE_AUTO };
        let weights = self.weights.borrow();
        // SAFETY: all pointers are valid.
        let made = with_parameters(&weights, addresses, |parameters| unsafe {
            (parameters[0].placement, parameters[0].transfer_mode) = c::placement(first);
            let (parameters, count) = (parameters.as_ptr(), parameters.len() as u64);
            c::make(|plan, error| {
                wb_plan_new(sequence.device, parameters, count, &raw const options, plan, error)
            })
        });
        Ok(made.ok())
    }
}

/// Calls `body` with the weights as structs of the interface, whose sources are `addresses`.
pub fn with_parameters<T>(
    weights: &[Weight],
    addresses: &[*const c_void],
    body: impl FnOnce(&mut [wb_parameter]) -> T,
) -> T {
    let shapes: Vec<[i64; 1]> = weights.iter().map(|one| [one.bytes.len() as i64]).collect();
    let layouts: Vec<wb_layout> = weights
        .iter()
        .zip(&shapes)
        .map(|(one, shape)| c::layout(one.dtype, shape, None, 0))
        .collect();
    let groups = GROUPS.map(|group| c::text(group.as_bytes()));
    let mut parameters: Vec<wb_parameter> = Vec::new();
    for ((weight, layout), address) in weights.iter().zip(&layouts).zip(addresses) {
        parameters.push(wb_parameter {
            name: weight.name.as_ptr(),
            group: groups[weight.group].as_ptr(),
            layout: ptr::from_ref(layout),
            source: *address,
            // SAFETY: a struct of the interface.
            ..unsafe { c::sized() }
        });
    }
    body(&mut parameters)
}
