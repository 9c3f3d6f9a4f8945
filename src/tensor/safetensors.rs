//! The header of a safetensors file: 8 bytes of length, JSON of that length, then the tensors'
//! bytes without gaps. Nothing in a file is trusted. The text is read once, into one entry for each
//! tensor: memory and time grow with the valid part of the text, and the first entry that cannot be
//! right ends the reading.

mod encoded;
mod entries;
mod tensor;

use std::collections::HashSet;
use std::ffi::CString;
use std::fmt;
use std::sync::Arc;

use crate::error::{Result, fail, format_bytes};
use crate::status::{WB_ERR_FILE_TRUNCATED, WB_ERR_FORMAT};
use crate::tensor::safetensors::entries::{Entry, for_each, malformed};
pub use crate::tensor::safetensors::tensor::Tensor;
use crate::tensor::safetensors::tensor::{bytes_of, find, layout};

/// Bytes of the header's length, which the file begins with.
pub const LENGTH_BYTES: u64 = 8;
/// The longest valid header, by the format.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A checked header.
#[derive(Debug)]
pub struct Header {
    /// The JSON text.
    pub json: CString,
    /// The tensors, in the order of their data; those without bytes in the order of the text.
    pub tensors: Vec<Tensor>,
    /// Indexes of the tensors, in the order of their names.
    by_name: Vec<u32>,
}

impl Header {
    /// The index of a tensor by its name.
    pub fn find(&self, name: &str) -> Option<usize> {
        find(&self.tensors, &self.by_name, name)
    }
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
    let text = str::from_utf8(&json).map_err(|error| malformed(&error))?;
    let mut read = Read { data_start, file_bytes, tensors: Vec::new(), dims: HashSet::new() };
    let note = for_each(text, &mut |name, entry| read.add(name, entry))?;
    let mut tensors = read.tensors;
    // Stable, so that the order of tensors without bytes is the file's.
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let by_name = by_name(&tensors)?;
    check_adjacent(&tensors, data_start, file_bytes)?;
    if let Some(note) = note {
        encoded::describe(&note, &mut tensors, &by_name)?;
    }
    // JSON has no NUL outside of strings, and only escaped ones inside.
    let json = CString::new(json).map_err(|error| malformed(&error))?;
    Ok(Header { json, tensors, by_name })
}

/// Fails unless the tensors cover the data without gaps and overlaps, up to the end of the file.
fn check_adjacent(tensors: &[Tensor], data_start: u64, file_bytes: u64) -> Result<()> {
    let mut end = data_start;
    for tensor in tensors {
        if tensor.offset != end {
            let what = if tensor.offset < end { "overlaps another" } else { "leaves a gap" };
            return Err(malformed(&format_args!(
                "{:?} begins at byte {} of the data and {what}: the tensors before it end at {}",
                tensor.name(),
                tensor.offset - data_start,
                end - data_start
            )));
        }
        end += tensor.bytes;
    }
    if end < file_bytes {
        fail!(
            WB_ERR_FORMAT,
            "the tensors end at byte {end} and the file at {file_bytes}: {} bytes belong to no tensor",
            file_bytes - end
        );
    }
    Ok(())
}

/// The indexes of the tensors in the order of their names. Fails if two have the same.
fn by_name(tensors: &[Tensor]) -> Result<Vec<u32>> {
    // A header of 100 MB has fewer than 2^32 entries.
    let mut indexes: Vec<u32> = (0..tensors.len() as u32).collect();
    let name = |at: &u32| tensors[*at as usize].c_name();
    indexes.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    match indexes.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
        Some(pair) => {
            let name = tensors[pair[0] as usize].name();
            Err(malformed(&format_args!("the name {name:?} appears twice")))
        }
        None => Ok(indexes),
    }
}

/// What was read of a header so far.
struct Read {
    data_start: u64,
    file_bytes: u64,
    tensors: Vec<Tensor>,
    /// The shapes of the tensors, each once: a model has few.
    dims: HashSet<Arc<[i64]>>,
}

impl Read {
    fn add(&mut self, name: &str, entry: Entry) -> Result<()> {
        let Entry { dtype, shape, offsets: (start, end) } = entry;
        let wrong = |what: &dyn fmt::Display| malformed(&format_args!("{name:?}: {what}"));
        let layout = layout(dtype, &shape).map_err(|error| wrong(&error))?;
        let bytes = bytes_of(dtype, &shape)
            .ok_or_else(|| wrong(&"the shape has more bytes than a file, or a part of a byte"))?;
        if end.checked_sub(start) != Some(bytes) {
            return Err(wrong(&format_args!(
                "{dtype} of shape {shape:?} has {bytes} bytes, and its data_offsets are {start} to {end}"
            )));
        }
        if end > self.file_bytes.saturating_sub(self.data_start) {
            fail!(
                WB_ERR_FILE_TRUNCATED,
                "the header describes {} (up to {name:?}) and the file has {}: it is truncated",
                format_bytes(self.data_start.saturating_add(end)),
                format_bytes(self.file_bytes)
            );
        }
        let Ok(name) = CString::new(name) else {
            fail!(WB_ERR_FORMAT, "the tensor name {name:?} contains a NUL character");
        };
        self.tensors.push(Tensor {
            name: name.into(),
            file_dtype: dtype,
            layout: layout.map(|layout| layout.shared_in(&mut self.dims)),
            is_encoded: false,
            offset: self.data_start + start,
            bytes,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::layout::MAX_NDIM;

    fn parse_text(json: &str, data_bytes: u64) -> Result<Header> {
        parse(json.as_bytes().to_vec(), LENGTH_BYTES + json.len() as u64 + data_bytes)
    }

    #[test]
    fn tensors_are_listed_in_the_order_of_their_data() {
        let json = r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[6,14]},
                       "__metadata__":{"made":"by hand"},
                       "a":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6]}}"#;
        let header = parse_text(json, 14).unwrap();
        let names: Vec<_> = header.tensors.iter().map(Tensor::name).collect();
        assert_eq!(names, ["a", "b"]);
        let data_start = LENGTH_BYTES + json.len() as u64;
        assert_eq!((header.tensors[1].offset, header.tensors[1].bytes), (data_start + 6, 8));
        assert_eq!(header.tensors[0].layout.as_ref().unwrap().shape(), [3, 1]);
        assert_eq!(header.json.to_str(), Ok(json));
        assert_eq!(["a", "b", "c"].map(|name| header.find(name)), [Some(0), Some(1), None]);
    }

    #[test]
    fn packed_shapes_count_elements_and_unknown_types_are_opaque() {
        let json = r#"{"p":{"dtype":"F4","shape":[2,6],"data_offsets":[0,6]},
                       "q":{"dtype":"F6_E2M3","shape":[3,8],"data_offsets":[6,24]},
                       "r":{"dtype":"F8_E4M3FNUZ","shape":[5],"data_offsets":[24,29]},
                       "s":{"dtype":"F6_E2M3","shape":[8,3],"data_offsets":[29,47]}}"#;
        let header = parse_text(json, 47).unwrap();
        let layout = |at: usize| header.tensors[at].layout.as_ref().unwrap();
        assert_eq!(layout(0).shape(), [2, 3]);
        let block = |at: usize| {
            let dtype = layout(at).dtype();
            (dtype.name(), dtype.block_elements(), dtype.bytes(), layout(at).span_bytes())
        };
        assert_eq!(block(1), ("F6_E2M3", 4, 3, 18));
        assert_eq!(layout(1).shape(), [3, 8]);
        assert_eq!(block(2), ("F8_E4M3FNUZ", 1, 1, 5));
        // A row of three 6-bit numbers ends within a byte.
        assert!(header.tensors[3].layout.is_none());
    }

    #[test]
    fn the_first_wrong_entry_ends_the_reading() {
        let status = |json: String, bytes| parse_text(&json, bytes).unwrap_err().status;
        // What follows is not JSON, and is not read.
        let past = r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},"#;
        assert_eq!(status(format!("{past} no JSON"), 8), WB_ERR_FILE_TRUNCATED);
        let sizes = "1,".repeat(MAX_NDIM);
        let message = |json: String| parse_text(&json, 1).unwrap_err().message;
        let long = message(format!(r#"{{"a":{{"dtype":"U8","shape":[{sizes}1, no JSON"#));
        assert!(long.contains("more than 64 dimensions"), "{long}");
        let wrong = message(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}, no"#.into());
        assert!(wrong.contains("\"a\"") && wrong.contains("2 bytes"), "{wrong}");
    }

    #[test]
    fn other_fields_are_ignored_as_the_safetensors_crate_ignores_them() {
        let with = |fields: &str| {
            let entry = format!(r#"{{"dtype":"U8","shape":[1],"data_offsets":[0,1]{fields}}}"#);
            parse_text(&format!(r#"{{"a":{entry}}}"#), 1).map(|header| header.tensors.len())
        };
        for fields in ["", r#","z":{"y":[1,2.5,"x",null,true,-3]}"#] {
            assert_eq!(with(fields).unwrap(), 1, "{fields}");
        }
        let deep = format!(r#","z":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000));
        for fields in [deep.as_str(), r#","z":1e999"#, r#","shape":[1]"#] {
            assert_eq!(with(fields).unwrap_err().status, WB_ERR_FORMAT);
        }
        let metadata = |value: &str| {
            let json = format!(r#"{{"__metadata__":{value}}}"#);
            parse_text(&json, 0).map(|header| header.tensors.len())
        };
        for value in ["null", "{}", r#"{"a":"b","a":"c"}"#] {
            assert_eq!(metadata(value).unwrap(), 0, "{value}");
        }
        for value in ["[]", r#"{"a":1}"#, r#"{"a":null}"#, r#"{},"__metadata__":{}"#] {
            assert_eq!(metadata(value).unwrap_err().status, WB_ERR_FORMAT, "{value}");
        }
    }

    #[test]
    fn every_name_is_found() {
        let mut json = String::from("{");
        for at in 0..500 {
            let comma = if at == 0 { "" } else { "," };
            json += &format!(
                r#"{comma}"n{}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#,
                at * 7 % 500,
                at + 1
            );
        }
        let header = parse_text(&(json + "}"), 500).unwrap();
        for (at, tensor) in header.tensors.iter().enumerate() {
            assert_eq!(header.find(tensor.name()), Some(at));
        }
        assert_eq!([header.find("n"), header.find("n500")], [None, None]);
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
