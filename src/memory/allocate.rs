//! Allocates memory of exactly the bytes asked for: mapped, made present by several threads in huge
//! pages, and registered once.

use crate::device::device::Device;
use crate::device::policy::Tristate;
use crate::error::{Result, fail, format_bytes};
use crate::memory::buffer::{Buffer, BufferOptions, Memory, NumaPolicy, Origin, Parts};
use crate::memory::pin::Pins;
use crate::os::cgroup::Reservation;
use crate::os::mapping::{HugePages, Mapping};
use crate::os::page::huge_page_bytes;
use crate::os::parallel::{Phase, Progress, in_pieces, threads_for};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::os::{bytes, cgroup, mapping, proc_maps};
use crate::status::{WB_ERR_HUGE_PAGES, WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED};

impl Buffer {
    /// Allocates `bytes` bytes, zeroed. A buffer of 0 bytes has no address.
    pub fn alloc(
        device: &Arc<Device>,
        bytes: usize,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        Self::allocate(device, bytes, options, progress).map(Arc::new)
    }

    /// Allocates pageable memory whose pages are not present: what makes them so, by writing to them, does it in
    /// the reservation.
    pub fn alloc_absent(device: &Arc<Device>, bytes: usize) -> Result<(Arc<Self>, Reservation)> {
        device.backend().check_process()?;
        let options = BufferOptions { pin: Tristate::Off, ..BufferOptions::default() };
        let allocation = Allocation { device, bytes, options: &options, progress: &mut None };
        let (mapping, reservation) = allocation.map_absent()?;
        let fallback_reason = options.pageable_reason(device);
        let parts = Parts { fallback_reason, ..allocation.parts(mapping) };
        Ok((Arc::new(Self::assemble(device, parts)), reservation))
    }

    pub(super) fn allocate(
        device: &Arc<Device>,
        bytes: usize,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        device.backend().check_process()?;
        let mut allocation = Allocation { device, bytes, options, progress };
        let parts = match options.pins(device) {
            _ if bytes == 0 => Parts {
                read_only: options.read_only,
                ..Parts::new(Span::EMPTY, Memory::None, Origin::Allocated)
            },
            false if options.write_combined => fail!(
                WB_ERR_INVALID_ARGUMENT,
                "write-combined memory is pinned memory, and pinning is off: {}",
                device.policy().pin_reason
            ),
            false => allocation.pageable()?,
            true if options.write_combined => {
                allocation.by_driver("write-combined memory is the driver's")?
            }
            true if !device.capabilities().host_register => {
                allocation.by_driver("this device cannot register memory")?
            }
            true => allocation.registered()?,
        };
        Ok(Self::assemble(device, parts))
    }
}

/// An allocation that is being made.
struct Allocation<'a, 'p> {
    device: &'a Arc<Device>,
    bytes: usize,
    options: &'a BufferOptions,
    progress: &'a mut Progress<'p>,
}

impl Allocation<'_, '_> {
    fn pageable(&mut self) -> Result<Parts> {
        let mapping = self.map()?;
        let fallback_reason = self.options.pageable_reason(self.device);
        Ok(Parts { fallback_reason, ..self.parts(mapping) })
    }

    fn registered(&mut self) -> Result<Parts> {
        let mapping = self.map()?;
        let request = self.options.pin_request(self.device, false, "a weighbridge allocation");
        match Pins::pin_mapping(self.device, mapping, request, self.progress) {
            Ok((pins, mapping)) => Ok(Parts { pins: Some(pins), ..self.parts(mapping) }),
            Err(error) if error.status == WB_ERR_NOT_SUPPORTED => self.by_driver(&error.message),
            Err(error) => Err(error),
        }
    }

    fn parts(&self, mapping: Mapping) -> Parts {
        let span = mapping.span();
        Parts {
            mapped: span.bytes(),
            ..Parts::new(span.part(0, self.bytes), Memory::Mapping(mapping), Origin::Allocated)
        }
    }

    fn by_driver(&mut self, reason: &str) -> Result<Parts> {
        self.check_driver_can(reason)?;
        let _reserved = cgroup::reserve(self.bytes)?;
        let pin_options = self.options.pin_options(self.device, false);
        let backend = self.device.backend();
        let (span, pinned) = backend.alloc_pinned(self.bytes, pin_options)?;
        // The driver does not promise zeroed memory.
        let threads = threads_for(self.options.threads, self.bytes);
        let zeroed = in_pieces(span, threads, Phase::Fault, self.progress, &|piece| {
            bytes::fill(piece, 0);
            Ok(())
        });
        if let Err(error) = zeroed {
            backend.free_pinned(span)?;
            return Err(error);
        }
        Ok(Parts {
            mapped: self.bytes,
            fallback_reason: format!("allocated by the driver: {reason}"),
            ..Parts::new(span, Memory::Driver(span, pinned), Origin::Allocated)
        })
    }

    /// Rejects options that a driver's allocation cannot have.
    fn check_driver_can(&self, reason: &str) -> Result<()> {
        if self.options.huge_pages == HugePages::Require && self.bytes >= huge_page_bytes() {
            fail!(
                WB_ERR_HUGE_PAGES,
                "huge pages were required for {}; the driver allocates the memory and chooses its \
                 pages ({reason}): use WB_HUGE_PAGES_TRY",
                format_bytes(self.bytes as u64)
            );
        }
        if let NumaPolicy::Node(node) = self.options.numa {
            fail!(
                WB_ERR_NOT_SUPPORTED,
                "asked memory on NUMA node {node}; the driver allocates the memory and chooses its \
                 node ({reason}): use WB_NUMA_DEVICE"
            );
        }
        Ok(())
    }

    /// The huge pages asked for, if the memory is as large as one.
    fn huge_pages(&self) -> HugePages {
        match self.options.huge_pages {
            HugePages::Try if self.bytes < huge_page_bytes() => HugePages::Off,
            asked => asked,
        }
    }

    /// Maps memory with the node and the pages asked for, of which none is present.
    fn map_absent(&self) -> Result<(Mapping, Reservation)> {
        let reservation = cgroup::reserve(self.bytes)?;
        let mapping = Mapping::anonymous(self.bytes)?;
        let span = mapping.span();
        mapping::advise_huge_pages(span, self.huge_pages())?;
        match (self.options.numa, self.device.capabilities().numa_node) {
            (NumaPolicy::Node(node), _) => mapping::bind_to_node(span, node, true)?,
            (NumaPolicy::Device, Some(node)) => mapping::bind_to_node(span, node, false)?,
            (NumaPolicy::Device, None) | (NumaPolicy::Any, _) => {}
        }
        Ok((mapping, reservation))
    }

    /// As [`Allocation::map_absent`], and makes all pages present.
    fn map(&mut self) -> Result<Mapping> {
        let (mapping, reservation) = self.map_absent()?;
        let span = mapping.span();
        let threads = threads_for(self.options.threads, span.bytes());
        in_pieces(span, threads, Phase::Fault, self.progress, &|piece| {
            reservation.fault(piece, || bytes::fault_in(piece, true))
        })?;
        if self.huge_pages() == HugePages::Require {
            check_huge_pages(span)?;
        }
        Ok(mapping)
    }
}

fn check_huge_pages(span: Span) -> Result<()> {
    let expected = (span.bytes() / huge_page_bytes() * huge_page_bytes()) as u64;
    let huge = if expected > 0 { proc_maps::count(span)?.huge } else { 0 };
    if huge < expected {
        fail!(
            WB_ERR_HUGE_PAGES,
            "huge pages were required for {}; the kernel provided {}: memory is fragmented or \
             /sys/kernel/mm/transparent_hugepage/enabled is \"never\"; use WB_HUGE_PAGES_TRY",
            format_bytes(expected),
            format_bytes(huge)
        );
    }
    Ok(())
}
