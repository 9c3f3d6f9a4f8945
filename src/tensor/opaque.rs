//! Opaque types: names of element types that the library does not know, such as block-quantized
//! ones, with the size of their blocks. A type lives as long as the process, as the known ones do,
//! so that a [`Dtype`] stays a pointer; a process uses a handful.

use std::borrow::Cow;
use std::ffi::CString;

use once_cell::race::OnceBox;

use crate::error::{Result, fail};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED};
use crate::tensor::dlpack::DLDataType;
use crate::tensor::dtype::{Dtype, Entry, WB_DTYPE_OPAQUE};

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 63;
/// The most types of a process, so that names from files cannot fill the memory.
const MAX_TYPES: usize = 1024;

/// A type, and those that were first used after it. No lock: a forked child may use them, too.
struct Node {
    entry: Entry,
    next: OnceBox<Node>,
}

static FIRST: OnceBox<Node> = OnceBox::new();

impl Dtype {
    /// A type that the library does not know: blocks of `block` elements of the last dimension in
    /// `bytes` bytes each. The same for the same arguments. Fails with `WB_ERR_INVALID_ARGUMENT` for
    /// a name that a known type has.
    pub fn opaque(name: &str, block: u32, bytes: u32) -> Result<Self> {
        dtype(name, block, bytes)
    }
}

fn dtype(name: &str, block: u32, bytes: u32) -> Result<Dtype> {
    check(name, block, bytes)?;
    let matches = |entry: &Entry| {
        (entry.name.to_bytes(), entry.block, entry.bytes) == (name.as_bytes(), block, bytes)
    };
    let mut at = &FIRST;
    for _ in 0..MAX_TYPES {
        let node = match at.get() {
            Some(node) => node,
            None => at.get_or_init(|| Box::new(node_of(name, block, bytes))),
        };
        if matches(&node.entry) {
            return Ok(Dtype(&node.entry));
        }
        at = &node.next;
    }
    fail!(
        WB_ERR_NOT_SUPPORTED,
        "the process has used {MAX_TYPES} opaque types already, and {name:?} is another: use one name \
         for parameters of the same blocks"
    );
}

fn node_of(name: &str, block: u32, bytes: u32) -> Node {
    // Checked to have no NUL.
    let name = Cow::Owned(CString::new(name).unwrap_or_default());
    let dlpack = DLDataType { code: u8::MAX, bits: 0, lanes: 1 };
    let entry = Entry { code: WB_DTYPE_OPAQUE, name, bytes, block, dlpack, safetensors: "" };
    Node { entry, next: OnceBox::new() }
}

fn check(name: &str, block: u32, bytes: u32) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "{name:?} cannot name an opaque type: give 1 to {MAX_NAME_BYTES} bytes without control \
             characters, such as \"q4_K\""
        );
    }
    let known =
        Dtype::find(|entry| entry.name.to_bytes() == name.as_bytes() || entry.safetensors == name);
    if let Some(known) = known {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "the opaque type {name:?} has the name of a known type: give WB_DTYPE_* number {}",
            known.code()
        );
    }
    if block == 0 || bytes == 0 {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "the opaque type {name:?} has blocks of {block} elements in {bytes} bytes: give both"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_its_name_and_its_blocks() {
        let q4 = dtype("test_q4", 256, 144).unwrap();
        assert_eq!(q4, dtype("test_q4", 256, 144).unwrap());
        assert_ne!(q4, dtype("test_q4", 32, 18).unwrap());
        assert_ne!(q4, dtype("test_q5", 256, 144).unwrap());
        assert_eq!((q4.name(), q4.block_elements(), q4.bytes()), ("test_q4", 256, 144));
        assert!(q4.is_opaque() && q4.code() == WB_DTYPE_OPAQUE);
        // In another order, from several threads at once.
        let all: Vec<_> = (1..9).map(|bytes| dtype("test_many", 8, bytes).unwrap()).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for bytes in (1..9).rev() {
                        assert_eq!(dtype("test_many", 8, bytes).unwrap(), all[bytes as usize - 1]);
                    }
                });
            }
        });
    }

    #[test]
    fn names_of_known_types_and_unusable_names_are_rejected() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in ["", "bfloat16", "BF16", "F8_E4M3", "a\0b", "a\nb", &long] {
            let error = dtype(name, 1, 1).unwrap_err();
            assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT, "{name:?}");
        }
        assert_eq!(dtype("test_x", 0, 1).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
        assert_eq!(dtype("test_x", 1, 0).unwrap_err().status, WB_ERR_INVALID_ARGUMENT);
        assert!(dtype(&long[1..], 1, 1).is_ok());
    }
}
