//! Writes a plan as JSON.

use serde_json::{Value, json};

use crate::plan::parameter::{AccessPattern, Origin, TransferMode};
use crate::plan::plan::{Budget, Plan, PlannedParameter};

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
    });
    push_lines(&mut text, "groups", groups);
    let parameters = plan.parameters.iter().map(|planned| parameter_to_json(plan, planned));
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
        "quantize": options.quantize.as_ref().map(|rule| json!({
            "select": rule.select,
            "format": rule.format.name(),
            "block": [rule.block.0, rule.block.1],
        })),
        "link_bytes_per_second": options.link_bytes_per_second,
        "compute_bytes_per_second": options.compute_bytes_per_second,
        "group_seconds": options.group_seconds,
        "rows": options.rows,
    });
    let totals = json!({
        "payload_bytes": plan.payload_bytes,
        "offloaded_bytes": plan.offloaded_payload_bytes,
        "arena_bytes": plan.arena_bytes,
        "resident_bytes": plan.resident_bytes,
        "slot_bytes": plan.slot_bytes,
        "ring_bytes": plan.ring_bytes,
        "depth": plan.depth,
        "wrap_stalls": plan.wrap_stalls,
        "step_bytes": plan.step_bytes,
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

/// Adds a list under a name, with a line for each of its values.
fn push_lines(text: &mut String, name: &str, values: impl Iterator<Item = Value>) {
    text.push_str(&format!("  \"{name}\": ["));
    for (at, value) in values.enumerate() {
        text.push_str(if at == 0 { "\n    " } else { ",\n    " });
        text.push_str(&value.to_string());
    }
    text.push_str("\n  ],\n");
}

fn parameter_to_json(plan: &Plan, planned: &PlannedParameter) -> Value {
    let parameter = &planned.parameter;
    let storage = &plan.storages[planned.storage];
    let first = &plan.parameters[storage.parameters[0]].parameter.name;
    let access_pattern = match parameter.access_pattern {
        AccessPattern::Dense => "dense",
        AccessPattern::Sparse => "sparse",
    };
    json!({
        "name": parameter.name,
        "group": *parameter.group,
        "dtype": parameter.layout.dtype().name(),
        "shape": parameter.layout.shape(),
        "bytes": parameter.layout.span_bytes(),
        "access_pattern": access_pattern,
        "quantized_from": match &parameter.origin {
            Origin::Quantized(from) => Some(from.layout.dtype().name()),
            Origin::Given | Origin::Scales => None,
        },
        "placement": planned.transfer_mode.map_or("resident", |_| "offloaded"),
        "transfer_mode": planned.transfer_mode.map(TransferMode::name),
        "reason": planned.reason.to_string(),
        "tied_to": (*first != parameter.name).then_some(first),
    })
}
