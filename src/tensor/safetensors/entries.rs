//! The entries of a header's JSON, read one after another. Nothing of the text is kept but the entry
//! that is being read.

use std::fmt;
use std::result::Result as StdResult;

use safetensors::tensor::Dtype as FileDtype;
use serde::Deserializer;
use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};

use crate::error::{Error, Result};
use crate::status::WB_ERR_FORMAT;
use crate::tensor::layout::MAX_NDIM;

/// The name of the metadata of a compressed file.
const NOTE: &str = "weighbridge_codec";

/// Takes an entry and its name.
type Take<'a> = dyn FnMut(&str, Entry) -> Result<()> + 'a;

/// Calls `take` for each tensor of a header's text; its first error ends the reading. Returns what the metadata
/// have at [`NOTE`], if they have that.
pub(super) fn for_each(text: &str, take: &mut Take<'_>) -> Result<Option<String>> {
    let mut failure = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let entries = Entries { take, failure: &mut failure };
    let parsed = deserializer.deserialize_map(entries).and_then(|note| {
        deserializer.end()?;
        Ok(note)
    });
    match failure {
        Some(failure) => Err(failure),
        None => parsed.map_err(|error| malformed(&error)),
    }
}

pub(super) fn malformed(error: &dyn fmt::Display) -> Error {
    Error::new(WB_ERR_FORMAT, format!("the safetensors header is malformed: {error}"))
}

/// The entries of the header: tensors, and the metadata.
struct Entries<'a, 'b> {
    take: &'a mut Take<'b>,
    /// The error of `take`. The parser's own error has no status.
    failure: &'a mut Option<Error>,
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> StdResult<Option<String>, M::Error> {
        let (mut metadata, mut note) = (false, None);
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata, true) {
                    return Err(M::Error::custom("the name \"__metadata__\" appears twice"));
                }
                note = map.next_value::<Option<Texts>>()?.and_then(|Texts(note)| note);
                continue;
            }
            let entry = map
                .next_value::<Entry>()
                .map_err(|error| M::Error::custom(format_args!("{name:?}: {error}")))?;
            if let Err(failure) = (self.take)(&name, entry) {
                *self.failure = Some(failure);
                return Err(M::Error::custom("an entry is wrong"));
            }
        }
        Ok(note)
    }
}

/// The entry of a tensor.
pub(super) struct Entry {
    pub dtype: FileDtype,
    pub shape: Vec<u64>,
    /// Start and end, from the start of the data.
    pub offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> StdResult<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> StdResult<Entry, M::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let again = match &*key {
                        "dtype" => dtype.replace(map.next_value::<TypeName>()?.0).is_some(),
                        "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                        "data_offsets" => {
                            offsets.replace(map.next_value::<(u64, u64)>()?).is_some()
                        }
                        _ => map.next_value::<Ignored>().map(|Ignored| false)?,
                    };
                    if again {
                        return Err(M::Error::custom(format_args!("{key:?} appears twice")));
                    }
                }
                let missing = M::Error::missing_field;
                Ok(Entry {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// An element type by its name in files.
struct TypeName(FileDtype);

impl<'de> Deserialize<'de> for TypeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> StdResult<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = TypeName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an element type")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> StdResult<TypeName, E> {
                let name: StrDeserializer<'_, E> = name.into_deserializer();
                FileDtype::deserialize(name).map(TypeName)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// A shape, of no more dimensions than a layout has: a longer one is not read to its end.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> StdResult<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of sizes")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> StdResult<Shape, S::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = seq.next_element()? {
                    if sizes.len() == MAX_NDIM {
                        let text = format_args!("a shape has more than {MAX_NDIM} dimensions");
                        return Err(S::Error::custom(text));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

/// An object of texts, checked; only that at [`NOTE`] is kept.
struct Texts(Option<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> StdResult<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> StdResult<Texts, M::Error> {
                let mut note = None;
                while let Some(is_note) = map.next_key_seed(Text)? {
                    match is_note {
                        true => note = Some(map.next_value::<String>()?),
                        false => map.next_value_seed(Text).map(drop)?,
                    }
                }
                Ok(Texts(note))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A text, checked and not kept: whether it is [`NOTE`].
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> StdResult<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> StdResult<bool, E> {
        Ok(text == NOTE)
    }
}

/// Any value, not kept. Unlike serde's own it is nested as deeply as the parser allows, and its
/// numbers are numbers: as in the `safetensors` crate.
pub(super) struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> StdResult<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Ignored;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_unit<E>(self) -> StdResult<Ignored, E> {
                Ok(Ignored)
            }
            fn visit_bool<E>(self, _: bool) -> StdResult<Ignored, E> {
                Ok(Ignored)
            }
            fn visit_u64<E>(self, _: u64) -> StdResult<Ignored, E> {
                Ok(Ignored)
            }
            fn visit_i64<E>(self, _: i64) -> StdResult<Ignored, E> {
                Ok(Ignored)
            }
            fn visit_f64<E>(self, _: f64) -> StdResult<Ignored, E> {
                Ok(Ignored)
            }
            fn visit_str<E>(self, _: &str) -> StdResult<Ignored, E> {
                Ok(Ignored)
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> StdResult<Ignored, S::Error> {
                while seq.next_element::<Ignored>()?.is_some() {}
                Ok(Ignored)
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> StdResult<Ignored, M::Error> {
                while map.next_key_seed(Text)?.is_some() {
                    map.next_value::<Ignored>()?;
                }
                Ok(Ignored)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
