//! The bytes that parameters are filled from.

use crate::capi::address::Address;
use crate::device::backend::Location;
use crate::device::device::Device;
use crate::error::Result;
use crate::plan::parameter::{Origin, Parameter};

/// The bytes that a caller gave for a parameter, if any.
pub(in crate::capi) fn source_of(
    device: &Device,
    parameter: &Parameter,
) -> Result<Option<Location>> {
    let (address, bytes) = match &parameter.origin {
        Origin::Quantized(from) => {
            (from.source, from.encoded_bytes.unwrap_or(from.layout.span_bytes()))
        }
        _ => (parameter.source, parameter.source_bytes()),
    };
    if address == 0 || bytes == 0 {
        return Ok(None);
    }
    let span = Address(address).span(bytes, &format!("parameter {:?}", parameter.name))?;
    Ok(Some(device.locate(span)?))
}
