//! [`Driver`]: the functions of the CUDA driver, loaded from `libcuda.so.1` at run time.
//!
//! Types and constants are cudarc's, but not the functions: a status must stay an integer, since a
//! code that an enum does not know would be undefined behaviour, and a function that an old driver
//! lacks must be an error with its name.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmemAccessDesc, CUmemAllocationProp,
    CUmodule, CUstream,
};
use once_cell::sync::OnceCell;

use crate::device::cuda::code;
use crate::error::{CodeDomain, Error, Result};
use crate::os::process::PerProcess;
use crate::status::{WB_ERR_DRIVER, WB_ERR_DRIVER_TOO_OLD, WB_ERR_NO_DRIVER};

/// The driver's file name on every machine; `libcuda.so` can be the stub of a toolkit.
const LIBRARY: &CStr = c"libcuda.so.1";

/// A host function that a stream calls.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// Returns the name or the description of a code. The errors of the table below use it.
type Explain = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

macro_rules! driver {
    ($($name:ident = $symbol:literal ($($argument:ident: $type:ty),*);)*) => {
        /// The functions of the installed driver.
        pub struct Driver {
            $($name: Option<unsafe extern "C" fn($($type),*) -> c_int>,)*
            error_name: Option<Explain>,
            error_text: Option<Explain>,
        }

        impl Driver {
            fn load(library: *mut c_void) -> Self {
                // SAFETY: the library is open for the life of the process, and a symbol of this
                // name has this type in every driver (the name carries its version).
                unsafe {
                    Self {
                        $($name: symbol(library, concat!($symbol, "\0")),)*
                        error_name: symbol(library, "cuGetErrorName\0"),
                        error_text: symbol(library, "cuGetErrorString\0"),
                    }
                }
            }

            /// The first of the named functions that the installed driver lacks.
            pub fn lacks(&self, symbols: &[&'static str]) -> Option<&'static str> {
                symbols.iter().copied().find(|symbol| match *symbol {
                    $($symbol => self.$name.is_none(),)*
                    _ => true,
                })
            }

            $(
                #[doc = concat!("`", $symbol, "`.")]
                ///
                /// # Safety
                /// The arguments are as the driver's documentation demands.
                #[allow(clippy::too_many_arguments)]
                pub unsafe fn $name(&self, $($argument: $type),*) -> Result<()> {
                    let Some(function) = self.$name else { return Err(missing($symbol)) };
                    // SAFETY: the caller's promise.
                    match unsafe { function($($argument),*) } {
                        0 => Ok(()),
                        code => Err(self.error($symbol, code)),
                    }
                }
            )*
        }
    };
}

driver! {
    init = "cuInit"(flags: c_uint);
    driver_version = "cuDriverGetVersion"(version: *mut c_int);
    device_count = "cuDeviceGetCount"(count: *mut c_int);
    device_get = "cuDeviceGet"(device: *mut CUdevice, ordinal: c_int);
    device_name = "cuDeviceGetName"(name: *mut c_char, bytes: c_int, device: CUdevice);
    device_attribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: c_int, device: CUdevice);
    device_pci_bus_id = "cuDeviceGetPCIBusId"(id: *mut c_char, bytes: c_int, device: CUdevice);
    primary_context_retain = "cuDevicePrimaryCtxRetain"(context: *mut CUcontext, device: CUdevice);
    primary_context_release = "cuDevicePrimaryCtxRelease_v2"(device: CUdevice);
    context_push = "cuCtxPushCurrent_v2"(context: CUcontext);
    context_pop = "cuCtxPopCurrent_v2"(context: *mut CUcontext);
    context_device = "cuCtxGetDevice"(device: *mut CUdevice);
    exchange_capture_mode = "cuThreadExchangeStreamCaptureMode"(mode: *mut c_int);
    memory_info = "cuMemGetInfo_v2"(free: *mut usize, total: *mut usize);
    memory_alloc = "cuMemAlloc_v2"(address: *mut CUdeviceptr, bytes: usize);
    memory_free = "cuMemFree_v2"(address: CUdeviceptr);
    host_alloc = "cuMemHostAlloc"(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
    host_free = "cuMemFreeHost"(memory: *mut c_void);
    host_register = "cuMemHostRegister_v2"(memory: *mut c_void, bytes: usize, flags: c_uint);
    host_unregister = "cuMemHostUnregister"(memory: *mut c_void);
    host_device_pointer =
        "cuMemHostGetDevicePointer_v2"(address: *mut CUdeviceptr, memory: *mut c_void, flags: c_uint);
    pointer_attribute =
        "cuPointerGetAttribute"(value: *mut c_void, attribute: c_int, address: CUdeviceptr);
    address_reserve = "cuMemAddressReserve"(
        address: *mut CUdeviceptr, bytes: usize, alignment: usize, wanted: CUdeviceptr, flags: u64);
    address_free = "cuMemAddressFree"(address: CUdeviceptr, bytes: usize);
    physical_create = "cuMemCreate"(
        handle: *mut u64, bytes: usize, properties: *const CUmemAllocationProp, flags: u64);
    physical_release = "cuMemRelease"(handle: u64);
    physical_granularity = "cuMemGetAllocationGranularity"(
        bytes: *mut usize, properties: *const CUmemAllocationProp, option: c_int);
    memory_map =
        "cuMemMap"(address: CUdeviceptr, bytes: usize, offset: usize, handle: u64, flags: u64);
    memory_unmap = "cuMemUnmap"(address: CUdeviceptr, bytes: usize);
    memory_set_access = "cuMemSetAccess"(
        address: CUdeviceptr, bytes: usize, access: *const CUmemAccessDesc, count: usize);
    copy_async =
        "cuMemcpyAsync"(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    stream_create = "cuStreamCreate"(stream: *mut CUstream, flags: c_uint);
    stream_destroy = "cuStreamDestroy_v2"(stream: CUstream);
    stream_synchronize = "cuStreamSynchronize"(stream: CUstream);
    stream_wait_event = "cuStreamWaitEvent"(stream: CUstream, event: CUevent, flags: c_uint);
    stream_id = "cuStreamGetId"(stream: CUstream, id: *mut u64);
    stream_capture = "cuStreamGetCaptureInfo_v2"(
        stream: CUstream, status: *mut c_int, id: *mut u64, graph: *mut c_void,
        dependencies: *mut c_void, count: *mut c_void);
    memset_async =
        "cuMemsetD8Async"(address: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    module_load = "cuModuleLoadData"(module: *mut CUmodule, image: *const c_void);
    module_unload = "cuModuleUnload"(module: CUmodule);
    module_function =
        "cuModuleGetFunction"(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    launch_kernel = "cuLaunchKernel"(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
        block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: CUstream,
        arguments: *mut *mut c_void, extra: *mut *mut c_void);
    launch_host_function =
        "cuLaunchHostFunc"(stream: CUstream, function: HostFunction, data: *mut c_void);
    event_create = "cuEventCreate"(event: *mut CUevent, flags: c_uint);
    event_destroy = "cuEventDestroy_v2"(event: CUevent);
    event_record = "cuEventRecord"(event: CUevent, stream: CUstream);
    event_query = "cuEventQuery"(event: CUevent);
    event_synchronize = "cuEventSynchronize"(event: CUevent);
    event_elapsed = "cuEventElapsedTime"(milliseconds: *mut f32, start: CUevent, end: CUevent);
}

/// Looks up a function of the library by its NUL-terminated name.
///
/// # Safety
/// `F` is an `extern "C"` function pointer of the symbol's type.
unsafe fn symbol<F: Copy>(library: *mut c_void, name: &'static str) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the library is open and the name ends in NUL.
    let found = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
    // SAFETY: a function pointer has the size of a pointer (asserted) and the caller named its
    // type.
    (!found.is_null()).then(|| unsafe { std::mem::transmute_copy(&found) })
}

fn missing(symbol: &str) -> Error {
    Error::new(
        WB_ERR_DRIVER_TOO_OLD,
        format!("the installed NVIDIA driver has no {symbol}: update it to R525 or later"),
    )
}

impl Driver {
    /// The driver of this process, loaded and initialised by the first call that succeeds.
    pub fn get() -> Result<&'static Self> {
        static DRIVER: PerProcess<OnceCell<Driver>> = PerProcess::new();
        DRIVER.get(|_| OnceCell::new()).get_or_try_init(|| {
            // SAFETY: the name is NUL-terminated; the driver's constructors run as in every CUDA
            // program.
            let library =
                unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if library.is_null() {
                return Err(no_driver());
            }
            let driver = Self::load(library);
            // SAFETY: cuInit takes 0 and may be called by any thread, any number of times.
            unsafe { driver.init(0) }?;
            Ok(driver)
        })
    }

    /// The error of a failed call: the function, and the name and description of the code.
    fn error(&self, symbol: &str, code: c_int) -> Error {
        // Not a failure, and in every step: it gets no message.
        if code == code::NOT_READY {
            return Error::new(WB_ERR_DRIVER, String::new()).with_code(CodeDomain::Cuda, code);
        }
        let name = self.describe(self.error_name, code).unwrap_or_else(|| "unknown code".into());
        let text = self.describe(self.error_text, code).unwrap_or_default();
        let mut message = format!("{symbol} returned {name} ({code}): {text}");
        if code == code::NOT_INITIALIZED {
            message += "; CUDA was initialised before a fork, and this is the child: open devices after \
                        fork, or start workers with spawn";
        }
        Error::new(code::status(symbol, code), message).with_code(CodeDomain::Cuda, code)
    }

    fn describe(&self, function: Option<Explain>, code: c_int) -> Option<String> {
        let mut text = std::ptr::null();
        // SAFETY: the driver stores a pointer to a constant string, or NULL for an unknown code.
        let result = unsafe { function?(code, &mut text) };
        // SAFETY: the driver's strings are NUL-terminated and live as long as the driver.
        (result == 0 && !text.is_null())
            .then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

fn no_driver() -> Error {
    // SAFETY: dlerror returns NULL or a NUL-terminated string, valid until this thread's next call.
    let found = unsafe { libc::dlerror() };
    let found = if found.is_null() {
        "not found".into()
    } else {
        // SAFETY: see above.
        unsafe { CStr::from_ptr(found) }.to_string_lossy()
    };
    Error::new(
        WB_ERR_NO_DRIVER,
        format!(
            "asked for a CUDA device; libcuda.so.1 could not be opened ({found}): install the \
             NVIDIA driver, or use the device \"host\""
        ),
    )
}
