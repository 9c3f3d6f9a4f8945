//! Calls of an engine with its offloader: steps and changes, after which every weight must have its bytes.

use std::ffi::{CStr, CString, c_void};

use arbitrary::{Result, Unstructured};
use weighbridge::capi::offloader::*;
use weighbridge::capi::parameter::{
    WB_PLACEMENT_RESIDENT, WB_TRANSFER_MODE_ZERO_COPY, wb_parameter,
};
use weighbridge::capi::view::wb_view;
use weighbridge::status::*;

use super::engine::{Engine, Weight, with_parameters};
use super::references::{Content, Reference, holds};
use super::sequence::Sequence;
use crate::c;

/// An offloader, its model, and the stream for the next call.
pub struct Offloader<'a> {
    sequence: &'a Sequence,
    pub raw: *mut wb_offloader,
    pub engine: &'a Engine,
    pub stream: *mut c_void,
}

impl Sequence {
    /// Makes a call with an offloader.
    pub fn use_offloader(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let offloader = self.pick(u, |reference| match reference {
            Reference::Offloader(raw, engine) => Some((*raw, engine.clone())),
            _ => None,
        })?;
        let Some((raw, engine)) = offloader else { return Ok(()) };
        let stream = self.a_stream(u)?;
        let offloader = Offloader { sequence: self, raw, engine: &engine, stream };
        // Twice each number; the second time, memory moves if addresses are fixed.
        let number = u.int_in_range(0..=29)?;
        if number > 14 && engine.kind.is_fixed() {
            return offloader.move_memory(number - 15, u);
        }
        match number % 15 {
            7..=10 if engine.kind.is_fixed() => {}
            0..=2 => offloader.step(),
            3 => offloader.acquire(u)?,
            4 => offloader.release(u)?,
            5..=6 => offloader.replace(u)?,
            7 => offloader.add(u)?,
            8 => offloader.remove(u)?,
            9 => offloader.reconcile(u)?,
            10 => offloader.compact(),
            11 => offloader.reset(),
            13 => offloader.begin_step(),
            14 => offloader.expect(u)?,
            _ => {
                if let Some(view) = offloader.view(u)? {
                    self.references.push(Reference::View(view, Content::unknown()));
                }
            }
        }
        Ok(())
    }
}

impl Offloader<'_> {
    pub fn find(&self, name: &CStr) -> u64 {
        let mut index = u64::MAX;
        // SAFETY: the offloader is alive.
        c::call(|error| unsafe {
            wb_offloader_find_parameter(self.raw, name.as_ptr(), &raw mut index, error)
        })
        .expect("the parameter exists");
        index
    }

    fn info(&self, name: &CStr) -> wb_offloader_parameter_info {
        let index = self.find(name);
        // SAFETY: the offloader is alive.
        unsafe {
            let mut info: wb_offloader_parameter_info = c::sized();
            c::call(|error| wb_offloader_get_parameter_info(self.raw, index, &raw mut info, error))
                .expect("the index is valid");
            assert_eq!(CStr::from_ptr(info.name), name);
            info
        }
    }

    /// Checks that every weight has its bytes on the host, and on the device while it must be there.
    pub fn check(&self) {
        self.sequence.synchronize(self.stream);
        let infos = self.check_stats();
        let groups = self.engine.groups.borrow();
        let weights = self.engine.weights.borrow();
        assert_eq!(infos.len(), weights.len());
        for weight in weights.iter() {
            let info = &infos[self.find(&weight.name) as usize];
            let bytes = weight.bytes.len();
            assert_eq!(info.span_bytes, bytes as u64);
            if !info.host_address.is_null() {
                assert!(holds(info.host_address, &weight.bytes), "{:?}", weight.name);
            }
            let acquired = groups.iter().any(|(group, times)| *group == weight.group && *times > 0);
            let always = info.placement == WB_PLACEMENT_RESIDENT
                || info.transfer_mode == WB_TRANSFER_MODE_ZERO_COPY;
            // Nothing may be behind fixed addresses, while the offloader is asleep.
            let always = always && !self.engine.kind.is_fixed();
            if info.encoded_bytes > 0 {
                assert!(self.read_compressed(weight) == weight.bytes, "{:?}", weight.name);
            }
            if !info.device_address.is_null() && (acquired || always) {
                assert!(holds(info.device_address, &weight.bytes), "{:?}", weight.name);
            }
        }
    }

    /// The bytes that a compressed weight is decoded to.
    fn read_compressed(&self, weight: &Weight) -> Vec<u8> {
        let (index, mut bytes) = (self.find(&weight.name), vec![0u8; weight.bytes.len()]);
        // SAFETY: the offloader is alive, and there is memory for all bytes.
        c::call(|error| unsafe {
            let (target, count) = (bytes.as_mut_ptr().cast(), bytes.len() as u64);
            wb_offloader_read_parameter(self.raw, index, target, count, error)
        })
        .expect("compressed bytes are decoded");
        bytes
    }

    /// Checks the sums of the offloader's stats, and returns the infos of all parameters.
    fn check_stats(&self) -> Vec<wb_offloader_parameter_info> {
        // SAFETY: the offloader is alive.
        unsafe {
            let mut stats: wb_offloader_stats = c::sized();
            c::call(|error| wb_offloader_get_stats(self.raw, &raw mut stats, error))
                .expect("it has stats");
            // Pieces have host memory of their own.
            assert!(self.engine.kind.is_fixed() || stats.offloaded_bytes <= stats.asked_bytes);
            assert!(stats.asked_bytes <= stats.mapped_bytes);
            assert!(stats.mapped_bytes <= stats.peak_mapped_bytes);
            let mut infos: Vec<wb_offloader_parameter_info> =
                (0..stats.parameters).map(|_| c::sized()).collect();
            let (count, first) = (stats.parameters, infos.as_mut_ptr());
            c::call(|error| wb_offloader_get_parameter_infos(self.raw, 0, count, first, error))
                .expect("there are `count` parameters");
            infos
        }
    }

    fn acquire_group(&self, at: usize) -> bool {
        // SAFETY: the offloader and the stream are alive.
        let acquired = c::call(|error| unsafe {
            wb_offloader_acquire_group(self.raw, at as u64, self.stream, error)
        });
        match acquired {
            Ok(()) => self.engine.groups.borrow_mut()[at].1 += 1,
            Err(refused) => {
                assert_eq!(refused.status, WB_ERR_BUSY, "{refused:?}");
                let refuses = self.any_acquired() || self.engine.asleep.get();
                assert!(refuses, "no group holds the slot: {refused:?}");
                return false;
            }
        }
        true
    }

    fn release_group(&self, at: usize) {
        // SAFETY: the offloader and the stream are alive.
        let released = c::call(|error| unsafe {
            wb_offloader_release_group(self.raw, at as u64, self.stream, error)
        });
        let times = &mut self.engine.groups.borrow_mut()[at].1;
        match released {
            Ok(()) => *times = times.checked_sub(1).expect("it was acquired"),
            Err(refused) => {
                // It never falls asleep while a group is acquired.
                let asleep = refused.status == WB_ERR_BUSY && self.engine.asleep.get();
                let expected = asleep || refused.status == WB_ERR_INVALID_ARGUMENT;
                assert!(expected && *times == 0, "{refused:?}");
            }
        }
    }

    pub fn any_acquired(&self) -> bool {
        self.engine.groups.borrow().iter().any(|(_, times)| *times > 0)
    }

    fn step(&self) {
        let groups = self.engine.groups.borrow().len();
        for at in 0..groups {
            if self.acquire_group(at) {
                self.check();
                self.release_group(at);
            }
        }
    }

    fn a_group(&self, u: &mut Unstructured<'_>) -> Result<usize> {
        u.choose_index(self.engine.groups.borrow().len())
    }

    fn acquire(&self, u: &mut Unstructured<'_>) -> Result<()> {
        self.acquire_group(self.a_group(u)?);
        self.check();
        Ok(())
    }

    fn release(&self, u: &mut Unstructured<'_>) -> Result<()> {
        self.release_group(self.a_group(u)?);
        Ok(())
    }

    pub fn a_weight(&self, u: &mut Unstructured<'_>) -> Result<Option<usize>> {
        let count = self.engine.weights.borrow().len();
        if count == 0 { Ok(None) } else { u.choose_index(count).map(Some) }
    }

    /// Whether a change succeeded. It may fail while a group is acquired, or because of a budget.
    fn changed(&self, outcome: std::result::Result<(), c::Refused>) -> bool {
        if let Err(refused) = &outcome {
            // With fixed addresses, a resize may be in progress.
            let moving = self.engine.kind.is_fixed();
            let busy = refused.status == WB_ERR_BUSY && (moving || self.any_acquired());
            let budgets = [WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET];
            assert!(busy || budgets.contains(&refused.status), "{refused:?}");
        }
        outcome.is_ok()
    }

    fn replace(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.a_weight(u)? else { return Ok(()) };
        let mut bytes = self.engine.bytes(u)?;
        let (name, tie, before, dtype) = {
            let weight = &self.engine.weights.borrow()[at];
            (weight.name.clone(), weight.tie, weight.bytes.len(), weight.dtype)
        };
        if u.ratio(2, 3)? || self.engine.kind.is_fixed() {
            bytes.resize(before, 1);
        }
        let shape = [bytes.len() as i64];
        let layout = c::layout(dtype, &shape, None, 0);
        // SAFETY: the source is host memory, readable until the call returns.
        let outcome = c::call(|error| unsafe {
            let (name, source, layout) = (name.as_ptr(), bytes.as_ptr().cast(), &raw const layout);
            wb_offloader_replace(self.raw, name, source, layout, self.stream, error)
        });
        if self.changed(outcome) {
            self.replaced(&name, tie, before, &bytes);
        }
        self.check();
        Ok(())
    }

    /// Updates the model after a weight was replaced. Tied weights follow if they have as many bytes.
    /// Resident weights in memory of the engine's own follow only if they have the same address.
    fn replaced(&self, name: &CString, tie: usize, before: usize, bytes: &Vec<u8>) {
        let now = self.info(name);
        let mut weights = self.engine.weights.borrow_mut();
        let follows = |one: &Weight| {
            one.name == *name
                || (bytes.len() == before
                    && (now.placement != WB_PLACEMENT_RESIDENT
                        || self.info(&one.name).device_address == now.device_address))
        };
        let new_tie = self.engine.new_tie();
        weights.iter_mut().filter(|one| one.tie == tie && follows(one)).for_each(|one| {
            one.tie = new_tie;
            one.bytes.clone_from(bytes);
        });
    }

    fn add(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let group = self.engine.groups.borrow()[self.a_group(u)?].0;
        let bytes = self.engine.bytes(u)?;
        self.engine.add_weight(group, bytes, None);
        let weight = self.engine.weights.borrow_mut().pop().expect("it was added");
        let source = weight.bytes.as_ptr().cast();
        // SAFETY: the source is host memory, readable until the call returns.
        let outcome = with_parameters(std::slice::from_ref(&weight), &[source], |one| unsafe {
            c::call(|error| wb_offloader_add(self.raw, one.as_ptr(), self.stream, error))
        });
        if self.changed(outcome) {
            self.engine.weights.borrow_mut().push(weight);
        }
        self.check();
        Ok(())
    }

    fn remove(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.a_weight(u)? else { return Ok(()) };
        let name = self.engine.weights.borrow()[at].name.clone();
        // SAFETY: the offloader is alive.
        let outcome = c::call(|error| unsafe {
            wb_offloader_remove(self.raw, name.as_ptr(), self.stream, error)
        });
        if self.changed(outcome) {
            self.engine.weights.borrow_mut().remove(at);
        }
        self.check();
        Ok(())
    }

    /// Reconciles with the offloader's own addresses: unchanged, with two exchanged, or with one under
    /// another name. The latter two happen between steps only, where no acquired group forbids them.
    fn reconcile(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let between = !self.any_acquired();
        match u.int_in_range(0..=2)? {
            1 if between => self.exchange(u)?,
            2 if between => self.rename(u)?,
            _ => {
                let result = self.reconcile_with(|_, _, _| {}).expect("nothing has changed");
                let weights = self.engine.weights.borrow().len() as u64;
                assert_eq!((result.kept, result.replaced), (weights, 0));
            }
        }
        self.check();
        Ok(())
    }

    /// Reconciles with the weights and their addresses, after `change` was called for each of them.
    fn reconcile_with(
        &self,
        change: impl Fn(usize, &wb_offloader_parameter_info, &mut wb_parameter),
    ) -> std::result::Result<wb_offloader_reconcile_result, c::Refused> {
        let weights = self.engine.weights.borrow();
        let infos: Vec<_> = weights.iter().map(|weight| self.info(&weight.name)).collect();
        let addresses: Vec<_> = infos.iter().map(|info| info.device_address.cast_const()).collect();
        with_parameters(&weights, &addresses, |parameters| {
            for (at, (info, parameter)) in infos.iter().zip(&mut *parameters).enumerate() {
                change(at, info, parameter);
            }
            let (parameters, count) = (parameters.as_ptr(), parameters.len() as u64);
            // SAFETY: the addresses are the offloader's own.
            unsafe {
                let mut result: wb_offloader_reconcile_result = c::sized();
                c::call(|error| {
                    let (stream, result) = (self.stream, &raw mut result);
                    wb_offloader_reconcile(self.raw, parameters, count, stream, result, error)
                })
                .map(|()| result)
            }
        })
    }

    fn exchange(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let (Some(one), Some(other)) = (self.a_weight(u)?, self.a_weight(u)?) else {
            return Ok(());
        };
        let host = |at: usize| {
            let weights = self.engine.weights.borrow();
            let Weight { name, tie, bytes, .. } = &weights[at];
            (self.info(name).host_address, name.clone(), *tie, bytes.clone())
        };
        let (from, name, tie, bytes) = host(one);
        let (to, other_name, other_tie, other_bytes) = host(other);
        let alike = bytes.len() == other_bytes.len() && !bytes.is_empty() && tie != other_tie;
        if !alike || from.is_null() || to.is_null() {
            return Ok(());
        }
        let outcome = self.reconcile_with(|at, _, parameter| match at {
            _ if at == one => parameter.source = to,
            _ if at == other => parameter.source = from,
            _ => {}
        });
        assert_eq!(outcome.expect("weights of the same length fit").replaced, 2);
        self.replaced(&name, tie, bytes.len(), &other_bytes);
        self.replaced(&other_name, other_tie, bytes.len(), &bytes);
        Ok(())
    }

    /// A renamed weight is placed again, which a budget may forbid.
    fn rename(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(one) = self.a_weight(u)? else { return Ok(()) };
        let by_host = u.arbitrary()?;
        let new_tie = self.engine.new_tie();
        let name = c::text(format!("renamed{new_tie}").as_bytes());
        let outcome = self.reconcile_with(|at, info, parameter| {
            if at == one {
                parameter.name = name.as_ptr();
                if by_host && !info.host_address.is_null() {
                    parameter.source = info.host_address;
                }
            }
        });
        if self.changed(outcome.map(drop)) {
            let mut weights = self.engine.weights.borrow_mut();
            weights[one].name = name;
            weights[one].tie = new_tie;
        } else {
            self.engine.weights.borrow_mut().remove(one);
        }
        Ok(())
    }

    fn compact(&self) {
        // SAFETY: the offloader is alive.
        self.changed(c::call(|error| unsafe {
            wb_offloader_compact(self.raw, self.stream, error)
        }));
        self.check();
    }

    fn begin_step(&self) {
        // SAFETY: the offloader and the stream are alive.
        self.is_awake(c::call(|error| unsafe {
            wb_offloader_begin_step(self.raw, self.stream, error)
        }));
    }

    /// Whether a call of a step that nothing else can refuse was not refused since the offloader is asleep.
    fn is_awake(&self, outcome: std::result::Result<(), c::Refused>) -> bool {
        if let Err(refused) = &outcome {
            assert!(self.engine.asleep.get() && refused.status == WB_ERR_BUSY, "{refused:?}");
        }
        outcome.is_ok()
    }

    /// Some of the groups, from one on, forwards or backwards.
    fn expect(&self, u: &mut Unstructured<'_>) -> Result<()> {
        let count = self.engine.groups.borrow().len();
        let mut groups: Vec<u64> = (0..count as u64).collect();
        groups.rotate_left(u.int_in_range(0..=count.saturating_sub(1))?);
        groups.truncate(u.int_in_range(0..=count)?);
        if u.arbitrary()? {
            groups.reverse();
        }
        let (first, count) = (groups.as_ptr(), groups.len() as u64);
        // SAFETY: the offloader is alive, and there are `count` numbers.
        c::call(|error| unsafe { wb_offloader_expect(self.raw, first, count, error) })
            .expect("each group is named once");
        Ok(())
    }

    fn reset(&self) {
        // SAFETY: the offloader is alive.
        let outcome =
            c::call(|error| unsafe { wb_offloader_reset_all(self.raw, self.stream, error) });
        if self.is_awake(outcome) {
            self.engine.groups.borrow_mut().iter_mut().for_each(|(_, times)| *times = 0);
        }
        // SAFETY: the offloader is alive.
        self.is_awake(c::call(|error| unsafe { wb_offloader_join(self.raw, self.stream, error) }));
        self.check();
    }

    fn view(&self, u: &mut Unstructured<'_>) -> Result<Option<*mut wb_view>> {
        let Some(at) = self.a_weight(u)? else { return Ok(None) };
        let of_host = u.arbitrary()?;
        let index = self.find(&self.engine.weights.borrow()[at].name);
        // SAFETY: the offloader is alive.
        let made = c::make(|view, error| unsafe {
            match of_host {
                true => wb_offloader_get_host_view(self.raw, index, view, error),
                false => wb_offloader_get_view(self.raw, index, view, error),
            }
        });
        if let Err(refused) = &made {
            assert!([WB_ERR_NOT_FOUND, WB_ERR_NOT_SUPPORTED].contains(&refused.status));
        }
        Ok(made.ok())
    }
}
