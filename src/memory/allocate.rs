//! Memory of exactly the size asked: mapped, touched by many threads in huge pages, registered once.

use crate::device::device::Device;
use crate::error::{Error, Result, fail, format_bytes};
use crate::memory::buffer::{Buffer, BufferOptions, Memory, NumaPolicy, Origin, Parts};
use crate::memory::pin::Pins;
use crate::os::mapping::{HugePages, Mapping};
use crate::os::page::huge_page_bytes;
use crate::os::parallel::{Phase, Progress, in_pieces, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::os::{bytes, cgroup, mapping, proc_maps};
use crate::status::{WB_ERR_HUGE_PAGES, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED};

impl Buffer {
    /// Allocates `bytes` bytes, zeroed. 0 bytes give a buffer with no address.
    pub fn alloc(
        device: &Arc<Device>,
        bytes: usize,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        if bytes == 0 {
            return Self::empty(device, options);
        }
        device.backend().check_process()?;
        let parts = match options.pins(device) {
            false if options.write_combined => fail!(
                WB_ERR_INVALID_ARGUMENT,
                "write-combined memory is pinned memory, and pinning is off: {}",
                device.policy().pin_reason
            ),
            false => pageable(device, bytes, options, progress)?,
            true if options.write_combined => by_driver(
                device,
                bytes,
                options,
                progress,
                "write-combined memory is the driver's",
            )?,
            true if !device.capabilities().host_register => {
                by_driver(device, bytes, options, progress, "this device cannot register memory")?
            }
            true => registered(device, bytes, options, progress)?,
        };
        Ok(Self::assemble(device, parts))
    }

    /// A buffer of no bytes, with no address.
    pub fn empty(device: &Arc<Device>, options: &BufferOptions) -> Result<Arc<Self>> {
        device.backend().check_process()?;
        let parts = unpinned(Span::EMPTY, Memory::None, 0, String::new());
        Ok(Self::assemble(device, Parts { read_only: options.read_only, ..parts }))
    }
}

fn unpinned(data: Span, memory: Memory, mapped: usize, note: String) -> Parts {
    Parts {
        data,
        memory,
        pins: None,
        driver_pinned: None,
        mapped: mapped as u64,
        origin: Origin::Allocated,
        read_only: false,
        file: None,
        note,
    }
}

fn pageable(
    device: &Arc<Device>,
    bytes: usize,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
) -> Result<Parts> {
    let mapping = present(device, bytes, options, progress)?;
    let span = mapping.span();
    let note = options.pageable_note(device);
    Ok(unpinned(span.part(0, bytes), Memory::Mapping(mapping), span.bytes(), note))
}

fn registered(
    device: &Arc<Device>,
    bytes: usize,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
) -> Result<Parts> {
    let mapping = present(device, bytes, options, progress)?;
    let span = mapping.span();
    let pin_options = options.pin_options(device, false);
    let holder = "a weighbridge allocation";
    match Pins::pin_mapping(device, mapping, pin_options, options.chunk_bytes, holder, progress) {
        Ok((pins, mapping)) => Ok(Parts {
            pins: Some(pins),
            ..unpinned(span.part(0, bytes), Memory::Mapping(mapping), span.bytes(), String::new())
        }),
        Err(error) if error.status == WB_ERR_NOT_SUPPORTED => {
            by_driver(device, bytes, options, progress, &error.message)
        }
        Err(error) => Err(error),
    }
}

fn by_driver(
    device: &Arc<Device>,
    bytes: usize,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
    reason: &str,
) -> Result<Parts> {
    check_drivers_choice(bytes, options, reason)?;
    cgroup::check_limit(bytes)?;
    let pin_options = options.pin_options(device, false);
    let (span, pinned) = device.backend().alloc_pinned(bytes, pin_options)?;
    // A driver does not promise that nothing of an earlier owner's is in it.
    let threads = threads_for(options.threads, bytes);
    let zeroed = in_pieces(span, threads, Phase::Fault, progress, &|piece| {
        bytes::fill(piece, 0);
        Ok(())
    });
    if let Err(error) = zeroed {
        device.backend().free_pinned(span)?;
        return Err(error);
    }
    Ok(Parts {
        driver_pinned: Some(pinned),
        ..unpinned(span, Memory::Driver(span), bytes, format!("allocated by the driver: {reason}"))
    })
}

/// Refuses what was asked of memory that a driver lays out as it likes.
fn check_drivers_choice(bytes: usize, options: &BufferOptions, reason: &str) -> Result<()> {
    if options.huge_pages == HugePages::Require && bytes >= huge_page_bytes() {
        fail!(
            WB_ERR_HUGE_PAGES,
            "huge pages were required for {}; the driver allocates the memory and chooses its pages \
             ({reason}): use WB_HUGE_PAGES_TRY",
            format_bytes(bytes as u64)
        );
    }
    if let NumaPolicy::Node(node) = options.numa {
        fail!(
            WB_ERR_NOT_SUPPORTED,
            "asked memory on NUMA node {node}; the driver allocates the memory and chooses its node \
             ({reason}): use WB_NUMA_DEVICE"
        );
    }
    Ok(())
}

/// A mapping whose pages are all there, on the node and in the pages that were asked for.
fn present(
    device: &Arc<Device>,
    bytes: usize,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
) -> Result<Mapping> {
    cgroup::check_limit(bytes)?;
    let mapping = Mapping::anonymous(bytes)?;
    let span = mapping.span();
    let huge_pages = match options.huge_pages {
        HugePages::Try if bytes < huge_page_bytes() => HugePages::Off,
        asked => asked,
    };
    mapping::advise_huge_pages(span, huge_pages)?;
    match options.numa {
        NumaPolicy::Any => {}
        NumaPolicy::Node(node) => mapping::bind_to_node(span, node, true)?,
        NumaPolicy::Device => {
            if let Some(node) = device.capabilities().numa_node {
                mapping::bind_to_node(span, node, false)?;
            }
        }
    }
    let threads = threads_for(options.threads, span.bytes());
    in_pieces(span, threads, Phase::Fault, progress, &|piece| bytes::fault_in(piece, true))?;
    if huge_pages == HugePages::Require {
        check_huge_pages(span)?;
    }
    Ok(mapping)
}

fn check_huge_pages(span: Span) -> Result<()> {
    let expected = (span.bytes() / huge_page_bytes() * huge_page_bytes()) as u64;
    let huge = if expected > 0 { proc_maps::count(span)?.huge } else { 0 };
    if huge < expected {
        return Err(Error::new(
            WB_ERR_HUGE_PAGES,
            format!(
                "huge pages were required for {}; the kernel gave {}: memory is fragmented or \
                 /sys/kernel/mm/transparent_hugepage/enabled is \"never\"; use WB_HUGE_PAGES_TRY",
                format_bytes(expected),
                format_bytes(huge)
            ),
        ));
    }
    Ok(())
}
