//! The capabilities of a CUDA device: the driver's attributes, and one that is tried out.

use std::ffi::{CStr, c_char, c_void};
use std::fs;

use cudarc::driver::sys;
use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute};

use crate::device::backend::Capabilities;
use crate::device::cuda::addresses;
use crate::device::cuda::code;
use crate::device::cuda::context::Entered;
use crate::device::cuda::driver::Driver;
use crate::error::{Error, Result};
use crate::os::mapping::Mapping;
use crate::os::page::page_bytes;
use crate::os::{bytes, log, mapping, memlock};

/// Queries the driver. `read_only_register` is left to [`can_register_read_only`].
pub fn query(driver: &Driver, device: CUdevice, ordinal: i32) -> Result<Capabilities> {
    // An attribute that an older driver does not know is 0, so the capability is missing.
    let number = |attribute: Attribute| -> Result<i32> {
        let mut value = 0;
        // SAFETY: the pointer is to a live int.
        let result = unsafe { driver.device_attribute(&mut value, attribute as i32, device) };
        Ok(code::if_supported(result)?.map_or(0, |()| value))
    };
    let flag = |attribute| Ok::<_, Error>(number(attribute)? != 0);
    let mut driver_version = 0;
    // SAFETY: the pointer is to a live int.
    unsafe { driver.driver_version(&mut driver_version) }?;
    use Attribute as A;
    Ok(Capabilities {
        // SAFETY: the driver writes at most `bytes` bytes of the buffer, with a NUL.
        name: text(|buffer, bytes| unsafe { driver.device_name(buffer, bytes, device) })?,
        cuda: true,
        ordinal,
        driver_version,
        compute_capability: 10 * number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        unified_addressing: flag(A::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING)?,
        host_register: flag(A::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED)?,
        read_only_register_attribute: flag(
            A::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED,
        )?,
        read_only_register: false,
        pageable_access: flag(A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)?,
        integrated: flag(A::CU_DEVICE_ATTRIBUTE_INTEGRATED)?,
        numa_node: numa_node(driver, device),
        memlock_limit: memlock::lockable_bytes(),
        address_granularity: addresses::granularity(driver, device)?,
    })
}

/// Calls a function of the driver that writes a string.
fn text(call: impl FnOnce(*mut c_char, i32) -> Result<()>) -> Result<String> {
    let mut buffer = [0 as c_char; 256];
    call(buffer.as_mut_ptr(), buffer.len() as i32 - 1)?;
    // SAFETY: the buffer was zeroed and its last byte was not offered, so it ends in NUL.
    Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned())
}

fn numa_node(driver: &Driver, device: CUdevice) -> Option<u32> {
    // SAFETY: the driver writes at most `bytes` bytes of the buffer, with a NUL.
    let id =
        text(|buffer, bytes| unsafe { driver.device_pci_bus_id(buffer, bytes, device) }).ok()?;
    let path = format!("/sys/bus/pci/devices/{}/numa_node", id.to_ascii_lowercase());
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether a read-only page can be registered. It is tried on one, because the attribute is not
/// reliable across drivers. If this process cannot make such a page, the reason is logged.
pub fn can_register_read_only(entered: &Entered<'_>) -> Result<bool> {
    let bytes = page_bytes();
    let file = match mapping::memory_file(bytes as u64) {
        Err(error) if matches!(error.code, libc::EACCES | libc::EPERM | libc::ENOSYS) => {
            log::record(&error);
            return Ok(false);
        }
        file => file?,
    };
    let mapping = Mapping::file(&file, 0, bytes)?;
    bytes::fault_in(mapping.span(), false)?;
    let page = mapping.span().start() as *mut c_void;
    let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_READ_ONLY;
    // SAFETY: the page is mapped until after it is unregistered.
    let result = unsafe { entered.driver.host_register(page, bytes, flags) };
    if code::if_supported(result)?.is_none() {
        return Ok(false);
    }
    // SAFETY: registered above.
    match unsafe { entered.driver.host_unregister(page) } {
        Err(error) if code::is_lost(error.code) => return Err(error),
        // The address of a page that the driver still holds must not be reused.
        Err(error) => {
            log::record(&error);
            std::mem::forget(mapping);
        }
        Ok(()) => {}
    }
    Ok(true)
}
