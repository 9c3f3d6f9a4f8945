//! Registers existing memory of the caller. Memory that the driver would silently copy, or hang on,
//! is rejected first.

use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions, Deleter, Memory, NumaPolicy, Origin, Parts};
use crate::memory::pin::Pins;
use crate::os::mapping::HugePages;
use crate::os::parallel::{Phase, Progress, in_pieces, threads_for};
use crate::os::proc_maps::Region;
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::os::{bytes, cgroup, proc_maps};
use crate::status::{
    WB_ERR_DRIVER, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_UNMAPPED_RANGE,
    WB_ERR_WOULD_COPY,
};

impl Buffer {
    /// Registers a range of the caller, and takes `deleter` on success.
    pub fn register(
        device: &Arc<Device>,
        span: Span,
        options: &BufferOptions,
        deleter: &mut Option<Deleter>,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        device.backend().check_process()?;
        if span.bytes() == 0 {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "asked to register 0 bytes: there is nothing to pin; allocate an empty buffer"
            );
        }
        check_options(options)?;
        let regions = proc_maps::regions(span)?;
        check_mapped(span, &regions)?;
        let writable = regions.iter().all(|region| region.writable);
        // A touch past the end of a truncated file would raise SIGBUS: the kernel populates files.
        let touch = writable && !regions.iter().any(|region| region.file_backed);
        let mut parts = Parts {
            read_only: options.read_only || !writable,
            ..Parts::new(span, Memory::Caller(None), Origin::Registered)
        };
        if options.pins(device) {
            check_no_copy(&regions)?;
            let reservation = cgroup::reserve_for(span)?;
            let threads = threads_for(options.threads, span.bytes());
            in_pieces(span, threads, Phase::Fault, progress, &|piece| {
                reservation.fault(piece, || bytes::fault_in(piece, touch))
            })?;
            let (pins, refusal) = pin(device, span, writable, options, progress)?;
            parts.pins = Some(pins);
            if let Some(refusal) = refusal {
                parts.read_only = true;
                parts.fallback_reason = format!("registered for reading only: {refusal}");
            }
        } else {
            parts.fallback_reason = options.pageable_reason(device);
        }
        parts.memory = Memory::Caller(deleter.take());
        Ok(Arc::new(Self::assemble(device, parts)))
    }
}

/// Pins the range as writable if it is and the driver accepts it, else as read-only. Returns the
/// driver's refusal to pin a writable range, too.
fn pin(
    device: &Arc<Device>,
    span: Span,
    writable: bool,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
) -> Result<(Pins, Option<String>)> {
    let mut pin = |read_only| {
        let request = options.pin_request(device, read_only, "a caller's registered memory");
        Pins::pin(device, span, request, progress)
    };
    let can_read_only = device.capabilities().read_only_register;
    let mut refusal = None;
    if writable {
        match pin(false) {
            // A shared writable mapping of a file on a disk can be registered for reading only.
            Err(error) if error.status == WB_ERR_DRIVER && can_read_only => {
                refusal = Some(error.message);
            }
            result => return result.map(|pins| (pins, None)),
        }
    } else if !can_read_only {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register read-only memory; {} cannot: copy it into memory of wb_buffer_alloc",
            device.capabilities().name
        );
    }
    pin(true).map(|pins| (pins, refusal))
}

/// Rejects options that existing memory cannot have.
fn check_options(options: &BufferOptions) -> Result<()> {
    if options.write_combined {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register memory write-combined; existing memory cannot be remapped: leave the \
             option out, or use wb_buffer_alloc"
        );
    }
    if let NumaPolicy::Node(node) = options.numa {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register memory on NUMA node {node}; existing memory cannot be moved: use \
             WB_NUMA_DEVICE, or wb_buffer_alloc"
        );
    }
    if options.huge_pages == HugePages::Require {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register memory in huge pages; existing memory keeps its pages: use \
             WB_HUGE_PAGES_TRY, or wb_buffer_alloc"
        );
    }
    Ok(())
}

fn check_mapped(span: Span, regions: &[Region]) -> Result<()> {
    let mut next = span.start();
    for region in regions.iter().filter(|region| region.readable) {
        if region.start > next {
            break;
        }
        next = region.end;
    }
    if next < span.end() {
        fail!(
            WB_ERR_UNMAPPED_RANGE,
            "asked to register {:#x}..{:#x}; at {next:#x} this process has no readable memory: the \
             pointer or the size is wrong, or the memory was freed",
            span.start(),
            span.end()
        );
    }
    Ok(())
}

/// Rejects memory whose pages the driver would copy.
fn check_no_copy(regions: &[Region]) -> Result<()> {
    let private_file = |region: &&Region| !region.shared && region.file_backed;
    if let Some(region) = regions.iter().find(private_file) {
        fail!(
            WB_ERR_WOULD_COPY,
            "asked to register a private mapping of {}: pinning would silently copy every page of \
             it; map the file with wb_buffer_map_file, or copy into memory of wb_buffer_alloc",
            region.name
        );
    }
    if regions.iter().any(|region| !region.shared && !region.writable) {
        fail!(
            WB_ERR_WOULD_COPY,
            "asked to register private memory that may not be written: the driver refuses it or \
             copies it page by page; make it writable (mprotect) or share it"
        );
    }
    Ok(())
}
