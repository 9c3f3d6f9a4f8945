//! Expert caches: descriptions of experts, and sequences of calls with any ids. Slots hold what they
//! must, in a plain model of the least recently used ones, and nothing outside of them is written.

use std::ffi::{CString, c_void};
use std::ptr;

use arbitrary::{Result, Unstructured};
use weighbridge::capi::buffer::*;
use weighbridge::capi::device::*;
use weighbridge::capi::experts::*;
use weighbridge::status::*;
use weighbridge::tensor::dtype::*;

use crate::c;

/// The most calls, and ids of one.
const MOST_CALLS: usize = 24;
const MOST_IDS: usize = 12;
/// Bytes of an expert in each of the two tensors.
const EXPERT: [usize; 2] = [20, 3];

/// What a cache is made of, and a model of its slots.
struct Case {
    device: *mut wb_device,
    cache: *mut wb_expert_cache,
    experts: Vec<usize>,
    slots: usize,
    lanes: usize,
    /// The byte that fills each expert of each layer.
    values: Vec<Vec<u8>>,
    buffers: Vec<[*mut wb_buffer; 2]>,
    numbers: *mut c_void,
    model: Vec<Slot>,
    /// The last call of each lane.
    calls: Vec<u64>,
    clock: u64,
    /// The most experts that a call has needed.
    needed: usize,
}

/// A slot: what is in it, when it was used last, and by each lane.
#[derive(Clone)]
struct Slot {
    holds: Option<(usize, usize)>,
    used: u64,
    held: Vec<u64>,
}

/// The bytes decide what is described, and what is called.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(Some(mut case)) = Case::new(&mut u) else {
        c::check_nothing_left(c::host(true));
        return;
    };
    for _ in 0..MOST_CALLS {
        if u.is_empty() || case.call(&mut u).is_err() {
            break;
        }
    }
    case.end();
}

impl Case {
    /// Makes a cache; `None` if the description is refused, as it must be.
    fn new(u: &mut Unstructured<'_>) -> Result<Option<Self>> {
        let device = c::host(true);
        let layers = u.int_in_range(1..=3)?;
        let experts: Vec<usize> =
            (0..layers).map(|_| u.int_in_range(1..=6)).collect::<Result<_>>()?;
        let all: usize = experts.iter().sum();
        let (slots, lanes) = (u.int_in_range(0..=all + 1)?, u.int_in_range(0..=3)?);
        // One in eight lacks a tensor, and is refused.
        let lacks = u.ratio(1, 8)?;
        let values: Vec<Vec<u8>> = experts
            .iter()
            .map(|count| (0..*count).map(|_| u.arbitrary()).collect::<Result<_>>())
            .collect::<Result<_>>()?;
        let buffer = |layer: usize, tensor: usize| {
            // SAFETY: all pointers are valid.
            let buffer = c::make(|made, error| unsafe {
                let bytes = (experts[layer] * EXPERT[tensor]) as u64;
                wb_buffer_alloc(device, bytes, ptr::null(), made, error)
            });
            buffer.expect("some bytes are available")
        };
        let buffers: Vec<_> =
            (0..layers).map(|layer| [buffer(layer, 0), buffer(layer, 1)]).collect();
        let lanes_used = usize::max(lanes, 1);
        let mut case = Self {
            device,
            cache: ptr::null_mut(),
            slots,
            lanes: lanes_used,
            values,
            buffers,
            numbers: ptr::null_mut(),
            model: vec![Slot { holds: None, used: 0, held: vec![0; lanes_used] }; slots],
            calls: vec![u64::MAX; lanes_used],
            clock: 0,
            needed: 1,
            experts,
        };
        case.write();
        let made = case.make(lanes as u32, lacks);
        let fits = slots > 0 && slots <= all && slots >= lanes_used;
        match made {
            Ok(cache) => {
                assert!(fits && !lacks);
                case.cache = cache;
            }
            Err(refused) => {
                let known = [WB_ERR_INVALID_ARGUMENT, WB_ERR_OUT_OF_RANGE, WB_ERR_SLOTS_BUDGET];
                assert!((!fits || lacks) && known.contains(&refused.status), "{refused:?}");
                case.end();
                return Ok(None);
            }
        }
        // SAFETY: all pointers are valid.
        let numbers = c::make(|made, error| unsafe {
            wb_device_alloc(device, 2 * 8 * MOST_IDS as u64, made, error)
        });
        case.numbers = numbers.expect("some bytes are available");
        Ok(Some(case))
    }

    fn make(
        &self,
        lanes: u32,
        lacks: bool,
    ) -> std::result::Result<*mut wb_expert_cache, c::Refused> {
        let names = [c"w13", c"scale"].map(CString::from);
        let shapes: Vec<[[i64; 2]; 2]> = self
            .experts
            .iter()
            .map(|count| EXPERT.map(|each| [*count as i64, each as i64]))
            .collect();
        let layouts: Vec<_> = shapes
            .iter()
            .map(|shapes| [0, 1].map(|at| c::layout(WB_DTYPE_U8, &shapes[at], None, 0)))
            .collect();
        let mut tensors = Vec::new();
        for (layer, (layouts, buffers)) in layouts.iter().zip(&self.buffers).enumerate() {
            for tensor in 0..2 {
                tensors.push(wb_expert_tensor {
                    layer: layer as u64,
                    name: names[tensor].as_ptr(),
                    layout: &raw const layouts[tensor],
                    buffer: buffers[tensor],
                    // SAFETY: a struct of the interface.
                    ..unsafe { c::sized() }
                });
            }
        }
        if lacks {
            // Of one layer nothing is left to lack: then there is no layer.
            tensors.truncate(if self.experts.len() > 1 { tensors.len() - 1 } else { 0 });
        }
        // SAFETY: a struct of the interface.
        let options =
            wb_expert_cache_options { lanes, slots: self.slots as u64, ..unsafe { c::sized() } };
        let (tensors, count) = (tensors.as_ptr(), tensors.len() as u64);
        // SAFETY: all pointers are valid.
        c::make(|cache, error| unsafe {
            wb_expert_cache_new(self.device, tensors, count, &raw const options, cache, error)
        })
    }

    /// Writes the experts to host memory.
    fn write(&self) {
        for (values, buffers) in self.values.iter().zip(&self.buffers) {
            for (each, buffer) in EXPERT.iter().zip(buffers) {
                // SAFETY: a struct of the interface; the buffer is alive and has these bytes.
                unsafe {
                    let mut info: wb_buffer_info = c::sized();
                    c::call(|error| wb_buffer_get_info(*buffer, &raw mut info, error))
                        .expect("it has an info");
                    for (expert, value) in values.iter().enumerate() {
                        let start = info.data.cast::<u8>().add(expert * each);
                        ptr::write_bytes(start, *value, *each);
                    }
                }
            }
        }
    }

    fn call(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=9)? {
            0..=5 => self.route(u)?,
            6..=7 => self.prefetch(u)?,
            8 => self.change(u)?,
            _ => self.resize(u)?,
        }
        self.check();
        Ok(())
    }

    fn ids(&self, u: &mut Unstructured<'_>) -> Result<Vec<i64>> {
        let wild = u.ratio(1, 8)?;
        (0..u.int_in_range(0..=MOST_IDS)?)
            .map(|_| if wild { u.arbitrary() } else { u.int_in_range(-1..=6) })
            .collect()
    }

    fn route(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let layer = u.int_in_range(0..=self.experts.len())?;
        let (ids, wide) = (self.ids(u)?, u.arbitrary()?);
        let (lane, passes) = (u.int_in_range(0..=self.lanes)?, u.int_in_range(0..=3)?);
        let pass = u.int_in_range(0..=2)?;
        let parts = usize::max(passes, 1);
        let ids = if wide { ids } else { ids.iter().map(|id| i64::from(*id as i32)).collect() };
        let options = wb_expert_route_options {
            lane: lane as u32,
            pass: pass as u32,
            passes: passes as u32,
            // SAFETY: a struct of the interface.
            ..unsafe { c::sized() }
        };
        let outcome = self.queue(&ids, wide, |cache, at, count, dtype, to, error| {
            // SAFETY: all pointers are valid.
            unsafe {
                let (layer, options) = (layer as u64, &raw const options);
                wb_expert_cache_route(
                    cache,
                    layer,
                    at,
                    count,
                    dtype,
                    to,
                    options,
                    ptr::null_mut(),
                    error,
                )
            }
        });
        let known = layer < self.experts.len() && lane < self.lanes;
        let experts = self.experts.get(layer).copied().unwrap_or(0);
        let (first, end) = (experts * pass / parts, experts * (pass + 1) / parts);
        let in_order = known && pass < parts && parts <= experts;
        let needed = ids.len().min(end.saturating_sub(first));
        match outcome {
            Ok(found) => {
                assert!(in_order && needed <= self.slots / self.lanes);
                if ids.is_empty() {
                    return Ok(());
                }
                self.needed = self.needed.max(needed);
                self.load(layer, &ids, first..end, Some(lane));
                for (id, slot) in ids.iter().zip(found) {
                    let inside = (first as i64..end as i64).contains(id);
                    let wanted = inside.then(|| {
                        let holds = Some((layer, *id as usize));
                        self.model.iter().position(|one| one.holds == holds).expect("it is there")
                    });
                    assert_eq!(slot, wanted.map_or(-1, |slot| slot as i64), "expert {id}");
                }
            }
            Err(refused) if !in_order => assert_eq!(refused.status, WB_ERR_OUT_OF_RANGE),
            Err(refused) => {
                assert_eq!(refused.status, WB_ERR_SLOTS_BUDGET, "{refused:?}");
                assert!(needed > self.slots / self.lanes);
            }
        }
        Ok(())
    }

    fn prefetch(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let layer = u.int_in_range(0..=self.experts.len())?;
        let ids = self.ids(u)?;
        let outcome = self.queue(&ids, true, |cache, at, count, dtype, _, error| {
            // SAFETY: all pointers are valid.
            unsafe {
                wb_expert_cache_prefetch(
                    cache,
                    layer as u64,
                    at,
                    count,
                    dtype,
                    ptr::null_mut(),
                    error,
                )
            }
        });
        match outcome {
            Ok(_) if ids.is_empty() => {}
            Ok(_) => self.load(layer, &ids, 0..self.experts[layer], None),
            Err(refused) => {
                assert_eq!(refused.status, WB_ERR_OUT_OF_RANGE);
                assert_eq!(layer, self.experts.len());
            }
        }
        Ok(())
    }

    /// Other weights, which a reset makes known.
    fn change(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let by: u8 = u.arbitrary()?;
        self.values.iter_mut().flatten().for_each(|value| *value = value.wrapping_add(by));
        self.write();
        // SAFETY: the cache is alive.
        c::call(|error| unsafe { wb_expert_cache_reset(self.cache, ptr::null_mut(), error) })
            .expect("nothing is being captured");
        self.empty_from(0);
        Ok(())
    }

    fn resize(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let slots = u.int_in_range(0..=self.model.len() + 1)?;
        // SAFETY: the cache is alive.
        let outcome = c::call(|error| unsafe {
            wb_expert_cache_resize(self.cache, slots as u64, ptr::null_mut(), error)
        });
        let enough = slots >= self.needed * self.lanes;
        match outcome {
            Ok(()) => {
                assert!(enough && slots <= self.model.len());
                self.slots = slots;
                self.empty_from(slots);
            }
            Err(refused) => {
                let known = [WB_ERR_OUT_OF_RANGE, WB_ERR_SLOTS_BUDGET];
                assert!(known.contains(&refused.status), "{refused:?}");
                assert!(!enough || slots > self.model.len());
            }
        }
        Ok(())
    }

    fn empty_from(&mut self, first: usize) {
        let lanes = self.lanes;
        let empty = Slot { holds: None, used: 0, held: vec![0; lanes] };
        self.model[first..].fill(empty);
    }

    /// Copies ids to the device, calls, and returns what the call has written to the slots.
    fn queue(
        &self,
        ids: &[i64],
        wide: bool,
        function: impl FnOnce(
            *const wb_expert_cache,
            *const c_void,
            u64,
            wb_dtype,
            *mut c_void,
            *mut weighbridge::capi::error::wb_error,
        ) -> wb_status,
    ) -> std::result::Result<Vec<i64>, c::Refused> {
        let each = if wide { 8 } else { 4 };
        let mut bytes: Vec<u8> = match wide {
            true => ids.iter().flat_map(|id| id.to_ne_bytes()).collect(),
            false => ids.iter().flat_map(|id| (*id as i32).to_ne_bytes()).collect(),
        };
        self.copy(self.numbers, bytes.as_ptr().cast(), bytes.len());
        let to = self.numbers.wrapping_byte_add(8 * MOST_IDS);
        let dtype = if wide { WB_DTYPE_I64 } else { WB_DTYPE_I32 };
        let count = ids.len() as u64;
        c::call(|error| function(self.cache, self.numbers, count, dtype, to, error))?;
        self.copy(bytes.as_mut_ptr().cast(), to, bytes.len());
        let number = |part: &[u8]| match wide {
            true => i64::from_ne_bytes(part.try_into().expect("8 bytes")),
            false => i32::from_ne_bytes(part.try_into().expect("4 bytes")).into(),
        };
        Ok(bytes.chunks(each).map(number).collect())
    }

    /// Copies on the default stream, and waits for it.
    fn copy(&self, to: *mut c_void, from: *const c_void, bytes: usize) {
        if bytes == 0 {
            return;
        }
        // SAFETY: both are alive until the stream has completed.
        unsafe {
            c::call(|error| {
                wb_device_copy(self.device, to, from, bytes as u64, ptr::null_mut(), error)
            })
            .expect("it is queued");
            c::call(|error| wb_device_stream_synchronize(self.device, ptr::null_mut(), error))
                .expect("it completes");
        }
    }

    /// The model's call: experts of the pass take the slots that were used longest ago.
    fn load(
        &mut self,
        layer: usize,
        ids: &[i64],
        pass: std::ops::Range<usize>,
        lane: Option<usize>,
    ) {
        self.clock += 1;
        let clock = self.clock;
        let mut wanted: Vec<usize> =
            pass.filter(|expert| ids.contains(&(*expert as i64))).collect();
        wanted.sort_unstable();
        let used = |slot: &mut Slot| {
            slot.used = clock;
            lane.into_iter().for_each(|lane| slot.held[lane] = clock);
        };
        wanted.retain(|expert| {
            let slot = self.model.iter_mut().find(|slot| slot.holds == Some((layer, *expert)));
            slot.map(used).is_none()
        });
        let held = |slot: &Slot| {
            let lanes = slot.held.iter().zip(&self.calls).enumerate();
            lanes.into_iter().any(|(at, (held, last))| Some(at) != lane && held == last)
        };
        let in_use = &self.model[..self.slots];
        let mut free: Vec<usize> = (0..in_use.len())
            .filter(|at| in_use[*at].used != clock && !held(&in_use[*at]))
            .collect();
        free.sort_by_key(|at| (in_use[*at].used, *at));
        free.truncate(wanted.len());
        free.sort_unstable();
        for (at, expert) in free.into_iter().zip(wanted) {
            self.model[at].holds = Some((layer, expert));
            used(&mut self.model[at]);
        }
        lane.into_iter().for_each(|lane| self.calls[lane] = clock);
    }

    /// Checks that each slot holds what the model says, in both tensors.
    fn check(&self) {
        for (tensor, each) in EXPERT.iter().enumerate() {
            // SAFETY: a struct of the interface; the cache is alive.
            let start = unsafe {
                let mut info: wb_expert_slots_info = c::sized();
                c::call(|error| {
                    wb_expert_cache_get_slots_info(self.cache, tensor as u64, &raw mut info, error)
                })
                .expect("it has an info");
                info.device_address
            };
            for (at, slot) in self.model.iter().enumerate() {
                let Some((layer, expert)) = slot.holds else { continue };
                let mut found = vec![0; *each];
                self.copy(found.as_mut_ptr().cast(), start.wrapping_byte_add(at * each), *each);
                let value = self.values[layer][expert];
                assert!(
                    found.iter().all(|byte| *byte == value),
                    "slot {at}: {found:?}, not {value}"
                );
            }
        }
    }

    fn end(self) {
        // SAFETY: the handles are alive, and not used again. The cache outlives its buffers' handles.
        unsafe {
            self.buffers.iter().flatten().for_each(|buffer| wb_buffer_release(*buffer));
            wb_expert_cache_release(self.cache);
            if !self.numbers.is_null() {
                c::call(|error| wb_device_free(self.device, self.numbers, error))
                    .expect("it is allocated");
            }
        }
        c::check_nothing_left(self.device);
    }
}
