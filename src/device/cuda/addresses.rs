//! Address ranges and the physical memory behind them: the driver's virtual memory management.

use std::ptr;

use cudarc::driver::sys;
use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute, CUmemAllocationProp};

use crate::device::backend::{Granularity, PhysicalHandle, PhysicalKind};
use crate::device::cuda::code;
use crate::device::cuda::context::Entered;
use crate::device::cuda::driver::Driver;
use crate::error::{Error, Result};
use crate::os::span::Span;
use crate::status::WB_ERR_OUT_OF_MEMORY;

/// What address ranges need, all since CUDA 10.2.
const FUNCTIONS: [&str; 8] = [
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemGetAllocationGranularity",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
];

/// The least granularity. Source: the CUDA driver API, `CUmemAllocationGranularity_flags`.
const MINIMUM: i32 = 0;

/// Whether host memory of a NUMA node can be behind a range, since CUDA 12.9. Source: the CUDA driver
/// API, `CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`.
const HOST_NUMA_ATTRIBUTE: i32 = 141;

/// Queries an attribute, which is 0 for a driver that does not know it.
fn number(driver: &Driver, device: CUdevice, attribute: i32) -> Result<i32> {
    let mut value = 0;
    // SAFETY: the pointer is to a live int.
    let result = unsafe { driver.device_attribute(&mut value, attribute, device) };
    Ok(code::if_supported(result)?.map_or(0, |()| value))
}

/// The granularity for device and host memory alike, or why there are no address ranges.
pub fn granularity(driver: &Driver, device: CUdevice) -> Result<Granularity> {
    if let Some(symbol) = driver.lacks(&FUNCTIONS) {
        let reason = format!("the installed NVIDIA driver has no {symbol}: update it");
        return Ok(Granularity::Unavailable(reason));
    }
    for (attribute, name) in [
        (
            Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED as i32,
            "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED",
        ),
        (HOST_NUMA_ATTRIBUTE, "HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"),
    ] {
        if number(driver, device, attribute)? == 0 {
            let reason = format!("the driver's attribute {name} is 0 for this device");
            return Ok(Granularity::Unavailable(reason));
        }
    }
    let addresses = Addresses::new(driver, device)?;
    let mut largest = 0;
    for kind in [PhysicalKind::Device, PhysicalKind::Host] {
        let mut bytes = 0;
        let properties = addresses.properties(kind);
        // SAFETY: the pointers are to a live size and live properties.
        let asked = unsafe { driver.physical_granularity(&mut bytes, &properties, MINIMUM) };
        if code::if_supported(asked)?.is_none() || !bytes.is_power_of_two() {
            let reason =
                format!("the driver has no granularity of {kind:?} memory for this device");
            return Ok(Granularity::Unavailable(reason));
        }
        largest = largest.max(bytes as u64);
    }
    Ok(Granularity::Bytes(largest))
}

/// Where a device's physical memory is created.
pub struct Addresses {
    device: CUdevice,
    /// The NUMA node of host memory.
    node: i32,
}

impl Addresses {
    /// Those of a device.
    pub fn new(driver: &Driver, device: CUdevice) -> Result<Self> {
        let node = number(driver, device, Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID as i32)?;
        Ok(Self { device, node: node.max(0) })
    }

    fn location(&self, kind: PhysicalKind) -> sys::CUmemLocation {
        use sys::CUmemLocationType as Type;
        match kind {
            PhysicalKind::Device => {
                sys::CUmemLocation { type_: Type::CU_MEM_LOCATION_TYPE_DEVICE, id: self.device }
            }
            PhysicalKind::Host => {
                sys::CUmemLocation { type_: Type::CU_MEM_LOCATION_TYPE_HOST_NUMA, id: self.node }
            }
        }
    }

    fn properties(&self, kind: PhysicalKind) -> CUmemAllocationProp {
        CUmemAllocationProp {
            type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: self.location(kind),
            win32HandleMetaData: ptr::null_mut(),
            allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        }
    }

    /// Creates physical memory.
    pub fn create(
        &self,
        entered: &Entered<'_>,
        bytes: usize,
        kind: PhysicalKind,
    ) -> Result<PhysicalHandle> {
        let (mut handle, properties) = (0, self.properties(kind));
        // SAFETY: the pointers are to a live handle and live properties.
        let created = unsafe { entered.driver.physical_create(&mut handle, bytes, &properties, 0) };
        match created {
            Err(error) if kind == PhysicalKind::Host && error.code == code::OUT_OF_MEMORY => {
                Err(Error { status: WB_ERR_OUT_OF_MEMORY, ..error })
            }
            created => created.map(|()| PhysicalHandle(handle)),
        }
    }

    /// Maps physical memory, and lets the device read and write it.
    pub fn map(&self, entered: &Entered<'_>, at: Span, memory: PhysicalHandle) -> Result<()> {
        let (address, bytes) = (at.start() as u64, at.bytes());
        // SAFETY: the range is a reserved one without memory, and the memory has as many bytes
        // (AddressRange's invariants); the driver refuses both otherwise.
        unsafe { entered.driver.memory_map(address, bytes, 0, memory.0, 0) }?;
        let access = sys::CUmemAccessDesc {
            location: self.location(PhysicalKind::Device),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: mapped above; the pointer is to one live description.
        let accessible = unsafe { entered.driver.memory_set_access(address, bytes, &access, 1) };
        accessible.inspect_err(|_| code::log_unless_lost(unmap(entered, at)))
    }
}

/// Reserves addresses.
pub fn reserve(entered: &Entered<'_>, bytes: usize) -> Result<Span> {
    let mut address = 0;
    // SAFETY: the pointer receives the address.
    unsafe { entered.driver.address_reserve(&mut address, bytes, 0, 0, 0) }?;
    // SAFETY: reserved until free_reserved(); what is used of it is mapped (AddressRange's
    // invariant), and the device faults on the rest.
    Ok(unsafe { Span::new(address as usize, bytes) })
}

/// Releases addresses of [`reserve`].
pub fn free_reserved(entered: &Entered<'_>, range: Span) -> Result<()> {
    // SAFETY: reserved by reserve() and released once.
    unsafe { entered.driver.address_free(range.start() as u64, range.bytes()) }
}

/// Releases physical memory.
pub fn release(entered: &Entered<'_>, memory: PhysicalHandle) -> Result<()> {
    // SAFETY: created by Addresses::create() and released once.
    unsafe { entered.driver.physical_release(memory.0) }
}

/// Takes memory from its addresses.
pub fn unmap(entered: &Entered<'_>, at: Span) -> Result<()> {
    // SAFETY: mapped by Addresses::map() in one call; nothing uses it any more (the caller's
    // promise).
    unsafe { entered.driver.memory_unmap(at.start() as u64, at.bytes()) }
}
