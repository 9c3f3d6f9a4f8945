//! An engine of a few layers: the model of its weights, its plan and its offloader.

use std::cell::RefCell;
use std::ffi::CString;
use std::ptr;
use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use weighbridge::capi::device::{wb_device_alloc, wb_device_copy};
use weighbridge::capi::offloader::*;
use weighbridge::capi::parameter::*;
use weighbridge::capi::plan::*;
use weighbridge::capi::view::wb_layout;
use weighbridge::tensor::dtype::WB_DTYPE_U8;

use super::held::Held;
use super::world::World;
use crate::c;

pub const GROUPS: [&str; 3] = ["g0", "g1", "g2"];

/// A parameter as the model knows it.
pub struct Weight {
    pub name: CString,
    pub group: usize,
    pub bytes: Vec<u8>,
    /// What it is tied to changes with it: the same number.
    pub tie: usize,
}

/// What a plan was made of, and what its one offloader has become. The sources live as long.
pub struct Engine {
    sources: RefCell<Vec<Vec<u8>>>,
    pub weights: RefCell<Vec<Weight>>,
    /// Names of the groups in their order, and how often each is acquired.
    pub groups: RefCell<Vec<(usize, u32)>>,
    committed: RefCell<bool>,
    pub made: RefCell<usize>,
}

impl World {
    /// Plans a model of a few weights.
    pub fn plan(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let mut engine = Engine::new();
        let mut addresses: Vec<u64> = Vec::new();
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
            engine.add_weight(group, bytes, tie);
        }
        let Some(plan) = engine.plan(self, u, &addresses)? else { return Ok(()) };
        self.held.push(Held::Plan(plan, Rc::new(engine)));
        Ok(())
    }

    /// Makes the offloader of a plan.
    pub fn commit(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let plan = self.pick(u, |held| match held {
            Held::Plan(raw, engine) => Some((*raw, engine.clone())),
            _ => None,
        })?;
        let Some((plan, engine)) = plan.filter(|(_, engine)| !engine.committed.replace(true))
        else {
            return Ok(());
        };
        let stream = self.a_stream(u)?;
        // SAFETY: the sources are the engine's, which the handle holds.
        let made = c::make(|made, error| unsafe {
            wb_offloader_new(plan, stream, ptr::null(), made, error)
        });
        self.held.push(Held::Offloader(made.expect("there is memory"), engine));
        Ok(())
    }
}

impl Engine {
    fn new() -> Self {
        Self {
            sources: RefCell::default(),
            weights: RefCell::default(),
            groups: RefCell::default(),
            committed: RefCell::new(false),
            made: RefCell::new(0),
        }
    }

    pub fn bytes(&self, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let (first, bytes): (u8, usize) = (u.arbitrary()?, u.int_in_range(0..=3000)?);
        Ok((0..bytes).map(|at| first.wrapping_add(at as u8)).collect())
    }

    /// Puts bytes where a source may be: host memory, or device memory of the sequence's.
    fn source(&self, world: &mut World, u: &mut Unstructured<'_>, bytes: &[u8]) -> Result<u64> {
        self.sources.borrow_mut().push(bytes.to_vec());
        let host = self.sources.borrow()[self.sources.borrow().len() - 1].as_ptr() as u64;
        if bytes.is_empty() || !u.ratio(1, 4)? {
            return Ok(host);
        }
        let mut address = 0;
        // SAFETY: both places are valid until the stream was waited for.
        unsafe {
            let (device, bytes) = (world.device, bytes.len() as u64);
            c::call(|error| wb_device_alloc(device, bytes, &raw mut address, error))
                .expect("there is memory");
            c::call(|error| wb_device_copy(device, address, host, bytes, ptr::null_mut(), error))
                .expect("it is queued");
        }
        world.synchronize(ptr::null_mut());
        world.kept_device_memory.push(address);
        Ok(address)
    }

    pub fn add_weight(&self, group: usize, bytes: Vec<u8>, tie: usize) {
        let mut groups = self.groups.borrow_mut();
        if !groups.iter().any(|(known, _)| *known == group) {
            groups.push((group, 0));
        }
        let name = format!("w{}", self.made.replace_with(|made| *made + 1));
        let name = c::text(name.as_bytes());
        self.weights.borrow_mut().push(Weight { name, group, bytes, tie });
    }

    fn plan(
        &self,
        world: &World,
        u: &mut Unstructured<'_>,
        addresses: &[u64],
    ) -> Result<Option<*mut wb_plan>> {
        // SAFETY: a struct of the interface.
        let mut options: wb_plan_options = unsafe { c::sized() };
        let budget = u.int_in_range(0..=16_000)?;
        let by_device = u.ratio(1, 3)?;
        options.offload_bytes = if by_device { WB_UNSET } else { budget };
        options.device_bytes = if by_device { budget } else { WB_UNSET };
        options.slot_bytes = if u.ratio(1, 6)? { u.int_in_range(0..=6000)? } else { WB_UNSET };
        options.carrier = u.int_in_range(0..=3)?;
        options.order = u.int_in_range(0..=2)?;
        options.depth = u.int_in_range(0..=3)?;
        options.allow = WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_EVERYTHING_FITS;
        let carrier = if u.ratio(1, 4)? { u.int_in_range(-1..=3)? } else { WB_TRANSFER_MODE_AUTO };
        let weights = self.weights.borrow();
        let shapes: Vec<[i64; 1]> = weights.iter().map(|one| [one.bytes.len() as i64]).collect();
        let layouts: Vec<wb_layout> =
            shapes.iter().map(|shape| c::layout(WB_DTYPE_U8, shape, None, 0)).collect();
        let groups = GROUPS.map(|group| c::text(group.as_bytes()));
        let mut given: Vec<wb_parameter> = Vec::new();
        for ((weight, layout), address) in weights.iter().zip(&layouts).zip(addresses) {
            given.push(parameter(weight, &groups, layout, *address));
        }
        given[0].carrier = carrier;
        // SAFETY: all pointers are valid.
        let made = c::make(|plan, error| unsafe {
            let (given, count) = (given.as_ptr(), given.len() as u64);
            wb_plan_new(world.device, given, count, &raw const options, plan, error)
        });
        Ok(made.ok())
    }
}

pub fn parameter(
    weight: &Weight,
    groups: &[CString; 3],
    layout: &wb_layout,
    source: u64,
) -> wb_parameter {
    wb_parameter {
        struct_size: size_of::<wb_parameter>() as u32,
        access: WB_ACCESS_PATTERN_DENSE,
        name: weight.name.as_ptr(),
        group: groups[weight.group].as_ptr(),
        layout: ptr::from_ref(layout),
        source,
        storage: 0,
        carrier: WB_TRANSFER_MODE_AUTO,
        reserved0: 0,
        reserved: [0; 2],
    }
}
