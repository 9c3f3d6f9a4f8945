//! Plans: arbitrary parameters, ties, budgets, selectors, carriers and quantization, and the promises
//! that a plan keeps whatever was asked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, c_char};
use std::ptr;

use arbitrary::{Result, Unstructured};
use serde_json::Value;
use weighbridge::capi::parameter::*;
use weighbridge::capi::plan::*;
use weighbridge::capi::quantizer::wb_quantize_options;
use weighbridge::capi::view::wb_layout;
use weighbridge::status::*;
use weighbridge::tensor::dtype::*;

use crate::c;
use crate::oracle::{self, DTYPE_BYTES, is_glob, segments_match};

const PAGE: u64 = 4096;

/// A parameter as the case has it.
struct Parameter {
    name: CString,
    group: CString,
    dtype: wb_dtype,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    offset: u64,
    source: u64,
    storage: u64,
    access: i32,
    carrier: i32,
}

/// All that a plan is made of.
struct Case {
    parameters: Vec<Parameter>,
    select: Vec<CString>,
    exclude: Vec<CString>,
    quantize_select: Vec<CString>,
    quantize: Option<wb_quantize_options>,
    options: wb_plan_options,
    views: bool,
}

/// Bytes are read as parameters and options, and planned.
pub fn run(data: &[u8]) {
    let Ok(case) = read(&mut Unstructured::new(data)) else { return };
    let layouts: Vec<wb_layout> = case.parameters.iter().map(layout).collect();
    let given: Vec<wb_parameter> =
        case.parameters.iter().zip(&layouts).map(|(one, layout)| parameter(one, layout)).collect();
    let [select, exclude, quantize_select] =
        [&case.select, &case.exclude, &case.quantize_select].map(|texts| pointers(texts));
    let options = wb_plan_options {
        select: select.as_ptr(),
        select_count: select.len() as u32,
        exclude: exclude.as_ptr(),
        exclude_count: exclude.len() as u32,
        quantize: case.quantize.as_ref().map_or(ptr::null(), ptr::from_ref),
        quantize_select: quantize_select.as_ptr(),
        quantize_count: quantize_select.len() as u32,
        ..case.options
    };
    // SAFETY: all pointers are valid; a plan reads no source.
    let made = c::make(|plan, error| unsafe {
        let (device, count) = (c::host(case.views), given.len() as u64);
        wb_plan_new(device, given.as_ptr(), count, &raw const options, plan, error)
    });
    match made {
        Ok(plan) => {
            check(&case, plan);
            // It takes longer than all the rest.
            if data.len().is_multiple_of(8) {
                check_json(plan);
            }
            // SAFETY: the plan is this function's own.
            unsafe { wb_plan_release(plan) };
        }
        Err(refused) => {
            let known = [
                WB_ERR_BUDGET,
                WB_ERR_INVALID_ARGUMENT,
                WB_ERR_EVERYTHING_FITS,
                WB_ERR_INVALID_ARGUMENT,
                WB_ERR_NOTHING_OFFLOADED,
                WB_ERR_NOT_MAPPED,
                WB_ERR_NOT_SUPPORTED,
                WB_ERR_OUT_OF_RANGE,
                WB_ERR_OVERFLOW,
                WB_ERR_INVALID_ARGUMENT,
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
        struct_size: size_of::<wb_parameter>() as u32,
        access: one.access,
        name: one.name.as_ptr(),
        group: one.group.as_ptr(),
        layout: ptr::from_ref(layout),
        source: one.source,
        storage: one.storage,
        carrier: one.carrier,
        reserved0: 0,
        reserved: [0; 2],
    }
}

/// A name of a few segments, so that selectors meet it.
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

/// A number of bytes, small for the most part.
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
    let budget = u.int_in_range(0..=15)?;
    let (offload_bytes, device_bytes) = match budget {
        0 => (WB_UNSET, WB_UNSET),
        1 => (bytes(u)?, bytes(u)?),
        2..=8 => (WB_UNSET, bytes(u)?),
        _ => (bytes(u)?, WB_UNSET),
    };
    // SAFETY: a struct of the interface.
    let options = wb_plan_options {
        depth: if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=4)? },
        offload_bytes,
        device_bytes,
        slot_bytes: if u.ratio(1, 3)? { bytes(u)? } else { WB_UNSET },
        carrier: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=3)? },
        order: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=2)? },
        allow: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=7)? },
        reserved0: u32::from(u.ratio(1, 64)?),
        link_bytes_per_second: if u.ratio(1, 8)? { u.arbitrary()? } else { 0.0 },
        ..unsafe { c::sized() }
    };
    Ok(Case {
        parameters,
        select: selectors(u)?,
        exclude: selectors(u)?,
        quantize_select: selectors(u)?,
        quantize,
        options,
        views: u.arbitrary()?,
    })
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
        storage: if u.ratio(1, 4)? { u.int_in_range(0..=3)? } else { 0 },
        access: if u.ratio(1, 64)? { u.arbitrary()? } else { u.int_in_range(0..=1)? },
        carrier: if u.ratio(1, 64)? { u.arbitrary()? } else { u.int_in_range(-1..=3)? },
    })
}

fn read_quantize(u: &mut Unstructured<'_>) -> Result<wb_quantize_options> {
    // SAFETY: a struct of the interface.
    Ok(wb_quantize_options {
        format: *u.choose(&[WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E5M2, WB_DTYPE_F32])?,
        scale_type: *u.choose(&[WB_DTYPE_F32, WB_DTYPE_F8_E8M0])?,
        given_scales: i32::from(u.ratio(1, 32)?),
        block_rows: if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=20)? },
        block_cols: if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=20)? },
        ..unsafe { c::sized() }
    })
}

/// What a plan says of itself.
struct Answers {
    info: wb_plan_info,
    parameters: Vec<wb_plan_parameter_info>,
    groups: Vec<wb_plan_group_info>,
    names: Vec<String>,
}

fn answers(plan: *const wb_plan) -> Answers {
    // SAFETY: the plan is alive, and the strings are its own.
    unsafe {
        let mut info: wb_plan_info = c::sized();
        c::call(|error| wb_plan_get_info(plan, &raw mut info, error)).expect("it is described");
        let mut parameters = Vec::new();
        let mut names = Vec::new();
        for index in 0..info.parameters {
            let mut one: wb_plan_parameter_info = c::sized();
            c::call(|error| wb_plan_get_parameter_info(plan, index, &raw mut one, error))
                .expect("it is there");
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
            c::call(|error| wb_plan_get_group_info(plan, index, &raw mut one, error)).expect("it is there");
            groups.push(one);
        }
        for index in 0..info.warnings {
            let mut warning = ptr::null();
            c::call(|error| wb_plan_get_warning(plan, index, &raw mut warning, error))
                .expect("it is there");
            assert!(!CStr::from_ptr(warning).is_empty());
        }
        Answers { info, parameters, groups, names }
    }
}

fn check(case: &Case, plan: *const wb_plan) {
    let answers = answers(plan);
    check_budgets(&case.options, &answers.info);
    check_sums(&answers);
    if case.quantize.is_none() {
        check_placement(case, &answers);
        let payload = payload(&case.parameters);
        assert_eq!(u128::from(answers.info.payload_bytes), payload, "each byte is counted once");
    }
}

fn check_budgets(options: &wb_plan_options, info: &wb_plan_info) {
    if options.offload_bytes != WB_UNSET {
        assert!(info.arena_bytes <= options.offload_bytes, "the host's budget is a ceiling");
        assert!(info.arena_bytes.is_multiple_of(PAGE) && info.arena_bytes >= info.offloaded_bytes);
    } else {
        let taken = u128::from(info.resident_bytes) + u128::from(info.slot_bytes);
        assert!(taken <= u128::from(options.device_bytes), "the device's budget is a ceiling");
    }
    assert!(info.ring_bytes <= options.slot_bytes && info.ring_bytes <= info.slot_bytes);
    let (nothing, fits) = (WB_ALLOW_NOTHING_OFFLOADED, WB_ALLOW_EVERYTHING_FITS);
    let allowed = if options.offload_bytes == WB_UNSET { nothing | fits } else { nothing };
    assert!(info.offloaded_bytes > 0 || options.allow & allowed != 0, "nothing is an error");
}

fn check_sums(answers: &Answers) {
    let Answers { info, parameters, groups, .. } = answers;
    let sum = |bytes: fn(&wb_plan_group_info) -> u64| groups.iter().map(bytes).sum::<u64>();
    let (gone, stays) = (sum(|group| group.offloaded_bytes), sum(|group| group.resident_bytes));
    assert_eq!(gone, info.offloaded_bytes);
    assert_eq!(gone + stays, info.payload_bytes);
    assert!(info.resident_bytes >= stays && info.resident_bytes.is_multiple_of(256));
    for (index, one) in parameters.iter().enumerate() {
        assert!(one.group < info.groups && one.tied_to <= index as u64);
        let first = &parameters[one.tied_to as usize];
        assert_eq!(first.carrier, one.carrier, "what is tied goes or stays as one");
        assert_eq!(first.tied_to, one.tied_to);
        assert!((-1..=3).contains(&one.carrier) && one.carrier != WB_TRANSFER_MODE_AUTO);
    }
}

fn check_json(plan: *const wb_plan) {
    let Answers { info, names, parameters, .. } = answers(plan);
    let mut json = ptr::null();
    // SAFETY: the plan is alive, and the string is its own.
    let json: Value = unsafe {
        c::call(|error| wb_plan_to_json(plan, &raw mut json, error)).expect("it is printed");
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
        let placed = if planned.carrier == WB_CARRIER_NONE { "resident" } else { "offloaded" };
        assert_eq!(entry["placement"].as_str(), Some(placed));
    }
}

/// Every parameter is placed once; what may not leave stays; a selector that matches nothing is an error.
fn check_placement(case: &Case, answers: &Answers) {
    let given: Vec<&str> = case
        .parameters
        .iter()
        .map(|parameter| parameter.name.to_str().expect("what is no UTF-8 is refused"))
        .collect();
    assert_eq!(given, answers.names);
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len(), "names are unique");
    let texts = |selectors: &[CString]| -> Vec<String> {
        selectors.iter().map(|text| text.to_str().expect("as above").to_owned()).collect()
    };
    let (select, exclude) = (texts(&case.select), texts(&case.exclude));
    if case.options.allow & WB_ALLOW_UNMATCHED_SELECTOR == 0 {
        for text in select.iter().chain(&exclude).filter(|text| !is_glob(text)) {
            assert!(given.iter().any(|name| segments_match(text, name)), "{text:?} means nothing");
        }
    }
    let means = |texts: &[String], name: &str| texts.iter().any(|text| segments_match(text, name));
    let plain = !select.iter().any(|text| is_glob(text));
    for ((one, name), planned) in case.parameters.iter().zip(&given).zip(&answers.parameters) {
        let selected = select.is_empty() || !plain || means(&select, name);
        if one.carrier == WB_CARRIER_NONE || !selected || means(&exclude, name) {
            assert_eq!(planned.carrier, WB_CARRIER_NONE, "{name:?} may not leave");
        }
        assert_eq!(Some(planned.span_bytes), extent(one).map(|(_, span)| span));
    }
}

fn extent(one: &Parameter) -> Option<(u64, u64)> {
    let bytes = DTYPE_BYTES[one.dtype as usize - 1];
    oracle::extent(bytes, &one.shape, one.strides.as_deref())
}

/// Bytes of all parameters: addresses that several cover counted once, numbers of storages once.
fn payload(parameters: &[Parameter]) -> u128 {
    let (mut ranges, mut numbered, mut all) = (Vec::new(), HashMap::new(), 0u128);
    for one in parameters {
        let (before, span) = extent(one).expect("what is planned is a layout");
        match (one.source, one.storage) {
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
    let mut behind = 0;
    for (start, end) in starts {
        all += u128::from(end.saturating_sub(start.max(behind)));
        behind = behind.max(end);
    }
    all + numbered.into_values().map(u128::from).sum::<u128>()
}
