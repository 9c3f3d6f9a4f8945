//! Host and device memory of a context: pinning, allocation, copies, and queries by address.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;
use cudarc::driver::sys::CUpointer_attribute as Attribute;

use crate::device::backend::{PinOptions, Pinned, Stream};
use crate::device::cuda::code;
use crate::device::cuda::context::Entered;
use crate::device::cuda::driver::Driver;
use crate::error::{CodeDomain, Error, Result};
use crate::os::page::page_bytes;
use crate::os::span::Span;
use crate::status::WB_ERR_ALREADY_REGISTERED;

/// The flags whose option is set.
fn flags<const N: usize>(options: [(bool, u32); N]) -> u32 {
    options.into_iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag)
}

/// Registers existing memory.
pub fn pin(entered: &Entered<'_>, span: Span, options: PinOptions) -> Result<()> {
    let flags = flags([
        (options.portable, sys::CU_MEMHOSTREGISTER_PORTABLE),
        (options.mapped, sys::CU_MEMHOSTREGISTER_DEVICEMAP),
        (options.read_only, sys::CU_MEMHOSTREGISTER_READ_ONLY),
    ]);
    let memory = span.start() as *mut c_void;
    // SAFETY: the span stays mapped until it is unpinned (Span's promise, kept by Buffer).
    unsafe { entered.driver.host_register(memory, span.bytes(), flags) }.map_err(
        |error| match error.code {
            code::INVALID_VALUE | code::HOST_MEMORY_ALREADY_REGISTERED => {
                overlap(entered.driver, span).unwrap_or(error)
            }
            _ => error,
        },
    )
}

/// The error for memory that was registered or allocated outside of this library. The driver has
/// several codes for it, most of which say only that an argument is invalid.
fn overlap(driver: &Driver, span: Span) -> Option<Error> {
    [span.start(), span.end() - 1].into_iter().find_map(|address| {
        let start =
            range(driver, Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address).ok()?;
        let bytes = range(driver, Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE, address).ok()?;
        let message = format!(
            "asked to register {:#x}..{:#x}; it overlaps {start:#x}..{:#x}, which the driver has \
             registered or allocated outside of weighbridge: use it without registering it",
            span.start(),
            span.end(),
            start + bytes
        );
        Some(
            Error::new(WB_ERR_ALREADY_REGISTERED, message)
                .with_code(CodeDomain::Cuda, code::HOST_MEMORY_ALREADY_REGISTERED),
        )
    })
}

/// Start or bytes of the driver's range that contains an address; an error if there is none.
fn range(driver: &Driver, attribute: Attribute, address: usize) -> Result<usize> {
    let mut value = 0usize;
    // SAFETY: both attributes of ranges are as wide as a pointer; an unknown address is an error.
    unsafe { driver.pointer_attribute((&raw mut value).cast(), attribute as i32, address as u64) }?;
    Ok(value)
}

/// Queries device address and bytes of pinned memory.
pub fn pinned(entered: &Entered<'_>, span: Span, options: PinOptions) -> Result<Pinned> {
    let device_address = if options.mapped {
        let (mut address, memory) = (0, span.start() as *mut c_void);
        // SAFETY: the pointer is to a live address; the memory is pinned.
        let result = unsafe { entered.driver.host_device_pointer(&mut address, memory, 0) };
        code::if_supported(result)?.map(|()| address)
    } else {
        None
    };
    let bytes = range(entered.driver, Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE, span.start())?;
    Ok(Pinned { device_address, bytes: bytes as u64 })
}

/// Unregisters a span of [`pin`].
pub fn unpin(entered: &Entered<'_>, span: Span) -> Result<()> {
    // SAFETY: the span was registered by pin() and is unregistered once.
    unsafe { entered.driver.host_unregister(span.start() as *mut c_void) }
}

/// Allocates pinned memory.
pub fn alloc_pinned(
    entered: &Entered<'_>,
    bytes: usize,
    options: PinOptions,
) -> Result<(Span, Pinned)> {
    let flags = flags([
        (options.portable, sys::CU_MEMHOSTALLOC_PORTABLE),
        (options.mapped, sys::CU_MEMHOSTALLOC_DEVICEMAP),
        (options.write_combined, sys::CU_MEMHOSTALLOC_WRITECOMBINED),
    ]);
    let mut memory = ptr::null_mut();
    // SAFETY: the pointer receives the memory.
    unsafe { entered.driver.host_alloc(&mut memory, bytes, flags) }?;
    // SAFETY: the driver mapped `bytes` bytes there until free_pinned().
    let span = unsafe { Span::new(memory as usize, bytes) };
    let pinned = pinned(entered, span, options).inspect_err(|_| {
        // SAFETY: allocated above and not returned.
        let _ = unsafe { entered.driver.host_free(memory) };
    })?;
    Ok((span, pinned))
}

/// Frees memory of [`alloc_pinned`].
pub fn free_pinned(entered: &Entered<'_>, span: Span) -> Result<()> {
    // SAFETY: allocated by alloc_pinned() and freed once.
    unsafe { entered.driver.host_free(span.start() as *mut c_void) }
}

/// Allocates device memory.
pub fn alloc(entered: &Entered<'_>, bytes: usize) -> Result<Span> {
    let mut address = 0;
    // SAFETY: the pointer receives the address.
    unsafe { entered.driver.memory_alloc(&mut address, bytes) }?;
    // SAFETY: the driver allocated `bytes` bytes there until free().
    Ok(unsafe { Span::new(address as usize, bytes) })
}

/// Frees memory of [`alloc`].
pub fn free(entered: &Entered<'_>, address: u64) -> Result<()> {
    // SAFETY: the driver rejects an address that it did not allocate.
    unsafe { entered.driver.memory_free(address) }
}

/// Free and total bytes of device memory.
pub fn sizes(entered: &Entered<'_>) -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: the pointers are to live sizes; a context is current.
    unsafe { entered.driver.memory_info(&mut free, &mut total) }?;
    Ok((free as u64, total as u64))
}

/// Queues a copy.
pub fn copy(entered: &Entered<'_>, to: Span, from: Span, stream: Stream) -> Result<()> {
    let (to, from, bytes) = (to.start() as u64, from.start() as u64, to.bytes());
    // SAFETY: both spans are valid until the stream has run the copy (Span's promise).
    unsafe { entered.driver.copy_async(to, from, bytes, stream.0 as sys::CUstream) }
}

/// Waits for all queued work of the context by allocating and freeing a byte of device memory or,
/// if there is none, a page of pinned memory: a free waits. cuCtxSynchronize would invalidate
/// captures of other streams.
pub fn wait_idle(entered: &Entered<'_>) -> Result<()> {
    let by_device_memory = || {
        let span = alloc(entered, 1)?;
        free(entered, span.start() as u64).inspect_err(log_leak)
    };
    let by_host_memory = || {
        let mut memory = ptr::null_mut();
        // SAFETY: the pointer receives the memory.
        unsafe { entered.driver.host_alloc(&mut memory, page_bytes(), 0) }?;
        // SAFETY: allocated above and not returned.
        unsafe { entered.driver.host_free(memory) }.inspect_err(log_leak)
    };
    by_device_memory().or_else(|_| by_host_memory())
}

/// Logs a failed free of [`wait_idle`], which can succeed by the other memory.
fn log_leak(error: &Error) {
    code::log_unless_lost(Err(error.clone()));
}

/// The `CUmemorytype` of an address; 0 if the driver does not know the memory.
pub fn kind(entered: &Entered<'_>, address: u64) -> Result<u32> {
    let attribute = Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as i32;
    let mut kind = 0u32;
    // SAFETY: the attribute is a 32-bit number; an unknown address is an error.
    match unsafe { entered.driver.pointer_attribute((&raw mut kind).cast(), attribute, address) } {
        Ok(()) => Ok(kind),
        Err(error) if error.code == code::INVALID_VALUE => Ok(0),
        Err(error) => Err(error),
    }
}
