//! Plans: arbitrary parameters, ties, budgets, selectors, transfer modes, quantization, compression and fixed
//! addresses, and the promises that every plan keeps.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use serde_json::Value;
use weighbridge::capi::device::WB_TRISTATE_ON;
use weighbridge::capi::parameter::*;
use weighbridge::capi::plan::*;
use weighbridge::capi::quantizer::wb_quantize_options;
use weighbridge::capi::view::wb_layout;
use weighbridge::status::*;
use weighbridge::tensor::dtype::*;

use crate::c;
use crate::oracle::{self, DTYPE_BYTES, is_glob, segments_match};

const PAGE: u64 = 4096;
/// A `wb_budget_kind` that the library does not know.
const UNKNOWN_KIND: wb_budget_kind = 3;

/// A parameter of a case.
struct Parameter {
    name: CString,
    group: CString,
    dtype: wb_dtype,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    offset: u64,
    source: u64,
    storage_id: u64,
    access_pattern: i32,
    placement: (wb_placement, wb_transfer_mode),
}

/// The arguments of a plan.
struct Case {
    parameters: Vec<Parameter>,
    select: Vec<CString>,
    exclude: Vec<CString>,
    quantize_select: Vec<CString>,
    compress_select: Vec<CString>,
    quantize: Option<wb_quantize_options>,
    options: wb_plan_options,
    views: bool,
}

/// Decodes parameters and options, and plans them.
pub fn run(data: &[u8]) {
    let Ok(case) = read(&mut Unstructured::new(data)) else { return };
    let layouts: Vec<wb_layout> = case.parameters.iter().map(layout).collect();
    let parameters: Vec<wb_parameter> =
        case.parameters.iter().zip(&layouts).map(|(one, layout)| parameter(one, layout)).collect();
    let [select, exclude, quantize_select, compress_select] =
        [&case.select, &case.exclude, &case.quantize_select, &case.compress_select]
            .map(|texts| pointers(texts));
    let options = wb_plan_options {
        select: select.as_ptr(),
        select_count: select.len() as u32,
        exclude: exclude.as_ptr(),
        exclude_count: exclude.len() as u32,
        quantize: case.quantize.as_ref().map_or(ptr::null(), ptr::from_ref),
        quantize_select: quantize_select.as_ptr(),
        quantize_select_count: quantize_select.len() as u32,
        compress_select: compress_select.as_ptr(),
        compress_select_count: compress_select.len() as u32,
        ..case.options
    };
    // SAFETY: all pointers are valid but the sources, which a plan reads only if it compresses them.
    let made = c::make(|plan, error| unsafe {
        let (device, count) = (c::host(case.views), parameters.len() as u64);
        wb_plan_new(device, parameters.as_ptr(), count, &raw const options, plan, error)
    });
    match made {
        Ok(plan) => {
            check(&case, plan);
            // The JSON takes longer than all other checks.
            if data.len().is_multiple_of(8) {
                check_json(plan);
            }
            // SAFETY: this function owns the plan.
            unsafe { wb_plan_release(plan) };
        }
        Err(refused) => {
            let known = [
                WB_ERR_BUDGET,
                WB_ERR_INVALID_ARGUMENT,
                WB_ERR_EVERYTHING_FITS,
                WB_ERR_NOTHING_OFFLOADED,
                WB_ERR_NOT_MAPPED,
                WB_ERR_NOT_SUPPORTED,
                WB_ERR_OUT_OF_RANGE,
                WB_ERR_OVERFLOW,
                WB_ERR_SELECTOR,
                WB_ERR_SLOTS_BUDGET,
            ];
            assert!(known.contains(&refused.status), "{refused:?}");
        }
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

fn layout(one: &Parameter) -> wb_layout {
    c::layout(one.dtype, &one.shape, one.strides.as_deref(), one.offset)
}

fn parameter(one: &Parameter, layout: &wb_layout) -> wb_parameter {
    wb_parameter {
        access_pattern: one.access_pattern,
        name: one.name.as_ptr(),
        group: one.group.as_ptr(),
        layout: ptr::from_ref(layout),
        source: one.source as *const c_void,
        storage_id: one.storage_id,
        transfer_mode: one.placement.1,
        placement: one.placement.0,
        // SAFETY: a struct of the interface.
        ..unsafe { c::sized() }
    }
}

/// A name of a few segments, so that selectors may match it.
fn name(u: &mut Unstructured<'_>) -> Result<CString> {
    const SEGMENTS: [&str; 6] = ["model", "layers", "0", "1", "w", "w_scale"];
    if u.ratio(1, 32)? {
        return Ok(c::text(u.bytes(usize::from(u.len() > 8) * 8)?));
    }
    let mut segments = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        segments.push(*u.choose(&SEGMENTS)?);
    }
    Ok(c::text(segments.join(".").as_bytes()))
}

fn selectors(u: &mut Unstructured<'_>) -> Result<Vec<CString>> {
    let count = if u.ratio(1, 2)? { 0 } else { u.int_in_range(1..=2)? };
    let mut texts = Vec::new();
    for _ in 0..count {
        let text = name(u)?;
        let glob = [b"*", text.as_bytes(), b"?"].concat();
        texts.push(if u.ratio(1, 4)? { c::text(&glob) } else { text });
    }
    Ok(texts)
}

/// A number of bytes, usually small.
fn bytes(u: &mut Unstructured<'_>) -> Result<u64> {
    match u.int_in_range(0..=15)? {
        0 => u.arbitrary(),
        1 => Ok(0),
        2 => Ok(1 << u.int_in_range(0..=63)?),
        _ => Ok(u64::from(u.arbitrary::<u16>()?) * 2),
    }
}

fn read(u: &mut Unstructured<'_>) -> Result<Case> {
    let wild = u.ratio(1, 6)?;
    let mut parameters = Vec::new();
    for _ in 0..u.int_in_range(0..=10)? {
        parameters.push(read_parameter(u, wild)?);
    }
    let quantize = u.ratio(1, 4)?;
    let quantize = if quantize { Some(read_quantize(u)?) } else { None };
    // 0 and 1 are invalid: no budget, and an unknown kind, which takes two numbers from the bytes.
    let (budget_kind, budget_bytes) = match u.int_in_range(0..=15)? {
        0 => (0, 0),
        1 => {
            let _ignored = (bytes(u)?, bytes(u)?);
            (UNKNOWN_KIND, 0)
        }
        2..=8 => (WB_BUDGET_DEVICE_BYTES, bytes(u)?),
        _ => (WB_BUDGET_OFFLOAD_BYTES, bytes(u)?),
    };
    // SAFETY: a struct of the interface.
    let mut options = wb_plan_options {
        depth: if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=4)? },
        budget_kind,
        budget_bytes,
        // 0 is the default.
        slot_bytes: if u.ratio(1, 3)? { bytes(u)?.max(1) } else { 0 },
        transfer_mode: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=3)? },
        order: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=2)? },
        allow: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=7)? },
        // 3 is unknown.
        host_store: if u.ratio(1, 64)? { 3 } else { 0 },
        link_bytes_per_second: if u.ratio(1, 8)? { u.arbitrary()? } else { 0.0 },
        ..unsafe { c::sized() }
    };
    let [select, exclude, quantize_select] = [selectors(u)?, selectors(u)?, selectors(u)?];
    let views = u.arbitrary()?;
    // Nothing of these for an input that ends before.
    options.compress = if u.ratio(1, 2)? { WB_COMPRESS_OFF } else { u.int_in_range(1..=3)? };
    let compress_select = if options.compress == WB_COMPRESS_OFF {
        Vec::new()
    } else if u.arbitrary()? {
        vec![c"*".into()]
    } else {
        selectors(u)?
    };
    if options.compress != WB_COMPRESS_OFF {
        parameters.iter_mut().for_each(|one| one.source = sampled(one));
    }
    options.fixed_addresses = if u.ratio(3, 4)? { 0 } else { u.int_in_range(0..=3)? };
    options.compute_bytes_per_second = if u.ratio(7, 8)? { 0.0 } else { u.arbitrary()? };
    Ok(Case {
        parameters,
        select,
        exclude,
        quantize_select,
        compress_select,
        quantize,
        options,
        views,
    })
}

/// Bytes of sources that a plan reads samples of: numbers that become smaller, and zeros.
const SAMPLED: usize = 4 << 20;

/// The address of the parameter's source, if the plan reads samples of it: its own place among bytes that can
/// be read, or none if they are too few.
fn sampled(one: &Parameter) -> u64 {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let number = |at: usize| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8 & 0x9f;
        (0..SAMPLED).map(|at| if at >> 16 & 1 == 0 { number(at) } else { 0 }).collect()
    });
    if one.source == 0 || !(1..=DTYPE_BYTES.len() as i32).contains(&one.dtype) {
        return 0;
    }
    let Some((before, span)) = extent(one) else { return 0 };
    let start = (one.source % (SAMPLED as u64)).max(before);
    let end = one.offset.checked_add(start - before).and_then(|first| first.checked_add(span));
    match end {
        Some(end) if end <= SAMPLED as u64 => BYTES.as_ptr() as u64 + start,
        _ => 0,
    }
}

fn read_parameter(u: &mut Unstructured<'_>, wild: bool) -> Result<Parameter> {
    const GROUPS: [&CStr; 5] = [c"0", c"1", c"2", c"3", c"all"];
    let dims = u.int_in_range(0..=4usize)?;
    let mut number = |most: i64| -> Result<i64> {
        match wild && u.ratio(1, 4)? {
            true if u.arbitrary()? => u.arbitrary(),
            true => Ok(1 << u.int_in_range(0..=62)?),
            false => u.int_in_range(0..=most),
        }
    };
    let shape = (0..dims).map(|_| number(40)).collect::<Result<Vec<_>>>()?;
    let strides = (0..dims).map(|_| number(60)).collect::<Result<Vec<_>>>()?;
    Ok(Parameter {
        name: name(u)?,
        group: if u.ratio(1, 32)? { name(u)? } else { (*u.choose(&GROUPS)?).into() },
        dtype: if u.ratio(1, 64)? { u.arbitrary()? } else { u.int_in_range(1..=18)? },
        shape,
        strides: u.ratio(1, 4)?.then_some(strides),
        offset: if u.ratio(1, 8)? { bytes(u)? } else { 0 },
        source: if u.ratio(1, 3)? { (1 << 20) + bytes(u)? % (1 << 40) } else { 0 },
        storage_id: if u.ratio(1, 4)? { u.int_in_range(0..=3)? } else { 0 },
        access_pattern: if u.ratio(1, 64)? { u.arbitrary()? } else { u.int_in_range(0..=1)? },
        placement: c::placement(match u.ratio(1, 64)? {
            true => u.arbitrary()?,
            false => u.int_in_range(-1..=3)?,
        }),
    })
}

fn read_quantize(u: &mut Unstructured<'_>) -> Result<wb_quantize_options> {
    // SAFETY: a struct of the interface.
    Ok(wb_quantize_options {
        format: *u.choose(&[WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E5M2, WB_DTYPE_F32])?,
        scale_dtype: *u.choose(&[WB_DTYPE_F32, WB_DTYPE_F8_E8M0])?,
        use_given_scales: i32::from(u.ratio(1, 32)?),
        block_rows: if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=20)? },
        block_cols: if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=20)? },
        ..unsafe { c::sized() }
    })
}

/// The infos of a plan.
struct Infos {
    plan: wb_plan_info,
    parameters: Vec<wb_plan_parameter_info>,
    groups: Vec<wb_plan_group_info>,
    names: Vec<String>,
}

fn infos(plan: *const wb_plan) -> Infos {
    // SAFETY: the plan is alive, and so are its strings.
    unsafe {
        let mut info: wb_plan_info = c::sized();
        c::call(|error| wb_plan_get_info(plan, &raw mut info, error)).expect("it has an info");
        let mut parameters = Vec::new();
        let mut names = Vec::new();
        for index in 0..info.parameters {
            let mut one: wb_plan_parameter_info = c::sized();
            c::call(|error| wb_plan_get_parameter_info(plan, index, &raw mut one, error))
                .expect("the index is valid");
            assert!(!CStr::from_ptr(one.reason).is_empty());
            let mut found = u64::MAX;
            c::call(|error| wb_plan_find_parameter(plan, one.name, &raw mut found, error))
                .expect("it is found");
            assert_eq!(found, index);
            names.push(CStr::from_ptr(one.name).to_str().expect("names are UTF-8").to_owned());
            parameters.push(one);
        }
        let mut groups = Vec::new();
        for index in 0..info.groups {
            let mut one: wb_plan_group_info = c::sized();
            c::call(|error| wb_plan_get_group_info(plan, index, &raw mut one, error))
                .expect("the index is valid");
            groups.push(one);
        }
        for index in 0..info.warnings {
            let mut warning = ptr::null();
            c::call(|error| wb_plan_get_warning(plan, index, &raw mut warning, error))
                .expect("the index is valid");
            assert!(!CStr::from_ptr(warning).is_empty());
        }
        Infos { plan: info, parameters, groups, names }
    }
}

fn check(case: &Case, plan: *const wb_plan) {
    let infos = infos(plan);
    check_budgets(&case.options, &infos.plan);
    check_sums(&infos);
    check_compressed(case, &infos);
    if case.quantize.is_none() {
        check_placement(case, &infos);
        let payload = payload(&case.parameters);
        assert_eq!(u128::from(infos.plan.payload_bytes), payload, "each byte is counted once");
    }
}

fn check_budgets(options: &wb_plan_options, info: &wb_plan_info) {
    let by_device = options.budget_kind == WB_BUDGET_DEVICE_BYTES;
    if !by_device {
        assert!(info.arena_bytes <= options.budget_bytes, "the host's budget is a limit");
        assert!(info.arena_bytes.is_multiple_of(PAGE));
        // Pieces are not in the arena.
        let fixed = options.fixed_addresses == WB_TRISTATE_ON;
        assert!(fixed || info.arena_bytes >= info.offloaded_bytes);
    } else {
        let taken = [info.resident_bytes, info.slot_bytes, info.device_encoded_bytes];
        let taken: u128 = taken.into_iter().map(u128::from).sum();
        assert!(taken <= u128::from(options.budget_bytes), "the device's budget is a limit");
    }
    assert!(options.slot_bytes == 0 || info.ring_bytes <= options.slot_bytes);
    assert!(info.ring_bytes <= info.slot_bytes);
    let (nothing, fits) = (WB_ALLOW_NOTHING_OFFLOADED, WB_ALLOW_EVERYTHING_FITS);
    let allowed = if by_device { nothing | fits } else { nothing };
    assert!(info.offloaded_bytes > 0 || options.allow & allowed != 0, "offloading nothing fails");
}

fn check_sums(infos: &Infos) {
    let Infos { plan: info, parameters, groups, .. } = infos;
    let sum = |bytes: fn(&wb_plan_group_info) -> u64| groups.iter().map(bytes).sum::<u64>();
    let (offloaded, resident) =
        (sum(|group| group.offloaded_bytes), sum(|group| group.resident_bytes));
    assert_eq!(offloaded, info.offloaded_bytes);
    assert_eq!(offloaded + resident, info.payload_bytes);
    assert!(info.resident_bytes >= resident && info.resident_bytes.is_multiple_of(256));
    for (index, one) in parameters.iter().enumerate() {
        assert!(one.group < info.groups && one.tied_to <= index as u64);
        let first = &parameters[one.tied_to as usize];
        let kept = |one: &wb_plan_parameter_info| (one.placement, one.transfer_mode);
        assert_eq!(kept(first), kept(one), "tied parameters are placed together");
        assert_eq!(first.tied_to, one.tied_to);
        match one.placement {
            WB_PLACEMENT_RESIDENT => assert_eq!(one.transfer_mode, WB_TRANSFER_MODE_AUTO),
            WB_PLACEMENT_OFFLOADED => assert!((1..=3).contains(&one.transfer_mode)),
            other => panic!("placement {other}"),
        }
    }
}

/// What is compressed is offloaded and copied, was asked for, and becomes smaller.
fn check_compressed(case: &Case, infos: &Infos) {
    let Infos { plan: info, parameters, .. } = infos;
    let own = |at: &usize| parameters[*at].tied_to == *at as u64;
    let firsts = || (0..parameters.len()).filter(own).map(|at| &parameters[at]);
    assert_eq!(firsts().map(|one| one.encoded_bytes).sum::<u64>(), info.encoded_bytes);
    let kept: u64 = firsts().map(|one| one.device_encoded_bytes).sum();
    assert_eq!(kept, info.device_encoded_bytes);
    assert!(info.decoded_bytes <= info.offloaded_bytes && info.encoded_bytes <= info.decoded_bytes);
    assert!(info.device_decoded_bytes <= info.decoded_bytes);
    let is_asked = case.options.compress != WB_COMPRESS_OFF;
    for one in parameters.iter().filter(|one| one.encoded_bytes > 0) {
        assert!(is_asked && one.placement == WB_PLACEMENT_OFFLOADED);
        assert_ne!(one.transfer_mode, WB_TRANSFER_MODE_ZERO_COPY);
    }
}

fn check_json(plan: *const wb_plan) {
    let Infos { plan: info, names, parameters, .. } = infos(plan);
    let mut json = ptr::null();
    // SAFETY: the plan is alive, and so is its string.
    let json: Value = unsafe {
        c::call(|error| wb_plan_to_json(plan, &raw mut json, error)).expect("it is formatted");
        serde_json::from_slice(CStr::from_ptr(json).to_bytes()).expect("it is JSON")
    };
    let totals = &json["totals"];
    for (name, bytes) in [
        ("payload_bytes", info.payload_bytes),
        ("offloaded_bytes", info.offloaded_bytes),
        ("arena_bytes", info.arena_bytes),
        ("resident_bytes", info.resident_bytes),
        ("slot_bytes", info.slot_bytes),
        ("ring_bytes", info.ring_bytes),
        ("step_bytes", info.step_bytes),
        ("view_bytes", info.view_bytes),
    ] {
        assert_eq!(totals[name].as_u64(), Some(bytes), "{name}");
    }
    let listed = json["parameters"].as_array().expect("a list");
    assert_eq!(listed.len(), names.len());
    for ((entry, name), planned) in listed.iter().zip(&names).zip(&parameters) {
        assert_eq!(entry["name"].as_str(), Some(name.as_str()));
        let resident = planned.placement == WB_PLACEMENT_RESIDENT;
        let placement = if resident { "resident" } else { "offloaded" };
        assert_eq!(entry["placement"].as_str(), Some(placement));
    }
}

/// Every parameter is placed once, a parameter that may not be offloaded is resident, and every selector
/// matches something.
fn check_placement(case: &Case, infos: &Infos) {
    let given: Vec<&str> = case
        .parameters
        .iter()
        .map(|parameter| parameter.name.to_str().expect("names that are not UTF-8 are refused"))
        .collect();
    assert_eq!(given, infos.names);
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len(), "names are unique");
    let texts = |selectors: &[CString]| -> Vec<String> {
        selectors.iter().map(|text| text.to_str().expect("as names").to_owned()).collect()
    };
    let (select, exclude) = (texts(&case.select), texts(&case.exclude));
    if case.options.allow & WB_ALLOW_UNMATCHED_SELECTOR == 0 {
        for text in select.iter().chain(&exclude).filter(|text| !is_glob(text)) {
            assert!(
                given.iter().any(|name| segments_match(text, name)),
                "{text:?} matches nothing"
            );
        }
    }
    let matches =
        |texts: &[String], name: &str| texts.iter().any(|text| segments_match(text, name));
    let plain = !select.iter().any(|text| is_glob(text));
    for ((one, name), planned) in case.parameters.iter().zip(&given).zip(&infos.parameters) {
        let selected = select.is_empty() || !plain || matches(&select, name);
        let resident = one.placement.0 == WB_PLACEMENT_RESIDENT;
        if resident || !selected || matches(&exclude, name) {
            assert_eq!(planned.placement, WB_PLACEMENT_RESIDENT, "{name:?}");
        }
        assert_eq!(Some(planned.span_bytes), extent(one).map(|(_, span)| span));
    }
}

fn extent(one: &Parameter) -> Option<(u64, u64)> {
    let bytes = DTYPE_BYTES[one.dtype as usize - 1];
    oracle::extent(bytes, &one.shape, one.strides.as_deref())
}

/// Bytes of all parameters. Addresses that several parameters cover, and storage_ids, are counted once.
fn payload(parameters: &[Parameter]) -> u128 {
    let (mut ranges, mut numbered, mut all) = (Vec::new(), HashMap::new(), 0u128);
    for one in parameters {
        let (before, span) = extent(one).expect("planned layouts are valid");
        match (one.source, one.storage_id) {
            (0, 0) => all += u128::from(span),
            (0, number) if span > 0 => drop(numbered.insert(number, span)),
            (source, _) if span > 0 => ranges.push((source + one.offset - before, span)),
            _ => {}
        }
    }
    let mut starts: BTreeMap<u64, u64> = BTreeMap::new();
    for (start, span) in ranges {
        let end = starts.entry(start).or_default();
        *end = (*end).max(start + span);
    }
    let mut counted_to = 0;
    for (start, end) in starts {
        all += u128::from(end.saturating_sub(start.max(counted_to)));
        counted_to = counted_to.max(end);
    }
    all + numbered.into_values().map(u128::from).sum::<u128>()
}
