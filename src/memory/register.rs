//! Memory that exists already, registered where it lies. What the driver would copy silently, or
//! hang on, is refused before the driver sees it.

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
    /// Registers a range of the caller. `owner` is called once when nothing uses the range any more;
    /// after an error it was not called and will not be.
    pub fn register(
        device: &Arc<Device>,
        span: Span,
        options: &BufferOptions,
        owner: &mut Option<Deleter>,
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
        let pinned = options.pins(device);
        let writable = regions.iter().all(|region| region.writable);
        // A touch behind the end of a file would be SIGBUS: the kernel populates files.
        let touch = writable && !regions.iter().any(|region| region.file_backed);
        let (pins, refused) = if pinned {
            check_no_copy(&regions)?;
            cgroup::check_limit_for(span)?;
            let threads = threads_for(options.threads, span.bytes());
            in_pieces(span, threads, Phase::Fault, progress, &|piece| {
                bytes::fault_in(piece, touch)
            })?;
            let (pins, refused) = pin(device, span, writable, options, progress)?;
            (Some(pins), refused)
        } else {
            (None, None)
        };
        let read_only = options.read_only || !writable || refused.is_some();
        let note = match refused {
            Some(why) => format!("registered for reading only: {why}"),
            None if pinned => String::new(),
            None => options.pageable_note(device),
        };
        Ok(Self::assemble(
            device,
            Parts {
                data: span,
                memory: Memory::Caller(owner.take()),
                pins,
                driver_pinned: None,
                mapped: 0,
                origin: Origin::Registered,
                read_only,
                file: None,
                note,
            },
        ))
    }
}

/// Pins the range as writable if it is and the driver takes it so, else as read-only; and why, where it
/// could be written.
fn pin(
    device: &Arc<Device>,
    span: Span,
    writable: bool,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
) -> Result<(Pins, Option<String>)> {
    let mut with = |read_only| {
        let pin_options = options.pin_options(device, read_only);
        let holder = "a caller's registered memory";
        Pins::pin(device, span, pin_options, options.chunk_bytes, holder, progress)
    };
    let mut refused = None;
    if writable {
        match with(false) {
            // A shared writable file mapping on a disk's file system: only reading it can be had.
            Err(error)
                if error.status == WB_ERR_DRIVER && device.capabilities().read_only_register =>
            {
                refused = Some(error.message);
            }
            answer => return answer.map(|pins| (pins, None)),
        }
    } else if !device.capabilities().read_only_register {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register read-only memory; {} cannot: copy it into memory of wb_buffer_alloc",
            device.capabilities().name
        );
    }
    with(true).map(|pins| (pins, refused))
}

/// Refuses what was asked of memory that is made already.
fn check_options(options: &BufferOptions) -> Result<()> {
    if options.write_combined {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register memory write-combined; it is mapped already as it is: leave the option \
             out, or use wb_buffer_alloc"
        );
    }
    if let NumaPolicy::Node(node) = options.numa {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register memory on NUMA node {node}; it lies where it lies: use WB_NUMA_DEVICE, or \
             wb_buffer_alloc"
        );
    }
    if options.huge_pages == HugePages::Require {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked to register memory in huge pages; it has its pages already: use WB_HUGE_PAGES_TRY, or \
             wb_buffer_alloc"
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

/// Refuses what pinning would copy.
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
    let private_constant = |region: &&Region| !region.shared && !region.writable;
    if regions.iter().any(|region| private_constant(&region)) {
        fail!(
            WB_ERR_WOULD_COPY,
            "asked to register private memory that may not be written: the driver refuses it or \
             copies it page by page; make it writable (mprotect) or share it"
        );
    }
    Ok(())
}
