//! CUDA devices, through the driver API.

use std::ffi::{CStr, c_char, c_void};
use std::{fs, ptr};

use cudarc::driver::sys;
use cudarc::driver::sys::{
    CUdevice, CUdevice_attribute as Attribute, CUpointer_attribute as PointerAttribute,
};

use crate::device::backend::{Backend, Capabilities, Event, HostWork, PinOptions, Pinned, Stream};
use crate::device::cuda::context::{Context, Entered};
use crate::device::cuda::driver::{Driver, code};
use crate::device::cuda::event::CudaEvent;
use crate::device::cuda::kernels::Kernels;
use crate::device::kernel::Kernel;
use crate::device::registry::Registry;
use crate::error::{CodeDomain, Error, Result, fail};
use crate::os::mapping::Mapping;
use crate::os::page::page_bytes;
use crate::os::process::PerProcess;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::os::{bytes, log, mapping, memlock};
use crate::status::{
    WB_ERR_ALREADY_REGISTERED, WB_ERR_DRIVER_TOO_OLD, WB_ERR_INVALID_ARGUMENT, WB_ERR_NO_DEVICE,
};

static REGISTRY: PerProcess<Registry> = PerProcess::new();

/// How many CUDA devices there are.
pub fn device_count() -> Result<i32> {
    let mut count = 0;
    // SAFETY: the pointer is to a live int.
    unsafe { Driver::get()?.device_count(&mut count) }?;
    Ok(count)
}

/// A CUDA device with its primary context, or in a context of the caller.
pub struct CudaDevice {
    context: Arc<Context>,
    capabilities: Capabilities,
    registry: &'static Registry,
    kernels: Kernels,
}

impl CudaDevice {
    /// Opens the device of an ordinal. `context` is the caller's `CUcontext`, or 0.
    pub fn open(ordinal: i32, context: usize) -> Result<Self> {
        let driver = Driver::get()?;
        let count = device_count()?;
        if ordinal >= count {
            fail!(
                WB_ERR_NO_DEVICE,
                "asked for cuda:{ordinal}; this machine has {count} CUDA devices (is \
                 CUDA_VISIBLE_DEVICES set?)"
            );
        }
        let mut device = 0;
        // SAFETY: the pointer is to a live CUdevice.
        unsafe { driver.device_get(&mut device, ordinal) }?;
        let context = match context {
            0 => Context::primary(driver, device)?,
            raw => Context::of_caller(driver, device, raw as sys::CUcontext),
        };
        let mut capabilities = facts_of(driver, device, ordinal)?;
        {
            let entered = context.enter()?;
            let mut current = -1;
            // SAFETY: the pointer is to a live CUdevice; a context is current.
            unsafe { driver.context_device(&mut current) }?;
            if current != device {
                fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "the given context belongs to cuda:{current}, not to cuda:{ordinal}"
                );
            }
            capabilities.read_only_register = probe_read_only(&entered)?;
        }
        let kernels = Kernels::new(capabilities.compute_capability);
        let registry = REGISTRY.get(|_| Registry::new());
        Ok(Self { context: Arc::new(context), capabilities, registry, kernels })
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        self.kernels.unload(&self.context);
    }
}

fn facts_of(driver: &Driver, device: CUdevice, ordinal: i32) -> Result<Capabilities> {
    // An attribute that an older driver does not know is 0: what it names is not there.
    let number = |attribute: Attribute| -> Result<i32> {
        let mut value = 0;
        // SAFETY: the pointer is to a live int.
        let answer = unsafe { driver.device_attribute(&mut value, attribute as i32, device) };
        Ok(unless_refused(answer)?.map_or(0, |()| value))
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
    })
}

/// Asks the driver for a string.
fn text(ask: impl FnOnce(*mut c_char, i32) -> Result<()>) -> Result<String> {
    let mut buffer = [0 as c_char; 256];
    ask(buffer.as_mut_ptr(), buffer.len() as i32 - 1)?;
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

/// Whether a read-only page can be registered: tried on one, since the attribute alone is not
/// reliable across drivers. Where this process may make no such page the answer is no, and the log
/// says why.
fn probe_read_only(entered: &Entered<'_>) -> Result<bool> {
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
    let answer = unsafe { entered.driver.host_register(page, bytes, flags) };
    if unless_refused(answer)?.is_none() {
        return Ok(false);
    }
    // SAFETY: registered above.
    match unsafe { entered.driver.host_unregister(page) } {
        Err(error) if code::is_lost(error.code) => return Err(error),
        // A page that the driver still holds must not go to somebody else.
        Err(error) => {
            log::record(&error);
            std::mem::forget(mapping);
        }
        Ok(()) => {}
    }
    Ok(true)
}

/// `None` where the driver says that it cannot do this at all; what went wrong stays an error.
fn unless_refused<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status == WB_ERR_DRIVER_TOO_OLD => Ok(None),
        Err(error) => match error.code {
            code::INVALID_VALUE
            | code::OPERATING_SYSTEM
            | code::NOT_PERMITTED
            | code::NOT_SUPPORTED => Ok(None),
            _ => Err(error),
        },
    }
}

/// Start or bytes of the driver's range around an address; an error where it knows none.
fn range(driver: &Driver, attribute: PointerAttribute, address: usize) -> Result<usize> {
    let mut value = 0usize;
    // SAFETY: both attributes of ranges are as wide as a pointer; an unknown address is an error.
    unsafe { driver.pointer_attribute((&raw mut value).cast(), attribute as i32, address as u64) }?;
    Ok(value)
}

/// The error for memory that somebody else registered or the driver allocated: it answers with
/// different codes, of which most say only that an argument is invalid.
fn known_already(driver: &Driver, span: Span) -> Option<Error> {
    [span.start(), span.end() - 1].into_iter().find_map(|address| {
        use PointerAttribute as P;
        let start = range(driver, P::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address).ok()?;
        let bytes = range(driver, P::CU_POINTER_ATTRIBUTE_RANGE_SIZE, address).ok()?;
        let message = format!(
            "asked to register {:#x}..{:#x}; it overlaps {start:#x}..{:#x}, which the driver has \
             registered or allocated for somebody else: use it as it is",
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

/// Waits for what is queued. A context is current.
fn wait_by_device_memory(driver: &Driver) -> Result<()> {
    let mut address = 0;
    // SAFETY: the pointer receives the address.
    unsafe { driver.memory_alloc(&mut address, 1) }?;
    // SAFETY: allocated above, and nobody else knows of it.
    unsafe { driver.memory_free(address) }.inspect_err(kept_by_the_driver)
}

/// The same, where there is no device memory.
fn wait_by_host_memory(driver: &Driver) -> Result<()> {
    let mut memory = ptr::null_mut();
    // SAFETY: the pointer receives the memory.
    unsafe { driver.host_alloc(&mut memory, page_bytes(), 0) }?;
    // SAFETY: allocated above, and nobody else knows of it.
    unsafe { driver.host_free(memory) }.inspect_err(kept_by_the_driver)
}

/// Records what the driver did not take back, though the wait may succeed in the other way.
fn kept_by_the_driver(error: &Error) {
    if !code::is_lost(error.code) {
        log::record(error);
    }
}

/// Device address and bytes of pinned memory, as the driver tells them.
fn pinned(driver: &Driver, span: Span, options: PinOptions) -> Result<Pinned> {
    let device_address = if options.mapped {
        let mut address = 0;
        // SAFETY: the pointer is to a live address; the memory is pinned.
        let answer =
            unsafe { driver.host_device_pointer(&mut address, span.start() as *mut c_void, 0) };
        unless_refused(answer)?.map(|()| address)
    } else {
        None
    };
    let bytes = range(driver, PointerAttribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE, span.start())?;
    Ok(Pinned { device_address, bytes: bytes as u64 })
}

impl Backend for CudaDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn registry(&self) -> &'static Registry {
        self.registry
    }

    fn check_process(&self) -> Result<()> {
        self.context.process.check()
    }

    fn is_lost(&self) -> bool {
        self.context.is_lost()
    }

    fn with_context(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _entered = self.context.enter()?;
        work()
    }

    /// By a byte of device memory, or a page of pinned memory: giving one back waits for all that is
    /// queued. cuCtxSynchronize would as well, but spoils the captures of other streams.
    fn wait_idle(&self) -> Result<()> {
        if !self.context.process.is_current() {
            return Ok(());
        }
        let entered = self.context.enter()?;
        wait_by_device_memory(entered.driver).or_else(|_| wait_by_host_memory(entered.driver))
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let entered = self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live sizes; a context is current.
        unsafe { entered.driver.memory_info(&mut free, &mut total) }?;
        Ok((free as u64, total as u64))
    }

    fn pin(&self, span: Span, options: PinOptions) -> Result<()> {
        let entered = self.context.enter()?;
        let mut flags = 0;
        for (wanted, flag) in [
            (options.portable, sys::CU_MEMHOSTREGISTER_PORTABLE),
            (options.mapped, sys::CU_MEMHOSTREGISTER_DEVICEMAP),
            (options.read_only, sys::CU_MEMHOSTREGISTER_READ_ONLY),
        ] {
            flags |= if wanted { flag } else { 0 };
        }
        let memory = span.start() as *mut c_void;
        // SAFETY: the span stays mapped until it is unpinned (Span's promise, kept by Buffer).
        unsafe { entered.driver.host_register(memory, span.bytes(), flags) }.map_err(|error| {
            match error.code {
                code::INVALID_VALUE | code::HOST_MEMORY_ALREADY_REGISTERED => {
                    known_already(entered.driver, span).unwrap_or(error)
                }
                _ => error,
            }
        })
    }

    fn pinned(&self, span: Span, options: PinOptions) -> Result<Pinned> {
        pinned(self.context.enter()?.driver, span, options)
    }

    fn unpin(&self, span: Span) -> Result<()> {
        if !self.context.process.is_current() {
            return Ok(());
        }
        unless_lost(self.context.enter().and_then(|entered| {
            // SAFETY: the span was registered by pin() and is unregistered once.
            unsafe { entered.driver.host_unregister(span.start() as *mut c_void) }
        }))
    }

    fn alloc_pinned(&self, bytes: usize, options: PinOptions) -> Result<(Span, Pinned)> {
        let entered = self.context.enter()?;
        let mut flags = 0;
        for (wanted, flag) in [
            (options.portable, sys::CU_MEMHOSTALLOC_PORTABLE),
            (options.mapped, sys::CU_MEMHOSTALLOC_DEVICEMAP),
            (options.write_combined, sys::CU_MEMHOSTALLOC_WRITECOMBINED),
        ] {
            flags |= if wanted { flag } else { 0 };
        }
        let mut memory = ptr::null_mut();
        // SAFETY: the pointer receives the memory.
        unsafe { entered.driver.host_alloc(&mut memory, bytes, flags) }?;
        // SAFETY: the driver mapped `bytes` bytes there until free_pinned().
        let span = unsafe { Span::new(memory as usize, bytes) };
        let pinned = pinned(entered.driver, span, options).inspect_err(|_| {
            // SAFETY: allocated above; nothing was given out.
            let _ = unsafe { entered.driver.host_free(memory) };
        })?;
        Ok((span, pinned))
    }

    fn free_pinned(&self, span: Span) -> Result<()> {
        if !self.context.process.is_current() {
            return Ok(());
        }
        unless_lost(self.context.enter().and_then(|entered| {
            // SAFETY: allocated by alloc_pinned() and freed once.
            unsafe { entered.driver.host_free(span.start() as *mut c_void) }
        }))
    }

    fn alloc(&self, bytes: usize) -> Result<Span> {
        let entered = self.context.enter()?;
        let mut address = 0;
        // SAFETY: the pointer receives the address.
        unsafe { entered.driver.memory_alloc(&mut address, bytes) }?;
        // SAFETY: the driver gave `bytes` bytes there until free().
        Ok(unsafe { Span::new(address as usize, bytes) })
    }

    fn free(&self, address: u64) -> Result<()> {
        unless_lost(self.context.enter().and_then(|entered| {
            // SAFETY: the driver refuses an address that it did not give out.
            unsafe { entered.driver.memory_free(address) }
        }))
    }

    fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()> {
        let entered = self.context.enter()?;
        let (to, from, bytes) = (to.start() as u64, from.start() as u64, to.bytes());
        // SAFETY: both spans are valid until the stream has run the copy (Span's promise).
        unsafe { entered.driver.copy_async(to, from, bytes, stream.0 as sys::CUstream) }
    }

    fn launch(&self, kernel: Kernel, stream: Stream) -> Result<()> {
        self.kernels.launch(&self.context, kernel, stream)
    }

    fn new_stream(&self) -> Result<Stream> {
        const NON_BLOCKING: u32 = 1;
        let entered = self.context.enter()?;
        let mut stream = ptr::null_mut();
        // SAFETY: the pointer receives the stream.
        unsafe { entered.driver.stream_create(&mut stream, NON_BLOCKING) }?;
        Ok(Stream(stream as usize))
    }

    fn release_stream(&self, stream: Stream) -> Result<()> {
        unless_lost(self.context.enter().and_then(|entered| {
            // SAFETY: the caller gives back a stream of new_stream(), once.
            unsafe { entered.driver.stream_destroy(stream.0 as sys::CUstream) }
        }))
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let entered = self.context.enter()?;
        // SAFETY: the caller's stream is alive.
        unsafe { entered.driver.stream_synchronize(stream.0 as sys::CUstream) }
    }

    fn call(&self, stream: Stream, work: Box<dyn FnOnce() + Send>) -> Result<()> {
        let entered = self.context.enter()?;
        let data = Box::into_raw(Box::new(work));
        // SAFETY: run_work takes the box back, once, when the stream gets there.
        let queued = unsafe {
            entered.driver.launch_host_function(stream.0 as sys::CUstream, run_work, data.cast())
        };
        queued.inspect_err(|_| {
            // SAFETY: the driver refused, so run_work will not be called.
            drop(unsafe { Box::from_raw(data) });
        })
    }

    fn call_shared(&self, stream: Stream, work: &Arc<HostWork>) -> Result<()> {
        let entered = self.context.enter()?;
        let data = Arc::as_ptr(work).cast_mut().cast();
        // SAFETY: the owner keeps the work until nothing can run it any more.
        unsafe {
            entered.driver.launch_host_function(stream.0 as sys::CUstream, run_kept_work, data)
        }
    }

    fn new_event(&self, timed: bool) -> Result<Box<dyn Event>> {
        Ok(Box::new(CudaEvent::new(&self.context, timed)?))
    }

    fn capture(&self, stream: Stream) -> Result<Option<u64>> {
        let entered = self.context.enter()?;
        let (mut status, mut id) = (0, 0);
        let none = ptr::null_mut();
        // SAFETY: the pointers are to live numbers or NULL where the driver allows it; the caller's
        // stream is alive.
        unsafe {
            let stream = stream.0 as sys::CUstream;
            entered.driver.stream_capture(stream, &mut status, &mut id, none, none, none)
        }?;
        Ok((status != 0).then_some(id))
    }

    fn is_pinned(&self, span: Span) -> Result<bool> {
        let pinned = |address: usize| -> Result<bool> {
            let kind = self.memory_kind(address as u64)?;
            Ok(kind == sys::CUmemorytype::CU_MEMORYTYPE_HOST as u32)
        };
        Ok(span.bytes() == 0 || (pinned(span.start())? && pinned(span.end() - 1)?))
    }

    fn is_device_memory(&self, address: u64) -> Result<bool> {
        Ok(self.memory_kind(address)? == sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32)
    }
}

impl CudaDevice {
    /// A `CUmemorytype`; 0 for memory that the driver does not know.
    fn memory_kind(&self, address: u64) -> Result<u32> {
        let entered = self.context.enter()?;
        let mut kind = 0u32;
        // SAFETY: the attribute is a 32-bit number; an address unknown to the driver is an error.
        let found = unsafe {
            entered.driver.pointer_attribute(
                (&raw mut kind).cast(),
                PointerAttribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as i32,
                address,
            )
        };
        match found {
            Ok(()) => Ok(kind),
            Err(error) if error.code == code::INVALID_VALUE => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// The trampoline of [`CudaDevice::call_shared`].
unsafe extern "C" fn run_kept_work(data: *mut c_void) {
    // SAFETY: call_shared() gave this pointer to the driver, and the work's owner keeps it.
    let work = unsafe { &*data.cast::<HostWork>() };
    // A panic must not unwind into the driver.
    log::best_effort(|| {
        (work.0)();
        Ok(())
    });
}

/// The trampoline of [`CudaDevice::call`].
unsafe extern "C" fn run_work(data: *mut c_void) {
    // SAFETY: call() gave this pointer to the driver for one call.
    let work = unsafe { Box::from_raw(data.cast::<Box<dyn FnOnce() + Send>>()) };
    // A panic must not unwind into the driver.
    log::best_effort(|| {
        work();
        Ok(())
    });
}

/// At the end of the process, or once the engine destroyed its context, there is nothing left to
/// give back: the driver did.
fn unless_lost(answer: Result<()>) -> Result<()> {
    answer.or_else(|error| if code::is_lost(error.code) { Ok(()) } else { Err(error) })
}
