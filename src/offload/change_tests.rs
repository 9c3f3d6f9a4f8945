//! Changes in any order: every parameter keeps its own bytes, and the sums are those of its memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::device::backend::Location;
use crate::device::device::{Device, DeviceOptions};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::backing::{Backing, HostUnit, ParameterState};
use crate::offload::device_plan::DevicePlan;
use crate::offload::intervals::covered_bytes;
use crate::offload::offloader::Offloader;
use crate::offload::slot_sums::{SlotSums, UnitChange};
use crate::offload::state::OffloadState;
use crate::offload::tests::{DEFAULT, parameter};
use crate::os::sync::Arc;
use crate::os::{bytes, page};
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::plan::{Budget, PlanOptions};
use crate::tensor::dtype::{Dtype, WB_DTYPE_U8};
use crate::tensor::layout::Layout;

const GROUPS: usize = 3;

fn layout(size: usize) -> Layout {
    Layout::new(Dtype::from_code(WB_DTYPE_U8).unwrap(), &[size as i64], None).unwrap()
}

/// A parameter of a group, with bytes that are all `value`.
struct Given {
    parameter: Parameter,
    source: Arc<Buffer>,
}

fn given(device: &Arc<Device>, name: &str, group: usize, size: usize, value: u8) -> Given {
    let mut parameter = parameter(name, [1, 1]);
    parameter.group = format!("layers.{}", group % GROUPS).as_str().into();
    parameter.layout = layout(size);
    let source = Buffer::alloc(device, size, &BufferOptions::default(), &mut None).unwrap();
    bytes::fill(source.data(), value);
    Given { parameter, source }
}

fn location(given: &Given) -> Option<Location> {
    (given.source.data().bytes() > 0).then(|| Location::host(given.source.data()))
}

fn commit(device: &Arc<Device>, budget: Budget, given: &[Given]) -> Arc<Offloader> {
    let mut options = PlanOptions::new(budget);
    options.transfer_mode = TransferMode::Prefetch;
    options.allowed.everything_fits = true;
    let parameters = given.iter().map(|given| given.parameter.clone()).collect();
    let plan = DevicePlan::new(device, parameters, options).unwrap();
    let sources: Vec<_> = given.iter().map(location).collect();
    Offloader::commit(plan, &sources, &[], DEFAULT, &BufferOptions::default(), &mut None).unwrap()
}

/// Checks the bytes and the place of every parameter, and the sums.
fn check(offloader: &Offloader, expected: &BTreeMap<String, (usize, u8)>) {
    let mut places = Vec::new();
    let state = offloader.state().unwrap();
    assert_eq!(state.parameters.len(), expected.len());
    for (name, (size, value)) in expected {
        let at = state.find(name).unwrap();
        assert_eq!(state.parameters[at].layout.span_bytes(), *size as u64, "{name}");
        let Some(place) = state.own_location(at) else {
            assert_eq!(*size, 0, "{name} has no bytes");
            continue;
        };
        if *size > 0 {
            assert!(bytes::is_filled(place.span, *value), "{name} has other bytes");
            places.push((place.span.start(), place.span.end()));
        }
    }
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{places:?}");
    let page = page::page_bytes();
    let pages = |buffer: &Arc<Buffer>| buffer.data().bytes().next_multiple_of(page) as u64;
    assert_eq!(
        state.host.buffers().counted_bytes(),
        state.host.buffers().iter().map(pages).sum::<u64>()
    );
    let mapped = state.host.buffers().iter().map(|buffer| buffer.mapped_bytes()).sum::<u64>();
    assert_eq!(state.host.buffers().mapped_bytes(), mapped);
    let mut sums = SlotSums::new(GROUPS);
    for (unit, after) in state.host.units().iter().zip(state.host.extents(None)) {
        let HostUnit { transfer_mode, groups, .. } = unit;
        sums.apply(UnitChange { transfer_mode: *transfer_mode, groups, before: 0, after });
    }
    (1..=GROUPS).for_each(|depth| {
        assert_eq!(state.host.slot_sums().after(depth, &[]), sums.after(depth, &[]))
    });
    assert_eq!(state.parameters.resident_memory_bytes(None), device_bytes(&state));
    check_slots(&state);
}

/// Every unit has a slot for all of its bytes, of which those that are in slots at the same time share
/// none.
fn check_slots(state: &OffloadState) {
    let (depth, len) = (state.depth, state.ring.len());
    let position = |group: &usize| state.ring.iter().position(|other| other == group).unwrap();
    let are_near = |one: &HostUnit, other: &HostUnit| {
        one.groups.iter().map(position).any(|a| {
            other.groups.iter().map(position).any(|b| {
                let apart = a.abs_diff(b);
                apart < depth || state.wraps && len - apart < depth
            })
        })
    };
    let mut slots: Vec<(&HostUnit, u64, u64)> = Vec::new();
    for (unit, bytes) in state.host.units().iter().zip(state.host.extents(None)) {
        if bytes == 0 {
            continue;
        }
        let start = unit.slot_offset.unwrap();
        assert!(start + bytes <= state.held_bytes().slot_bytes, "a slot is over the end");
        for (other, from, to) in &slots {
            let apart = start + bytes <= *from || *to <= start;
            assert!(apart || !are_near(unit, other), "{start}, {bytes} bytes: {from} to {to}");
        }
        slots.push((unit, start, start + bytes));
    }
}

/// Device memory of resident parameters, computed again from all of them.
fn device_bytes(state: &OffloadState) -> u64 {
    let range = |parameter: &ParameterState| match &parameter.backing {
        Backing::Owned { memory, .. } => {
            Some((memory.span().start() as u64, memory.span().end() as u64))
        }
        _ => None,
    };
    covered_bytes(state.parameters.iter().filter_map(range).collect())
}

fn commit_within(
    device: &Arc<Device>,
    budget: u64,
    depth: u32,
    given: &[Given],
) -> Option<Arc<Offloader>> {
    let mut options = PlanOptions::new(Budget::DeviceBytes(budget));
    options.depth = depth;
    options.transfer_mode = TransferMode::Prefetch;
    let parameters = given.iter().map(|given| given.parameter.clone()).collect();
    let plan = DevicePlan::new(device, parameters, options).ok()?;
    let sources: Vec<_> = given.iter().map(location).collect();
    Offloader::commit(plan, &sources, &[], DEFAULT, &BufferOptions::default(), &mut None).ok()
}

/// A parameter's size before and after, and what happens to it.
fn changes() -> impl Strategy<Value = Vec<(u8, usize, usize, u8)>> {
    let size = prop_oneof![0usize..3, 200usize..300, 1usize..9000];
    prop::collection::vec((0u8..8, 0usize..12, size, 1u8..255), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_parameter_keeps_its_bytes(
        first in prop::collection::vec(1usize..6000, GROUPS..8),
        changes in changes(),
    ) {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let name = |at: usize| format!("layers.{}.w{at}", at % GROUPS);
        let mut expected = BTreeMap::new();
        let all: Vec<_> = first.iter().enumerate().map(|(at, size)| {
            expected.insert(name(at), (*size, at as u8 + 1));
            given(&device, &name(at), at, *size, at as u8 + 1)
        }).collect();
        let offloader = commit(&device, Budget::OffloadBytes(1 << 30), &all);
        check(&offloader, &expected);
        for (kind, at, size, value) in changes {
            let name = name(at);
            let new = given(&device, &name, at, size, value);
            match (kind, expected.contains_key(&name)) {
                (0, _) => offloader.compact(DEFAULT).unwrap(),
                (1, true) => {
                    offloader.remove(&name, DEFAULT).unwrap();
                    expected.remove(&name);
                }
                (2, _) => {
                    // All are given again, each third one in another size.
                    let mut now = Vec::new();
                    let known = expected.clone();
                    for (index, (name, (old, _))) in known.into_iter().enumerate() {
                        let size = if index % 3 == 0 { size } else { old };
                        let group = name.as_bytes()["layers.".len()] - b'0';
                        now.push(given(&device, &name, group.into(), size, value));
                        expected.insert(name, (size, value));
                    }
                    let list = now.iter().map(|one| (one.parameter.clone(), location(one)));
                    offloader.reconcile(list.collect(), DEFAULT).unwrap();
                }
                (_, true) => {
                    let source = Location::host(new.source.data());
                    offloader.replace(&name, layout(size), source, DEFAULT).unwrap();
                    expected.insert(name, (size, value));
                }
                (_, false) if size > 0 => {
                    let source = location(&new);
                    offloader.add(new.parameter, source, DEFAULT).unwrap();
                    expected.insert(name, (size, value));
                }
                (_, false) => {}
            }
            check(&offloader, &expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A list of changes has the outcome that the same changes have one by one, and no change takes
    /// more device memory than the budget.
    #[test]
    fn a_list_within_a_device_budget_changes_what_single_calls_change(
        first in prop::collection::vec((1usize..3000, prop::bool::weighted(0.2)), GROUPS..9),
        more in 0u64..12000,
        depth in 0u32..4,
        lists in prop::collection::vec(prop::collection::vec((0usize..9, 1usize..6000), 1..9), 1..4),
    ) {
        let name = |at: usize| format!("layers.{}.w{at}", at % GROUPS);
        let both: Vec<_> = (0..2).map(|_| Device::open("host", DeviceOptions::default()).unwrap()).collect();
        let all = |device| -> Vec<_> {
            let given = |(at, (size, resident)): (usize, &(usize, bool))| {
                let mut given = given(device, &name(at), at, *size, at as u8 + 1);
                given.parameter.resident = *resident;
                given
            };
            first.iter().enumerate().map(given).collect()
        };
        let rounded = |size: usize| (size as u64).next_multiple_of(256);
        let resident = first.iter().filter(|(_, resident)| *resident).map(|(size, _)| rounded(*size));
        let budget = resident.sum::<u64>() + 3000 + more;
        let commit = |device| commit_within(device, budget, depth, &all(device));
        let (Some(list), Some(single)) = (commit(&both[0]), commit(&both[1])) else { return Ok(()) };
        let mut sizes: Vec<usize> = first.iter().map(|(size, _)| *size).collect();
        for (turn, changes) in lists.into_iter().enumerate() {
            let value = 100 + turn as u8;
            let mut wanted = sizes.clone();
            for (at, size) in changes.into_iter().filter(|(at, _)| *at < first.len()) {
                wanted[at] = size;
            }
            let now: Vec<_> = (0..wanted.len()).map(|at| {
                let value = if wanted[at] == sizes[at] { at as u8 + 1 } else { value };
                given(&both[0], &name(at), at, wanted[at], value)
            }).collect();
            let sources = now.iter().map(|one| (one.parameter.clone(), location(one)));
            let in_list = list.reconcile(sources.collect(), DEFAULT).map(drop);
            let mut one_by_one = Ok(());
            for (at, one) in now.iter().enumerate() {
                let source = Location::host(one.source.data());
                one_by_one = single.replace(&name(at), layout(wanted[at]), source, DEFAULT);
                if one_by_one.is_err() {
                    break;
                }
                sizes[at] = wanted[at];
            }
            for (device, offloader) in both.iter().zip([&list, &single]) {
                let used = device.counters().snapshot().device_bytes;
                prop_assert!(used <= budget, "{} of {}", used, budget);
                let state = offloader.state().unwrap();
                prop_assert_eq!(state.parameters.resident_memory_bytes(None), device_bytes(&state));
            }
            // A single call may already have taken deeper slots where a list takes what it must.
            prop_assert!(one_by_one.is_err() || in_list.is_ok(), "{:?}", in_list);
            if first.iter().any(|(_, resident)| *resident) && one_by_one.is_err() {
                return Ok(());
            }
            prop_assert_eq!(in_list.map_err(|error| error.status), one_by_one.map_err(|error| error.status));
            single.compact(DEFAULT).unwrap();
            list.compact(DEFAULT).unwrap();
            let (of_list, of_single) = (list.stats().unwrap(), single.stats().unwrap());
            prop_assert_eq!(of_list.offloaded_bytes, of_single.offloaded_bytes);
            prop_assert_eq!(of_list.resident_bytes, of_single.resident_bytes);
            for offloader in [&list, &single] {
                let state = offloader.state().unwrap();
                for (at, size) in sizes.iter().enumerate() {
                    let at = state.find(&name(at)).unwrap();
                    prop_assert_eq!(state.parameters[at].layout.span_bytes(), *size as u64);
                }
            }
        }
    }
}

/// Many additions share buffers, which are larger than they must be by an eighth of all; with a
/// budget none is so large that another parameter does not fit.
#[test]
fn many_additions_need_few_buffers() {
    const SIZE: usize = 4096;
    for budget in [1 << 30, 151 * SIZE as u64] {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let first = given(&device, "first", 0, SIZE, 1);
        let offloader = commit(&device, Budget::OffloadBytes(budget), &[first]);
        let mut expected = BTreeMap::from([("first".to_owned(), (SIZE, 1))]);
        for at in 0..150 {
            let name = format!("added{at}");
            let given = given(&device, &name, 0, SIZE, 7);
            offloader.add(given.parameter.clone(), location(&given), DEFAULT).unwrap();
            expected.insert(name, (SIZE, 7));
        }
        check(&offloader, &expected);
        let stats = offloader.stats().unwrap();
        assert_eq!(stats.resident_bytes, 0);
        let asked = stats.asked_bytes;
        assert!(asked <= budget && asked <= 151 * SIZE as u64 * 9 / 8, "{asked}");
        let buffers = offloader.state().unwrap().host.buffers().count();
        assert!(buffers <= 40, "{buffers}");
        // The buffers of removed ones are freed.
        for at in 0..150 {
            offloader.remove(&format!("added{at}"), DEFAULT).unwrap();
        }
        assert_eq!(offloader.stats().unwrap().asked_bytes, SIZE as u64);
    }
}
