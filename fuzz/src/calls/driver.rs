//! What an engine does with its offloader: steps, replacements, and what becomes of every weight's bytes.

use std::ffi::{CString, c_void};

use arbitrary::{Result, Unstructured};
use weighbridge::capi::offloader::*;
use weighbridge::capi::parameter::*;
use weighbridge::capi::view::{wb_layout, wb_view};
use weighbridge::status::*;
use weighbridge::tensor::dtype::WB_DTYPE_U8;

use super::engine::{Engine, GROUPS, Weight, parameter};
use super::held::{Content, Held, read};
use super::world::World;
use crate::c;

/// Whom a call is about.
struct Driver<'a> {
    world: &'a World,
    raw: *mut wb_offloader,
    engine: &'a Engine,
    stream: *mut c_void,
}

impl World {
    /// Does something with an offloader.
    pub fn drive(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let offloader = self.pick(u, |held| match held {
            Held::Offloader(raw, engine) => Some((*raw, engine.clone())),
            _ => None,
        })?;
        let Some((raw, engine)) = offloader else { return Ok(()) };
        let driver = Driver { world: self, raw, engine: &engine, stream: self.a_stream(u)? };
        match u.int_in_range(0..=12)? {
            0..=2 => driver.step(),
            3 => driver.acquire(u)?,
            4 => driver.release(u)?,
            5..=6 => driver.replace(u)?,
            7 => driver.add(u)?,
            8 => driver.remove(u)?,
            9 => driver.reconcile(u)?,
            10 => driver.compact(),
            11 => driver.reset(),
            _ => {
                if let Some(view) = driver.view(u)? {
                    self.held.push(Held::View(view, Content::unknown()));
                }
            }
        }
        Ok(())
    }
}

impl Driver<'_> {
    fn describe(&self, name: &CString) -> wb_offloader_parameter_info {
        // SAFETY: the offloader is alive.
        unsafe {
            let mut info: wb_offloader_parameter_info = c::sized();
            let name = name.as_ptr();
            c::call(|error| wb_offloader_get_parameter_info(self.raw, name, &raw mut info, error))
                .expect("it is there");
            info
        }
    }

    /// Every weight has its bytes where the offloader says, in acquired groups and elsewhere.
    fn check(&self) {
        self.world.synchronize(self.stream);
        let groups = self.engine.groups.borrow();
        for weight in self.engine.weights.borrow().iter() {
            let info = self.describe(&weight.name);
            let bytes = weight.bytes.len();
            assert_eq!(info.span_bytes, bytes as u64);
            if !info.host_address.is_null() {
                assert!(read(info.host_address as u64, bytes) == weight.bytes, "{:?}", weight.name);
            }
            let acquired = groups.iter().any(|(group, times)| *group == weight.group && *times > 0);
            let always = matches!(info.carrier, WB_CARRIER_NONE | WB_TRANSFER_MODE_ZERO_COPY);
            if info.device_address != 0 && (acquired || always) {
                assert!(read(info.device_address, bytes) == weight.bytes, "{:?}", weight.name);
            }
        }
        // SAFETY: the offloader is alive.
        unsafe {
            let mut stats: wb_offloader_stats = c::sized();
            c::call(|error| wb_offloader_get_stats(self.raw, &raw mut stats, error))
                .expect("it counts");
            assert!(
                stats.offloaded_bytes <= stats.asked_bytes
                    && stats.asked_bytes <= stats.mapped_bytes
            );
            assert!(stats.mapped_bytes <= stats.peak_mapped_bytes);
        }
    }

    fn acquire_one(&self, at: usize) -> bool {
        // SAFETY: the offloader and the stream are alive.
        let told = c::call(|error| unsafe {
            wb_offloader_acquire_group(self.raw, at as u64, self.stream, error)
        });
        match told {
            Ok(()) => self.engine.groups.borrow_mut()[at].1 += 1,
            Err(refused) => {
                assert_eq!(refused.status, WB_ERR_BUSY, "{refused:?}");
                let others = self.engine.groups.borrow().iter().any(|(_, times)| *times > 0);
                assert!(others, "nobody holds the slot: {refused:?}");
                return false;
            }
        }
        true
    }

    fn release_one(&self, at: usize) {
        // SAFETY: the offloader and the stream are alive.
        let told = c::call(|error| unsafe {
            wb_offloader_release_group(self.raw, at as u64, self.stream, error)
        });
        let times = &mut self.engine.groups.borrow_mut()[at].1;
        match told {
            Ok(()) => *times = times.checked_sub(1).expect("it was acquired"),
            Err(refused) => {
                assert_eq!((refused.status, *times), (WB_ERR_INVALID_ARGUMENT, 0), "{refused:?}");
            }
        }
    }

    fn step(&self) {
        let groups = self.engine.groups.borrow().len();
        for at in 0..groups {
            if self.acquire_one(at) {
                self.check();
                self.release_one(at);
            }
        }
    }

    fn a_group(&self, u: &mut Unstructured<'_>) -> Result<usize> {
        u.choose_index(self.engine.groups.borrow().len())
    }

    fn acquire(&self, u: &mut Unstructured<'_>) -> Result<()> {
        self.acquire_one(self.a_group(u)?);
        self.check();
        Ok(())
    }

    fn release(&self, u: &mut Unstructured<'_>) -> Result<()> {
        self.release_one(self.a_group(u)?);
        Ok(())
    }

    fn a_weight(&self, u: &mut Unstructured<'_>) -> Result<Option<usize>> {
        let count = self.engine.weights.borrow().len();
        if count == 0 { Ok(None) } else { u.choose_index(count).map(Some) }
    }

    /// What may be refused while groups are acquired, or by a budget.
    fn changed(&self, told: std::result::Result<(), c::Refused>) -> bool {
        if let Err(refused) = &told {
            let acquired = self.engine.groups.borrow().iter().any(|(_, times)| *times > 0);
            let busy = refused.status == WB_ERR_BUSY && acquired;
            let budgets = [WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET];
            assert!(busy || budgets.contains(&refused.status), "{refused:?}");
        }
        told.is_ok()
    }

    fn replace(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.a_weight(u)? else { return Ok(()) };
        let mut bytes = self.engine.bytes(u)?;
        let (name, tie, before) = {
            let weight = &self.engine.weights.borrow()[at];
            (weight.name.clone(), weight.tie, weight.bytes.len())
        };
        if u.ratio(2, 3)? {
            bytes.resize(before, 1);
        }
        let shape = [bytes.len() as i64];
        let layout = c::layout(WB_DTYPE_U8, &shape, None, 0);
        let source = bytes.as_ptr() as u64;
        // SAFETY: the source may be read until the call returns: it lies in host memory.
        let told = c::call(|error| unsafe {
            let (name, layout) = (name.as_ptr(), &raw const layout);
            wb_offloader_replace(self.raw, name, source, layout, self.stream, error)
        });
        if self.changed(told) {
            self.took(&name, tie, before, &bytes);
        }
        self.check();
        Ok(())
    }

    /// A weight was replaced. What is tied follows when the bytes are as many; resident in memory of the
    /// engine's own, each has the address that was given for it.
    fn took(&self, name: &CString, tie: usize, before: usize, bytes: &Vec<u8>) {
        let now = self.describe(name);
        let mut weights = self.engine.weights.borrow_mut();
        let follows = |one: &Weight| {
            one.name == *name
                || (bytes.len() == before
                    && (now.carrier != WB_CARRIER_NONE
                        || self.describe(&one.name).device_address == now.device_address))
        };
        // Those have a number that nobody else has.
        let made = self.engine.made.replace_with(|made| *made + 1) + 1000;
        weights.iter_mut().filter(|one| one.tie == tie && follows(one)).for_each(|one| {
            one.tie = made;
            one.bytes.clone_from(bytes);
        });
    }

    fn add(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let group = self.engine.groups.borrow()[self.a_group(u)?].0;
        let bytes = self.engine.bytes(u)?;
        let tie = *self.engine.made.borrow();
        self.engine.add_weight(group, bytes, tie + 1000);
        let weight = self.engine.weights.borrow_mut().pop().expect("it was added");
        let shape = [weight.bytes.len() as i64];
        let layout = c::layout(WB_DTYPE_U8, &shape, None, 0);
        let groups = GROUPS.map(|group| c::text(group.as_bytes()));
        let one = parameter(&weight, &groups, &layout, weight.bytes.as_ptr() as u64);
        // SAFETY: the source may be read until the call returns: it lies in host memory.
        let told = c::call(|error| unsafe {
            wb_offloader_add(self.raw, &raw const one, self.stream, error)
        });
        if self.changed(told) {
            self.engine.weights.borrow_mut().push(weight);
        }
        self.check();
        Ok(())
    }

    fn remove(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.a_weight(u)? else { return Ok(()) };
        let name = self.engine.weights.borrow()[at].name.clone();
        // SAFETY: the offloader is alive.
        let told = c::call(|error| unsafe {
            wb_offloader_remove(self.raw, name.as_ptr(), self.stream, error)
        });
        if self.changed(told) {
            self.engine.weights.borrow_mut().remove(at);
        }
        self.check();
        Ok(())
    }

    /// Tells the offloader the addresses that it gave: as they are, of two weights exchanged, or of one
    /// under another name. Changes are made between steps, where no group is in their way.
    fn reconcile(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let between = self.engine.groups.borrow().iter().all(|(_, times)| *times == 0);
        match u.int_in_range(0..=2)? {
            1 if between => self.exchange(u)?,
            2 if between => self.rename(u)?,
            _ => {
                let done = self.tell(|_, _, _| {}).expect("there is nothing to do");
                assert_eq!(
                    (done.kept, done.replaced),
                    (self.engine.weights.borrow().len() as u64, 0)
                );
            }
        }
        self.check();
        Ok(())
    }

    /// Tells where all weights are, after `other` has changed what is told of them.
    fn tell(
        &self,
        other: impl Fn(usize, &wb_offloader_parameter_info, &mut wb_parameter),
    ) -> std::result::Result<wb_offloader_reconcile_result, c::Refused> {
        let weights = self.engine.weights.borrow();
        let shapes: Vec<[i64; 1]> = weights.iter().map(|one| [one.bytes.len() as i64]).collect();
        let layouts: Vec<wb_layout> =
            shapes.iter().map(|shape| c::layout(WB_DTYPE_U8, shape, None, 0)).collect();
        let groups = GROUPS.map(|group| c::text(group.as_bytes()));
        let mut given: Vec<wb_parameter> = Vec::new();
        for (at, (weight, layout)) in weights.iter().zip(&layouts).enumerate() {
            let info = self.describe(&weight.name);
            let mut told = parameter(weight, &groups, layout, info.device_address);
            other(at, &info, &mut told);
            given.push(told);
        }
        // SAFETY: the addresses are the offloader's own.
        unsafe {
            let mut done: wb_offloader_reconcile_result = c::sized();
            let (given, count, stream) = (given.as_ptr(), given.len() as u64, self.stream);
            c::call(|error| {
                wb_offloader_reconcile(self.raw, given, count, stream, &raw mut done, error)
            })
            .map(|()| done)
        }
    }

    fn exchange(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let (Some(one), Some(other)) = (self.a_weight(u)?, self.a_weight(u)?) else {
            return Ok(());
        };
        let host = |at: usize| {
            let weights = self.engine.weights.borrow();
            let Weight { name, tie, bytes, .. } = &weights[at];
            (self.describe(name).host_address as u64, name.clone(), *tie, bytes.clone())
        };
        let ((from, name, tie, bytes), (to, other_name, other_tie, others)) =
            (host(one), host(other));
        let alike = bytes.len() == others.len() && !bytes.is_empty() && tie != other_tie;
        if !alike || from == 0 || to == 0 {
            return Ok(());
        }
        let told = self.tell(|at, _, told| match at {
            _ if at == one => told.source = to,
            _ if at == other => told.source = from,
            _ => {}
        });
        assert_eq!(told.expect("as many bytes have room").replaced, 2);
        self.took(&name, tie, bytes.len(), &others);
        self.took(&other_name, other_tie, bytes.len(), &bytes);
        Ok(())
    }

    /// Under its new name a weight is kept where it belongs; a budget may refuse that.
    fn rename(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(one) = self.a_weight(u)? else { return Ok(()) };
        let by_host = u.arbitrary()?;
        let made = self.engine.made.replace_with(|made| *made + 1) + 1000;
        let name = c::text(format!("renamed{made}").as_bytes());
        let told = self.tell(|at, info, told| {
            if at == one {
                told.name = name.as_ptr();
                if by_host && !info.host_address.is_null() {
                    told.source = info.host_address as u64;
                }
            }
        });
        if self.changed(told.map(drop)) {
            let mut weights = self.engine.weights.borrow_mut();
            weights[one].name = name;
            weights[one].tie = made;
        } else {
            self.engine.weights.borrow_mut().remove(one);
        }
        Ok(())
    }

    fn compact(&self) {
        // SAFETY: the offloader is alive.
        let told = c::call(|error| unsafe { wb_offloader_compact(self.raw, self.stream, error) });
        self.changed(told);
        self.check();
    }

    fn reset(&self) {
        // SAFETY: the offloader is alive.
        let told = c::call(|error| unsafe { wb_offloader_reset(self.raw, self.stream, error) });
        told.expect("a step can be ended at any time");
        self.engine.groups.borrow_mut().iter_mut().for_each(|(_, times)| *times = 0);
        // SAFETY: the offloader is alive.
        c::call(|error| unsafe { wb_offloader_join(self.raw, self.stream, error) })
            .expect("the stream waits");
        self.check();
    }

    fn view(&self, u: &mut Unstructured<'_>) -> Result<Option<*mut wb_view>> {
        let Some(at) = self.a_weight(u)? else { return Ok(None) };
        let name = self.engine.weights.borrow()[at].name.clone();
        let of_host = u.arbitrary()?;
        // SAFETY: the offloader is alive.
        let made = c::make(|view, error| unsafe {
            match of_host {
                true => wb_offloader_get_host_view(self.raw, name.as_ptr(), view, error),
                false => wb_offloader_get_view(self.raw, name.as_ptr(), view, error),
            }
        });
        if let Err(refused) = &made {
            assert!([WB_ERR_NOT_FOUND, WB_ERR_NOT_SUPPORTED].contains(&refused.status));
        }
        Ok(made.ok())
    }
}
