//! Which tensors of a file are compressed, and what their values are: `python -m weighbridge compress` notes it in the
//! metadata, with the header of the original file.

use std::fmt;
use std::result::Result as StdResult;

use safetensors::tensor::Dtype as FileDtype;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result, fail};
use crate::status::{WB_ERR_FORMAT, WB_ERR_NOT_SUPPORTED};
use crate::tensor::coded::{CodedType, ENTRY, HEADER, UNIT, tiles};
use crate::tensor::safetensors::entries::{Entry, Ignored, for_each};
use crate::tensor::safetensors::tensor::{Tensor, bytes_of, find, layout};

/// The format of the note that is read.
const FORMAT: u64 = 1;

fn wrong(what: &dyn fmt::Display) -> Error {
    Error::new(WB_ERR_FORMAT, format!("the metadata of a compressed file are malformed: {what}"))
}

/// Gives the tensors that a note names the types and shapes of their values.
pub(super) fn describe(note: &str, tensors: &mut [Tensor], by_name: &[u32]) -> Result<()> {
    let mut names = Names { tensors, by_name, marked: 0 };
    let mut deserializer = serde_json::Deserializer::from_str(note);
    let read = deserializer.deserialize_map(Note { names: &mut names }).and_then(|read| {
        deserializer.end()?;
        Ok(read)
    });
    let (format, header) = read.map_err(|error| wrong(&error))?;
    if format != Some(FORMAT) {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "the file is compressed in format {}: this library reads {FORMAT}",
            format.map_or("without a number".into(), |format| format.to_string())
        );
    }
    let header = header.ok_or_else(|| wrong(&"there is no original header"))?;
    let mut left = names.marked;
    for_each(&header, &mut |name, entry| {
        if let Some(at) =
            find(names.tensors, by_name, name).filter(|at| names.tensors[*at].is_encoded)
        {
            left = left
                .checked_sub(1)
                .ok_or_else(|| wrong(&format_args!("{name:?} appears twice")))?;
            give_values(&mut names.tensors[at], entry)?;
        }
        Ok(())
    })?;
    match left {
        0 => Ok(()),
        _ => Err(wrong(&format_args!("the original header has {left} compressed tensors too few"))),
    }
}

/// Makes a tensor of bytes one of the values that they decode to.
fn give_values(tensor: &mut Tensor, entry: Entry) -> Result<()> {
    let Entry { dtype, shape, .. } = entry;
    let bytes = tensor.bytes;
    let fails = |what: &dyn fmt::Display| wrong(&format_args!("{:?}: {what}", tensor.name()));
    let values = layout(dtype, &shape).map_err(|error| fails(&error))?;
    let coded = values.as_ref().and_then(|values| CodedType::of(values.dtype()).ok());
    let (Some(values), Some(coded)) = (values, coded) else {
        return Err(fails(&format_args!("values of {dtype} are not compressed")));
    };
    let most = bytes_of(dtype, &shape).and_then(|decoded| {
        let least = HEADER + ENTRY * tiles(decoded);
        coded.max_bytes(decoded).ok().filter(|_| decoded > 0 && bytes >= least)
    });
    if most.is_none_or(|most| bytes > most) {
        return Err(fails(&format_args!(
            "{dtype} of shape {shape:?} is not compressed to {bytes} bytes"
        )));
    }
    if !tensor.offset.is_multiple_of(UNIT) {
        return Err(fails(&format_args!("it is at byte {}, no multiple of {UNIT}", tensor.offset)));
    }
    (tensor.file_dtype, tensor.layout) = (dtype, Some(values));
    Ok(())
}

/// The tensors that a note names.
struct Names<'a> {
    tensors: &'a mut [Tensor],
    by_name: &'a [u32],
    marked: usize,
}

impl Names<'_> {
    fn mark(&mut self, name: &str) -> Option<()> {
        let tensor = &mut self.tensors[find(self.tensors, self.by_name, name)?];
        let is_bytes = tensor.file_dtype == FileDtype::U8;
        let is_flat = tensor.layout.as_ref().is_some_and(|layout| layout.ndim() == 1);
        if tensor.is_encoded || !is_bytes || !is_flat {
            return None;
        }
        tensor.is_encoded = true;
        self.marked += 1;
        Some(())
    }
}

/// The note: its format, and the header of the original file. Names are looked up while they are read.
struct Note<'a, 'b> {
    names: &'a mut Names<'b>,
}

impl<'de> Visitor<'de> for Note<'_, '_> {
    type Value = (Option<u64>, Option<String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with format, compressed and header")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> StdResult<Self::Value, M::Error> {
        let (mut format, mut header) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match &*key {
                "format" => format = Some(map.next_value::<u64>()?),
                "header" => header = Some(map.next_value::<String>()?),
                "compressed" => map.next_value_seed(&mut *self.names)?,
                _ => {
                    map.next_value::<Ignored>()?;
                }
            }
        }
        Ok((format, header))
    }
}

impl<'de> DeserializeSeed<'de> for &mut Names<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> StdResult<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of names")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> StdResult<(), S::Error> {
        while let Some(name) = seq.next_element::<String>()? {
            if self.mark(&name).is_none() {
                return Err(S::Error::custom(format_args!(
                    "{name:?} is not a tensor of U8 in one dimension, or is named twice"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::safetensors::{LENGTH_BYTES, parse};

    /// A file with a compressed tensor `a` of `bytes` bytes and a raw one, and a note. The data begin at a multiple of 16.
    fn file(bytes: u64, note: &str) -> Result<crate::tensor::safetensors::Header> {
        let note = note.replace('\\', "\\\\").replace('"', "\\\"");
        let mut json = format!(
            r#"{{"__metadata__":{{"made":"by hand","weighbridge_codec":"{note}"}},
            "a":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}},
            "b":{{"dtype":"U8","shape":[4],"data_offsets":[{bytes},{end}]}}}}"#,
            end = bytes + 4
        );
        json += &" ".repeat((24 - json.len() % 16) % 16);
        let all = LENGTH_BYTES + json.len() as u64 + bytes + 4;
        parse(json.into_bytes(), all)
    }

    fn note(names: &str, dtype: &str, shape: &str) -> String {
        let header =
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,0]}}}}"#);
        let header = header.replace('"', r#"\""#);
        format!(r#"{{"format":1,"version":"0","compressed":{names},"header":"{header}"}}"#)
    }

    #[test]
    fn compressed_tensors_have_the_type_and_shape_of_their_values() {
        let header = file(6000, &note(r#"["a"]"#, "BF16", "[4,1024]")).unwrap();
        let (a, b) = (&header.tensors[0], &header.tensors[1]);
        assert_eq!(a.layout.as_ref().unwrap().shape(), [4, 1024]);
        assert_eq!((a.file_dtype, a.bytes, a.encoded_bytes()), (FileDtype::BF16, 6000, 6000));
        assert_eq!((b.file_dtype, b.bytes, b.encoded_bytes()), (FileDtype::U8, 4, 0));
    }

    #[test]
    fn a_note_that_lies_is_refused() {
        for (bytes, names, dtype, shape) in [
            (6000, r#"["c"]"#, "BF16", "[4,1024]"),
            (6000, r#"["a","a"]"#, "BF16", "[4,1024]"),
            (6000, r#"["a","b"]"#, "BF16", "[4,1024]"),
            (6000, r#"["a"]"#, "I16", "[4,1024]"),
            (6000, r#"["a"]"#, "BF16", "[4,4096,4096]"),
            (6000, r#"["a"]"#, "BF16", "[4]"),
            (6000, r#"["a"]"#, "BF16", "[0]"),
            (6000, r#"["a"]"#, "F4", "[3]"),
            (6000, r#"["a"]"#, "BF16", "[4294967296,4294967296,4294967296]"),
            (8, r#"["a"]"#, "BF16", "[4]"),
            (6000, "7", "BF16", "[4,1024]"),
        ] {
            let error = file(bytes, &note(names, dtype, shape)).unwrap_err();
            assert_eq!(error.status, WB_ERR_FORMAT, "{names} {dtype} {shape}: {}", error.message);
        }
        let newer = note(r#"["a"]"#, "BF16", "[4,1024]").replace("\"format\":1", "\"format\":2");
        assert_eq!(file(6000, &newer).unwrap_err().status, WB_ERR_NOT_SUPPORTED);
        for text in ["", "[]", "{}", r#"{"format":1}"#, r#"{"format":1,"compressed":["a"]}"#] {
            assert!(file(6000, text).is_err(), "{text}");
        }
    }
}
