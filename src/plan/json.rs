//! Writes a plan as JSON.

use serde::Serialize;
use serde_json::json;

use crate::plan::compression::Compression;
use crate::plan::parameter::{AccessPattern, Origin, TransferMode};
use crate::plan::plan::{Budget, Plan};

/// The whole plan: options, totals, groups, parameters and warnings. A group and a parameter take a
/// line each, written one after another: a million parameters take little more memory than the text.
pub fn to_json(plan: &Plan) -> String {
    let mut text = String::from("{\n");
    let groups = plan.groups.iter().map(|group| {
        json!({
            "name": group.name,
            "offloaded_bytes": group.offloaded_bytes,
            "resident_bytes": group.resident_bytes,
            "turn": group.ring_position,
        })
        .to_string()
    });
    push_lines(&mut text, "groups", groups);
    let parameters = (0..plan.parameters.len()).map(|index| parameter_to_json(plan, index));
    push_lines(&mut text, "parameters", parameters);
    let options = &plan.options;
    let (kind, bytes) = match options.budget {
        Budget::OffloadBytes(bytes) => ("offload_bytes", bytes),
        Budget::DeviceBytes(bytes) => ("device_bytes", bytes),
    };
    let options = json!({
        "budget": {"kind": kind, "bytes": bytes},
        "slot_bytes": options.slot_bytes,
        "depth": options.depth,
        "transfer_mode": options.transfer_mode.name(),
        "order": options.order.name(),
        "select": options.select,
        "exclude": options.exclude,
        "compress": match &options.compress {
            Compression::Off => json!({"kind": "off", "select": []}),
            Compression::Auto(select) => json!({"kind": "auto", "select": select}),
            Compression::Selected(select) => json!({"kind": "selected", "select": select}),
        },
        "quantize": options.quantize.as_ref().map(|rule| json!({
            "select": rule.select,
            "format": rule.format.name(),
            "block": [rule.block.0, rule.block.1],
        })),
        "link_bytes_per_second": options.link_bytes_per_second,
        "compute_bytes_per_second": options.compute_bytes_per_second,
        "group_seconds": options.group_seconds,
        "rows": options.rows,
        "expert_bytes": options.expert_bytes,
        "fixed_addresses": options.fixed_addresses,
    });
    let totals = json!({
        "payload_bytes": plan.payload_bytes,
        "offloaded_bytes": plan.offloaded_payload_bytes,
        "arena_bytes": plan.arena_bytes,
        "resident_bytes": plan.resident_bytes,
        "slot_bytes": plan.slot_bytes + plan.window_bytes,
        "device_encoded_bytes": plan.kept_bytes,
        "device_decoded_bytes": plan.kept_decoded_bytes,
        "expert_bytes": plan.expert_bytes,
        "expert_hit_rate": plan.expert_hit_rate(),
        "ring_bytes": plan.ring_bytes,
        "granularity": plan.granularity,
        "padding_bytes": plan.padding_bytes,
        "depth": plan.depth,
        "wrap_stalls": plan.wrap_stalls,
        "step_bytes": plan.step_bytes,
        "decoded_bytes": plan.decoded_bytes,
        "encoded_bytes": plan.encoded_bytes,
        "decode_seconds": plan.decode_seconds,
        "view_bytes": plan.view_bytes,
        "step_seconds": plan.step_seconds,
        "link_seconds": plan.link_seconds,
        "kernel_seconds": plan.kernel_seconds,
    });
    let warnings = json!(plan.warnings);
    text.push_str(&format!(
        "  \"options\": {options},\n  \"totals\": {totals},\n  \"warnings\": {warnings}\n}}\n"
    ));
    text
}

/// Adds a list under a name, with a line for each of its values, which are JSON.
fn push_lines(text: &mut String, name: &str, values: impl Iterator<Item = String>) {
    text.push_str(&format!("  \"{name}\": ["));
    for (at, value) in values.enumerate() {
        text.push_str(if at == 0 { "\n    " } else { ",\n    " });
        text.push_str(&value);
    }
    text.push_str("\n  ],\n");
}

/// A parameter, with its keys in the order of the alphabet as in every other object. It is written
/// without a map of its values, which would take several times as long.
fn parameter_to_json(plan: &Plan, index: usize) -> String {
    let planned = &plan.parameters[index];
    let parameter = &planned.parameter;
    let storage = &plan.storages[planned.storage];
    let first = &plan.parameters[storage.parameters[0]].parameter.name;
    let access_pattern = match parameter.access_pattern {
        AccessPattern::Dense => "dense",
        AccessPattern::Sparse => "sparse",
        AccessPattern::Experts => "experts",
    };
    let quantized_from = match &parameter.origin {
        Origin::Quantized(from) => Some(from.layout.dtype().name()),
        Origin::Given | Origin::Encoded(_) | Origin::Scales => None,
    };
    let placement = planned.transfer_mode.map_or("resident", |_| "offloaded");
    format!(
        "{{\"access_pattern\":\"{access_pattern}\",\"bytes\":{},\"device_encoded_bytes\":{},\"dtype\":{},\"encoded_bytes\":{},\
         \"group\":{},\"name\":{},\"placement\":\"{placement}\",\"quantized_from\":{},\"reason\":{},\
         \"resident_bytes\":{},\"shape\":{},\"tied_to\":{},\"transfer_mode\":{}}}",
        parameter.layout.span_bytes(),
        value(&(storage.kept_bytes > 0).then_some(storage.kept_bytes)),
        value(parameter.layout.dtype().name()),
        value(&storage.coding.as_ref().ok().map(|coding| coding.encoded_bytes)),
        value(&*parameter.group),
        value(&parameter.name),
        value(&quantized_from),
        value(&plan.reason(planned)),
        plan.resident_bytes_of(index),
        value(parameter.layout.shape()),
        value(&(*first != parameter.name).then_some(first)),
        value(&planned.transfer_mode.map(TransferMode::name)),
    )
}

/// A text, a number, a list or nothing as JSON.
fn value(of: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(of).expect("none of them fails")
}
