//! Headers of safetensors files: arbitrary bytes, arbitrary JSON, and JSON of tensors that overlap,
//! overflow, are duplicated, or are valid.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fmt::Write;
use std::sync::{LazyLock, Mutex};

use arbitrary::{Result, Unstructured};
use safetensors::SafeTensors;
use serde_json::Value;
use weighbridge::capi::buffer::{wb_buffer_get_info, wb_buffer_info, wb_buffer_release};
use weighbridge::capi::safetensors::*;
use weighbridge::capi::view::{WB_ACCESSOR_HOST, wb_view_get_info, wb_view_info, wb_view_release};
use weighbridge::status::{
    WB_ERR_FILE_EMPTY, WB_ERR_FILE_TRUNCATED, WB_ERR_FORMAT, WB_ERR_NOT_SUPPORTED,
};
use weighbridge::tensor::dtype::{WB_DTYPE_F4_E2M1X2, WB_DTYPE_OPAQUE};

use crate::c;
use crate::memory::MemoryFile;
use crate::oracle::{self, DTYPE_BYTES};

/// The first byte selects how the others are decoded.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return check(&[]) };
    match kind % 3 {
        0 => check(rest),
        1 => {
            let (bytes, json) = rest.split_at(rest.len().min(1));
            check(&file_of(json, usize::from(bytes.first().copied().unwrap_or(0))));
        }
        _ => {
            if let Ok((json, bytes)) = tensors(&mut Unstructured::new(rest)) {
                check(&file_of(json.as_bytes(), bytes));
            }
        }
    }
}

fn file_of(json: &[u8], data_bytes: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(file.len() + data_bytes, 7);
    file
}

/// JSON of adjacent tensors, some of them invalid, and the number of their bytes.
fn tensors(u: &mut Unstructured<'_>) -> Result<(String, usize)> {
    const NAMES: [&str; 8] = ["a", "b", "c", "", "a.b", "\\u0061", "é", "n\\u0000"];
    const DTYPES: [(&str, u64); 10] = [
        ("F32", 32),
        ("BF16", 16),
        ("U8", 8),
        ("I64", 64),
        ("C64", 64),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("BOOL", 8),
    ];
    let (mut json, mut at) = (String::from("{"), 0u64);
    for index in 0..u.int_in_range(0..=4)? {
        let (dtype, bits) = *u.choose(&DTYPES)?;
        let mut shape = Vec::new();
        for _ in 0..u.int_in_range(0..=3)? {
            shape.push(u64::from(u.int_in_range::<u8>(0..=5)?));
        }
        let bytes = shape.iter().product::<u64>() * bits / 8;
        let (mut start, mut end) = (at, at + bytes);
        at = end;
        if u.ratio(1, 4)? {
            let huge = *u.choose(&[0, 1, 1 << 31, 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX])?;
            match u.int_in_range(0..=4)? {
                0 => start = huge,
                1 => end = huge,
                2 => shape.push(huge),
                3 => shape.resize(usize::from(u.int_in_range::<u8>(60..=70)?), 1),
                _ => std::mem::swap(&mut start, &mut end),
            }
        }
        let (comma, name) = (if index == 0 { "" } else { "," }, u.choose(&NAMES)?);
        let _ = write!(
            json,
            r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        );
    }
    if u.ratio(1, 8)? {
        let comma = if json.len() > 1 { "," } else { "" };
        let _ = write!(json, r#"{comma}"__metadata__":{{"a":"b"}}"#);
    }
    json.push('}');
    let spaces = u.int_in_range(0..=7)?;
    json.extend(std::iter::repeat_n(' ', spaces));
    Ok((json, at.min(1 << 16) as usize))
}

/// Opens the file and compares the outcome with the format's rules and with the `safetensors` crate.
fn check(bytes: &[u8]) {
    static FILE: LazyLock<Mutex<MemoryFile>> = LazyLock::new(Mutex::default);
    let file = FILE.lock().expect("a failed case ends the process");
    file.write(bytes);
    let device = c::host(true);
    // SAFETY: all pointers are valid.
    let opened = c::make(|made, error| unsafe {
        wb_safetensors_open(device, file.path().as_ptr(), std::ptr::null(), made, error)
    });
    let crate_outcome = SafeTensors::deserialize(bytes);
    match opened {
        Ok(opened) => {
            let parsed = crate_outcome.expect("the safetensors crate accepts the file, too");
            check_file(opened, bytes, &parsed);
            // SAFETY: this function owns the handle.
            unsafe { wb_safetensors_release(opened) };
        }
        Err(refused) => {
            let known = [WB_ERR_FILE_EMPTY, WB_ERR_FILE_TRUNCATED, WB_ERR_FORMAT];
            assert!(known.contains(&refused.status), "{refused:?}");
            if let Ok(parsed) = crate_outcome {
                assert!(is_stricter(bytes, &parsed), "{refused:?}");
            }
        }
    }
    c::check_nothing_left(device);
}

/// Whether the library refuses a file that the crate accepts: a name is duplicated or has a NUL, a shape is
/// not a valid layout, or an entry is not an object with the name of a type.
fn is_stricter(bytes: &[u8], parsed: &SafeTensors<'_>) -> bool {
    let names = names(header_of(bytes));
    let duplicated = names.iter().collect::<HashSet<_>>().len() < names.len();
    let entries: HashMap<String, Value> =
        serde_json::from_slice(header_of(bytes)).expect("the crate accepts it");
    let unusual = entries.iter().any(|(name, entry)| {
        name != "__metadata__" && entry.get("dtype").is_none_or(|d| !d.is_string())
    });
    duplicated
        || unusual
        || parsed.iter().any(|(name, tensor)| {
            let shape = tensor.shape();
            let all =
                shape.iter().try_fold(64u64, |all, size| all.checked_mul(*size.max(&1) as u64));
            name.contains('\0') || shape.len() > 64 || all.is_none_or(|bits| bits > 1 << 62)
        })
}

fn header_of(bytes: &[u8]) -> &[u8] {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    &bytes[8..8 + length as usize]
}

/// The names in a header, duplicates included.
fn names(json: &[u8]) -> Vec<String> {
    struct Names(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Names {
        fn deserialize<D: serde::Deserializer<'de>>(
            from: D,
        ) -> std::result::Result<Self, D::Error> {
            from.deserialize_map(Names(Vec::new()))
        }
    }
    impl<'de> serde::de::Visitor<'de> for Names {
        type Value = Self;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<M: serde::de::MapAccess<'de>>(
            mut self,
            mut map: M,
        ) -> std::result::Result<Self, M::Error> {
            while let Some((name, serde::de::IgnoredAny)) = map.next_entry()? {
                self.0.push(name);
            }
            Ok(self)
        }
    }
    serde_json::from_slice::<Names>(json).expect("the crate accepts it").0
}

/// Checks that the tensors of an open file are adjacent up to the file's end.
fn check_file(file: *const wb_safetensors, bytes: &[u8], parsed: &SafeTensors<'_>) {
    // SAFETY: the file is alive during this function, and so are its strings.
    unsafe {
        let count = wb_safetensors_get_tensor_count(file);
        assert_eq!(count as usize, parsed.len());
        let header = CStr::from_ptr(wb_safetensors_get_header(file)).to_bytes();
        assert_eq!(header, header_of(bytes));
        let names = names(header);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "names are unique");
        let buffer = c::make(|made, error| wb_safetensors_get_buffer(file, made, error))
            .expect("a file has a buffer");
        let mut whole: wb_buffer_info = c::sized();
        c::call(|error| wb_buffer_get_info(buffer, &raw mut whole, error)).expect("it has an info");
        assert_eq!(whole.asked_bytes, bytes.len() as u64);
        let mut next = 8 + header.len() as u64;
        for index in 0..count {
            let mut info: wb_safetensors_tensor_info = c::sized();
            c::call(|error| wb_safetensors_get_tensor_info(file, index, &raw mut info, error))
                .expect("the index is valid");
            assert_eq!(info.offset_bytes, next, "tensors are adjacent");
            next += info.bytes;
            check_tensor(file, index, &info, &whole, parsed);
        }
        assert_eq!(next, bytes.len() as u64, "the tensors end where the file does");
        wb_buffer_release(buffer);
    }
}

/// # Safety
/// The file is alive and has the tensor.
unsafe fn check_tensor(
    file: *const wb_safetensors,
    index: u64,
    info: &wb_safetensors_tensor_info,
    whole: &wb_buffer_info,
    parsed: &SafeTensors<'_>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let name = CStr::from_ptr(info.name).to_str().expect("names are UTF-8");
        let mut found = u64::MAX;
        c::call(|error| wb_safetensors_find_tensor(file, info.name, &raw mut found, error))
            .expect("it is found");
        assert_eq!(found, index, "{name:?}");
        let tensor = parsed.tensor(name).expect("the crate has the name, too");
        assert_eq!(tensor.data().len() as u64, info.bytes);
        let viewed = c::make(|made, error| {
            wb_safetensors_get_view(file, index, WB_ACCESSOR_HOST, 1, made, error)
        });
        if [0, WB_DTYPE_OPAQUE].contains(&info.dtype) {
            assert_eq!(viewed.expect_err("it has no dtype").status, WB_ERR_NOT_SUPPORTED);
            return;
        }
        let shape = match info.ndim {
            0 => &[],
            ndim => std::slice::from_raw_parts(info.shape, ndim as usize),
        };
        let mut shown: Vec<i64> = tensor.shape().iter().map(|size| *size as i64).collect();
        if info.dtype == WB_DTYPE_F4_E2M1X2 {
            *shown.last_mut().expect("a scalar cannot be packed") /= 2;
        }
        assert_eq!(shape, shown, "{name:?}");
        let element = DTYPE_BYTES[info.dtype as usize - 1] as u64;
        assert_eq!(oracle::elements(shape) * element, info.bytes, "{name:?}");
        let view = viewed.expect("the host can read the mapping");
        let mut view_info: wb_view_info = c::sized();
        c::call(|error| wb_view_get_info(view, &raw mut view_info, error)).expect("it has an info");
        assert_eq!(view_info.data as u64, whole.data as u64 + info.offset_bytes);
        wb_view_release(view);
    }
}
