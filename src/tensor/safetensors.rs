//! The header of a safetensors file: 8 bytes of length, JSON of that length, then the tensors'
//! bytes without gaps. Nothing in a file is trusted; the `safetensors` crate checks shapes, types
//! and offsets.

use std::collections::HashSet;
use std::fmt;
use std::num::TryFromIntError;

use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};
use serde::Deserializer;
use serde::de::{Deserialize, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result, fail, format_bytes};
use crate::status::{WB_ERR_FILE_TRUNCATED, WB_ERR_FORMAT};
use crate::tensor::dtype::Dtype;
use crate::tensor::layout::Layout;

/// Bytes of the header's length, which the file begins with.
pub const LENGTH_BYTES: u64 = 8;
/// The longest valid header, by the format.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its type's name in the file, such as `"BF16"`.
    pub file_dtype: String,
    /// Type and shape; `None` if no `WB_DTYPE_*` can express them.
    pub layout: Option<Layout>,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// A checked header.
#[derive(Debug)]
pub struct Header {
    /// The JSON text.
    pub json: String,
    /// The tensors, in the order of their data.
    pub tensors: Vec<Tensor>,
}

/// Bytes of JSON that follow `length`, checked against the size of the file.
pub fn header_bytes(length: [u8; LENGTH_BYTES as usize], file_bytes: u64) -> Result<u64> {
    let bytes = u64::from_le_bytes(length);
    if bytes > MAX_HEADER_BYTES {
        fail!(
            WB_ERR_FORMAT,
            "the first 8 bytes announce a header of {bytes} bytes; at most {MAX_HEADER_BYTES} are \
             valid: this is not a safetensors file"
        );
    }
    if bytes > file_bytes.saturating_sub(LENGTH_BYTES) {
        fail!(
            WB_ERR_FILE_TRUNCATED,
            "the header announces {bytes} bytes and the file has {file_bytes}: it is truncated, or \
             not a safetensors file"
        );
    }
    Ok(bytes)
}

/// Parses a header's JSON and checks it against the size of the file.
pub fn parse(json: Vec<u8>, file_bytes: u64) -> Result<Header> {
    let data_start = LENGTH_BYTES + json.len() as u64;
    let json = String::from_utf8(json).map_err(|error| malformed(&error))?;
    let UniqueNames = serde_json::from_str(&json).map_err(|error| malformed(&error))?;
    let metadata: Metadata = serde_json::from_str(&json).map_err(|error| malformed(&error))?;

    let end = data_start.saturating_add(metadata.data_len() as u64);
    if end > file_bytes {
        fail!(
            WB_ERR_FILE_TRUNCATED,
            "the header describes {} and the file has {}: it is truncated",
            format_bytes(end),
            format_bytes(file_bytes)
        );
    }
    if end < file_bytes {
        fail!(
            WB_ERR_FORMAT,
            "the tensors end at byte {end} and the file at {file_bytes}: {} bytes belong to no tensor",
            file_bytes - end
        );
    }
    let tensors = metadata
        .offset_keys()
        .into_iter()
        .map(|name| {
            let info = metadata.info(&name).expect("the key is in the map");
            tensor(name, info, data_start)
        })
        .collect::<Result<_>>()?;
    Ok(Header { json, tensors })
}

fn tensor(name: String, info: &TensorInfo, data_start: u64) -> Result<Tensor> {
    if name.contains('\0') {
        fail!(WB_ERR_FORMAT, "the tensor name {name:?} contains a NUL character");
    }
    let (start, end) = info.data_offsets;
    Ok(Tensor {
        file_dtype: info.dtype.to_string(),
        layout: layout(info.dtype, &info.shape)
            .map_err(|error| malformed(&format_args!("{name:?}: {error}")))?,
        offset: data_start + start as u64,
        bytes: (end - start) as u64,
        name,
    })
}

/// The layout in elements; `None` if no `WB_DTYPE_*` can express it. A packed type's last dimension
/// counts values in the file, and elements of several values here.
fn layout(dtype: FileDtype, shape: &[usize]) -> Result<Option<Layout>> {
    let Some(dtype) = Dtype::from_safetensors(&dtype.to_string()) else { return Ok(None) };
    let mut shape: Vec<i64> = shape
        .iter()
        .map(|size| i64::try_from(*size))
        .collect::<Result<_, TryFromIntError>>()
        .map_err(|error| Error::new(WB_ERR_FORMAT, error.to_string()))?;
    if dtype.packed() > 1 {
        let Some(last) = shape.last_mut().filter(|last| **last % dtype.packed() as i64 == 0) else {
            return Ok(None);
        };
        *last /= dtype.packed() as i64;
    }
    Layout::new(dtype, &shape, None).map(Some)
}

fn malformed(error: &dyn fmt::Display) -> Error {
    Error::new(WB_ERR_FORMAT, format!("the safetensors header is malformed: {error}"))
}

/// A JSON object without duplicate keys. A map type would keep the last of two.
struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = UniqueNames;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<UniqueNames, M::Error> {
                let mut seen = HashSet::new();
                while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if seen.contains(&name) {
                        return Err(M::Error::custom(format!("the name {name:?} appears twice")));
                    }
                    seen.insert(name);
                }
                Ok(UniqueNames)
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(json: &str, data_bytes: u64) -> Result<Header> {
        parse(json.as_bytes().to_vec(), LENGTH_BYTES + json.len() as u64 + data_bytes)
    }

    #[test]
    fn tensors_are_listed_in_the_order_of_their_data() {
        let json = r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[6,14]},
                       "__metadata__":{"made":"by hand"},
                       "a":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6]}}"#;
        let header = parse_text(json, 14).unwrap();
        let names: Vec<_> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let data_start = LENGTH_BYTES + json.len() as u64;
        assert_eq!((header.tensors[1].offset, header.tensors[1].bytes), (data_start + 6, 8));
        assert_eq!(header.tensors[0].layout.as_ref().unwrap().shape(), [3, 1]);
        assert_eq!(header.json, json);
    }

    #[test]
    fn packed_shapes_count_elements_and_unknown_types_have_no_layout() {
        let json = r#"{"p":{"dtype":"F4","shape":[2,6],"data_offsets":[0,6]},
                       "q":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[6,9]}}"#;
        let header = parse_text(json, 9).unwrap();
        assert_eq!(header.tensors[0].layout.as_ref().unwrap().shape(), [2, 3]);
        assert!(header.tensors[1].layout.is_none());
    }

    #[test]
    fn malformed_headers_are_rejected() {
        let overlap = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                          "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        let gap = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                      "b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                        "a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let wrong_size = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
        let backwards = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[4,2]}}"#;
        let overflow =
            r#"{"a":{"dtype":"F64","shape":[9223372036854775807,4],"data_offsets":[0,0]}}"#;
        let empty_overflow = r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],
                                      "data_offsets":[0,0]}}"#;
        let dimensions = vec!["1"; 65].join(",");
        let dimensions =
            &format!(r#"{{"a":{{"dtype":"U8","shape":[{dimensions}],"data_offsets":[0,1]}}}}"#);
        let nul = r#"{"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        for (json, bytes) in [
            (overlap, 6),
            (gap, 3),
            (twice, 1),
            (wrong_size, 4),
            (backwards, 4),
            (overflow, 0),
            (empty_overflow, 0),
            (dimensions, 1),
            (nul, 1),
            ("not json", 0),
            ("[]", 0),
            ("", 0),
            ("{\"a\":1}", 0),
        ] {
            assert_eq!(parse_text(json, bytes).unwrap_err().status, WB_ERR_FORMAT, "{json}");
        }
        let invalid_utf8 = parse(vec![0xff, 0xfe], 10).unwrap_err();
        assert_eq!(invalid_utf8.status, WB_ERR_FORMAT);
        let named = parse_text(twice, 1).unwrap_err().message;
        assert!(named.contains("\"a\" appears twice"), "{named}");
    }

    #[test]
    fn the_file_must_end_with_the_last_tensor() {
        let json = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        assert_eq!(parse_text(json, 3).unwrap_err().status, WB_ERR_FILE_TRUNCATED);
        assert_eq!(parse_text(json, 5).unwrap_err().status, WB_ERR_FORMAT);
        assert!(parse_text(json, 4).is_ok());
        assert!(parse_text("{}", 0).unwrap().tensors.is_empty());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        let check =
            |length: u64, file| header_bytes(length.to_le_bytes(), file).map_err(|e| e.status);
        assert_eq!(check(u64::MAX, 100), Err(WB_ERR_FORMAT));
        assert_eq!(check(100_000_001, 1 << 40), Err(WB_ERR_FORMAT));
        assert_eq!(check(93, 100), Err(WB_ERR_FILE_TRUNCATED));
        assert_eq!(check(92, 100), Ok(92));
        assert_eq!(check(0, 4), Ok(0));
    }
}
