//! [`CudaDevice`]: a CUDA device, through the driver API.

use cudarc::driver::sys::{CUcontext, CUmemorytype};

use crate::device::backend::{
    Backend, Capabilities, Event, HostWork, PhysicalHandle, PhysicalKind, PinOptions, Pinned,
    Stream,
};
use crate::device::cuda::addresses::Addresses;
use crate::device::cuda::context::{Context, Entered};
use crate::device::cuda::driver::Driver;
use crate::device::cuda::event::CudaEvent;
use crate::device::cuda::kernels::Kernels;
use crate::device::cuda::{addresses, capabilities, code, memory, stream};
use crate::device::kernel::Kernel;
use crate::device::registry::Registry;
use crate::error::{Result, fail};
use crate::os::process::PerProcess;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_NO_DEVICE};

static REGISTRY: PerProcess<Registry> = PerProcess::new();

/// Number of CUDA devices.
pub fn device_count() -> Result<i32> {
    let mut count = 0;
    // SAFETY: the pointer is to a live int.
    unsafe { Driver::get()?.device_count(&mut count) }?;
    Ok(count)
}

/// A CUDA device in its primary context, or in a caller's.
pub struct CudaDevice {
    context: Arc<Context>,
    capabilities: Capabilities,
    registry: &'static Registry,
    kernels: Kernels,
    addresses: Addresses,
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
            raw => Context::of_caller(driver, device, raw as CUcontext),
        };
        let mut capabilities = capabilities::query(driver, device, ordinal)?;
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
            capabilities.read_only_register = capabilities::can_register_read_only(&entered)?;
        }
        let kernels = Kernels::new(capabilities.compute_capability);
        let registry = REGISTRY.get(|_| Registry::new());
        let addresses = Addresses::new(driver, device)?;
        Ok(Self { context: Arc::new(context), capabilities, registry, kernels, addresses })
    }

    fn enter(&self) -> Result<Entered<'_>> {
        self.context.enter()
    }

    /// Runs a release. In a forked child, on a destroyed context or after the driver has shut down
    /// there is nothing to release.
    fn release(&self, release: impl FnOnce(&Entered<'_>) -> Result<()>) -> Result<()> {
        if !self.context.process.is_current() {
            return Ok(());
        }
        code::unless_lost(self.enter().and_then(|entered| release(&entered)))
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        self.kernels.unload(&self.context);
    }
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
        let _entered = self.enter()?;
        work()
    }

    fn wait_unused(&self, _: Span, _: bool) -> Result<()> {
        if !self.context.process.is_current() {
            return Ok(());
        }
        memory::wait_idle(&self.enter()?)
    }

    fn memory(&self) -> Result<(u64, u64)> {
        memory::sizes(&self.enter()?)
    }

    fn pin(&self, span: Span, options: PinOptions) -> Result<()> {
        memory::pin(&self.enter()?, span, options)
    }

    fn pinned(&self, span: Span, options: PinOptions) -> Result<Pinned> {
        memory::pinned(&self.enter()?, span, options)
    }

    fn unpin(&self, span: Span) -> Result<()> {
        self.release(|entered| memory::unpin(entered, span))
    }

    fn alloc_pinned(&self, bytes: usize, options: PinOptions) -> Result<(Span, Pinned)> {
        memory::alloc_pinned(&self.enter()?, bytes, options)
    }

    fn free_pinned(&self, span: Span) -> Result<()> {
        self.release(|entered| memory::free_pinned(entered, span))
    }

    fn alloc(&self, bytes: usize) -> Result<Span> {
        memory::alloc(&self.enter()?, bytes)
    }

    fn free(&self, address: u64) -> Result<()> {
        self.check_process()?;
        self.release(|entered| memory::free(entered, address))
    }

    fn reserve(&self, bytes: usize) -> Result<Span> {
        addresses::reserve(&self.enter()?, bytes)
    }

    fn free_reserved(&self, range: Span) -> Result<()> {
        self.release(|entered| addresses::free_reserved(entered, range))
    }

    fn create_physical(&self, bytes: usize, kind: PhysicalKind) -> Result<PhysicalHandle> {
        self.addresses.create(&self.enter()?, bytes, kind)
    }

    fn release_physical(&self, memory: PhysicalHandle) -> Result<()> {
        self.release(|entered| addresses::release(entered, memory))
    }

    fn map(&self, at: Span, memory: PhysicalHandle) -> Result<()> {
        self.addresses.map(&self.enter()?, at, memory)
    }

    fn unmap(&self, at: Span) -> Result<()> {
        self.release(|entered| addresses::unmap(entered, at))
    }

    fn copy(&self, to: Span, from: Span, stream: Stream) -> Result<()> {
        memory::copy(&self.enter()?, to, from, stream)
    }

    fn launch(&self, kernel: Kernel, stream: Stream) -> Result<()> {
        self.kernels.launch(&self.context, kernel, stream)
    }

    fn new_stream(&self) -> Result<Stream> {
        stream::create(&self.enter()?)
    }

    fn release_stream(&self, stream: Stream) -> Result<()> {
        self.check_process()?;
        self.release(|entered| stream::release(entered, stream))
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        stream::synchronize(&self.enter()?, stream)
    }

    fn call(&self, stream: Stream, work: Box<dyn FnOnce() + Send>) -> Result<()> {
        stream::call(&self.enter()?, stream, work)
    }

    fn call_shared(&self, stream: Stream, work: &Arc<HostWork>) -> Result<()> {
        stream::call_shared(&self.enter()?, stream, work)
    }

    fn new_event(&self, timed: bool) -> Result<Box<dyn Event>> {
        Ok(Box::new(CudaEvent::new(&self.context, timed)?))
    }

    fn stream_id(&self, stream: Stream) -> Result<u64> {
        stream::id(&self.enter()?, stream)
    }

    fn capture(&self, stream: Stream) -> Result<Option<u64>> {
        stream::capture(&self.enter()?, stream)
    }

    fn is_pinned(&self, span: Span) -> Result<bool> {
        let entered = self.enter()?;
        let pinned = |address: usize| -> Result<bool> {
            let kind = memory::kind(&entered, address as u64)?;
            Ok(kind == CUmemorytype::CU_MEMORYTYPE_HOST as u32)
        };
        Ok(span.bytes() == 0 || (pinned(span.start())? && pinned(span.end() - 1)?))
    }

    fn is_device_memory(&self, address: u64) -> Result<bool> {
        let kind = memory::kind(&self.enter()?, address)?;
        Ok(kind == CUmemorytype::CU_MEMORYTYPE_DEVICE as u32)
    }
}
