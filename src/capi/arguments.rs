//! Reading what a C caller passes: structs by their size, strings, numbers of enums, outputs.

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use crate::device::policy::Tristate;
use crate::error::{Result, fail};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_STRUCT_SIZE};

/// A struct of the interface: `repr(C)`, plain data, its first field a `u32` of its size.
///
/// # Safety
/// The type is `repr(C)`, begins with `struct_size: u32`, and any bytes are a valid value.
pub(super) unsafe trait Sized32 {
    /// The struct's name in C.
    const NAME: &'static str;
}

/// The size that the caller wrote, if this library knows structs of that size.
///
/// # Safety
/// `given` is not NULL and points to a struct that begins with its size.
unsafe fn checked_size<T: Sized32>(given: *const T) -> Result<usize> {
    // SAFETY: the size is there (see above).
    let size = unsafe { *given.cast::<u32>() } as usize;
    let known = size_of::<T>();
    if size < size_of::<u32>() || size > known {
        let name = T::NAME;
        fail!(
            WB_ERR_STRUCT_SIZE,
            "{name}.struct_size is {size}; this library knows up to {known}: begin with the \
             struct's WB_*_INIT, and do not load a library that is older than the header"
        );
    }
    Ok(size)
}

/// Reads an input struct over `defaults`, which stay for the fields that an older header lacks.
///
/// # Safety
/// `given` is NULL or points to a live struct of the size that it begins with.
pub(super) unsafe fn read_struct<T: Sized32>(given: *const T, mut defaults: T) -> Result<T> {
    if given.is_null() {
        return Ok(defaults);
    }
    // SAFETY: not NULL, and the caller's promise.
    let size = unsafe { checked_size(given) }?;
    // SAFETY: both are valid for `size` bytes, and any bytes are a T (Sized32).
    unsafe { ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut defaults).cast(), size) };
    Ok(defaults)
}

/// Refuses an output struct that [`write_struct`] would, before any work is done.
///
/// # Safety
/// As for [`write_struct`].
pub(super) unsafe fn check_struct<T: Sized32>(to: *const T) -> Result<usize> {
    if to.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "the {} to fill is NULL", T::NAME);
    }
    // SAFETY: not NULL, and the caller's promise.
    unsafe { checked_size(to) }
}

/// Writes as much of an output struct as the caller's header knows, its size excepted.
///
/// # Safety
/// `to` is NULL or points to a live struct of the size that it begins with.
pub(super) unsafe fn write_struct<T: Sized32>(to: *mut T, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    let size = unsafe { check_struct(to) }?;
    let head = size_of::<u32>();
    // SAFETY: both are valid for `size` bytes, which is at least `head`.
    unsafe {
        let from = ptr::from_ref(value).cast::<u8>().add(head);
        ptr::copy_nonoverlapping(from, to.cast::<u8>().add(head), size - head);
    }
    Ok(())
}

/// Refuses a NULL output before any work is done.
pub(super) fn check_output<T>(output: *mut T, name: &str) -> Result<()> {
    if output.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "the output {name} is NULL");
    }
    Ok(())
}

/// The bytes of a string of the caller.
///
/// # Safety
/// `string` is NULL or NUL-terminated and lives as long as the result is used.
unsafe fn bytes<'a>(string: *const c_char, name: &str) -> Result<&'a [u8]> {
    if string.is_null() {
        fail!(WB_ERR_INVALID_ARGUMENT, "{name} is NULL");
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(string) }.to_bytes())
}

/// A text of the caller.
///
/// # Safety
/// As for [`bytes`].
pub(super) unsafe fn text<'a>(string: *const c_char, name: &str) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    match str::from_utf8(unsafe { bytes(string, name) }?) {
        Ok(text) => Ok(text),
        Err(_) => fail!(WB_ERR_INVALID_ARGUMENT, "{name} is not UTF-8"),
    }
}

/// A path of the caller: any bytes, as the kernel takes them.
///
/// # Safety
/// As for [`bytes`].
pub(super) unsafe fn path<'a>(string: *const c_char) -> Result<&'a Path> {
    // SAFETY: the caller's promise.
    Ok(Path::new(OsStr::from_bytes(unsafe { bytes(string, "path") }?)))
}

/// Looks a number up among the values that a field may have.
pub(super) fn one_of<T: Copy>(value: i32, field: &str, known: &[(i32, T)]) -> Result<T> {
    match known.iter().find(|(number, _)| *number == value) {
        Some((_, meaning)) => Ok(*meaning),
        None => {
            let numbers: Vec<_> = known.iter().map(|(number, _)| number).collect();
            fail!(WB_ERR_INVALID_ARGUMENT, "{field} is {value}; known are {numbers:?}")
        }
    }
}

/// A `wb_tristate`.
pub(super) fn choice(value: i32, field: &str) -> Result<Tristate> {
    use crate::capi::device::{WB_TRISTATE_AUTO, WB_TRISTATE_OFF, WB_TRISTATE_ON};
    one_of(
        value,
        field,
        &[
            (WB_TRISTATE_AUTO, Tristate::Auto),
            (WB_TRISTATE_ON, Tristate::On),
            (WB_TRISTATE_OFF, Tristate::Off),
        ],
    )
}

/// Refuses what is reserved for later.
pub(super) fn check_reserved(reserved: &[u64], name: &str) -> Result<()> {
    if reserved.iter().any(|field| *field != 0) {
        fail!(crate::status::WB_ERR_INVALID_ARGUMENT, "{name} has a reserved field that is not 0");
    }
    Ok(())
}
