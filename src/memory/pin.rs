//! [`Pins`]: the registrations of a range with a device, in one piece or in chunks.

use crate::device::backend::PinOptions;
use crate::device::device::Device;
use crate::error::{Error, Result, catch_panic, format_bytes};
use crate::os::log;
use crate::os::mapping::Mapping;
use crate::os::page::page_bytes;
use crate::os::parallel::{Phase, Progress, report};
use crate::os::span::Span;
use crate::os::sync::Arc;
use crate::status::{
    WB_ERR_ALREADY_REGISTERED, WB_ERR_CANCELLED, WB_ERR_DRIVER, WB_ERR_FORKED, WB_ERR_MEMLOCK,
    WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_MEMORY,
};

/// Bytes of the largest registration. Drivers since R580 fail to register 512 GiB or more at once.
const MOST_AT_ONCE: usize = 256 << 30;
/// Bytes of a chunk that some kernels pin where they refuse a larger one.
const SMALL_CHUNK: usize = 1 << 30;

/// How to pin a range.
#[derive(Debug, Clone, Copy)]
pub struct PinRequest {
    /// The device's options.
    pub options: PinOptions,
    /// Bytes to register at a time; 0 means as many as possible.
    pub chunk_bytes: usize,
    /// Describes the memory's owner in errors of ranges that overlap it.
    pub owner: &'static str,
}

/// The registrations of a range. [`Pins::release`] undoes them and returns whether it succeeded; a
/// drop undoes them, too.
pub struct Pins {
    device: Arc<Device>,
    spans: Vec<Span>,
    bytes: u64,
    /// Address of the first span on the device, if all spans are contiguous there.
    device_address: Option<u64>,
}

impl Pins {
    /// Registers a range. After a failure nothing stays registered.
    pub fn pin(
        device: &Arc<Device>,
        span: Span,
        request: PinRequest,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let chunk = match request.chunk_bytes {
            0 => MOST_AT_ONCE,
            bytes => bytes.checked_next_multiple_of(page_bytes()).unwrap_or(MOST_AT_ONCE),
        };
        let pinned = match Self::pin_chunks(device, span, chunk, request, progress) {
            Err(error)
                if request.chunk_bytes == 0
                    && span.bytes() > SMALL_CHUNK
                    && !matches!(
                        error.status,
                        WB_ERR_CANCELLED
                            | WB_ERR_NOT_SUPPORTED
                            | WB_ERR_ALREADY_REGISTERED
                            | WB_ERR_FORKED
                            | WB_ERR_MEMLOCK
                    ) =>
            {
                Self::pin_chunks(device, span, SMALL_CHUNK, request, progress)
            }
            result => result,
        };
        pinned.map_err(|error| match error.status {
            WB_ERR_OUT_OF_MEMORY | WB_ERR_DRIVER => Error {
                message: format!(
                    "asked {} pinned; {}: ask for less, or set WEIGHBRIDGE_DISABLE_PIN_MEMORY=1",
                    format_bytes(span.bytes() as u64),
                    error.message
                ),
                ..error
            },
            _ => error,
        })
    }

    /// The same for a mapping, which is unmapped after a failure.
    pub fn pin_mapping(
        device: &Arc<Device>,
        mapping: Mapping,
        request: PinRequest,
        progress: &mut Progress<'_>,
    ) -> Result<(Self, Mapping)> {
        match Self::pin(device, mapping.span(), request, progress) {
            Ok(pins) => Ok((pins, mapping)),
            Err(error) => {
                // The addresses of pages that the driver still holds must not be reused.
                if device.backend().registry().holds(mapping.span()) {
                    std::mem::forget(mapping);
                }
                Err(error)
            }
        }
    }

    fn pin_chunks(
        device: &Arc<Device>,
        span: Span,
        chunk: usize,
        request: PinRequest,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let PinRequest { options, owner, .. } = request;
        let mut pins =
            Self { device: device.clone(), spans: vec![], bytes: 0, device_address: None };
        let registry = device.backend().registry();
        // Chunks begin at pages: no page is pinned and counted twice.
        let lead = span.start() - span.pages().start();
        let mut offset = 0;
        while offset < span.bytes() {
            let part = span.part(offset, if offset == 0 { chunk - lead } else { chunk });
            registry.claim(part, owner)?;
            catch_panic(|| device.backend().pin(part, options))
                .inspect_err(|_| registry.release(part))?;
            pins.spans.push(part);
            let pinned = device.backend().pinned(part, options)?;
            pins.device_address = match (offset, pins.device_address, pinned.device_address) {
                (0, _, address) => address,
                (_, Some(first), Some(here)) if first + offset as u64 == here => Some(first),
                _ => None,
            };
            pins.bytes += pinned.bytes;
            offset += part.bytes();
            report(progress, Phase::Pin, offset, span.bytes())?;
        }
        Ok(pins)
    }

    /// Bytes pinned, as the driver or the kernel counts them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of registrations.
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// Address of a part of the range on the device, if the range is mapped and contiguous there.
    pub fn device_address(&self, part: Span) -> Option<u64> {
        let first = self.spans.first()?;
        Some(self.device_address? + (part.start() - first.start()) as u64)
    }

    /// Undoes the registrations. Returns false if the driver kept one.
    pub fn release(mut self) -> bool {
        self.undo()
    }

    /// Does nothing in a forked child, which inherits neither locks nor registrations.
    fn undo(&mut self) -> bool {
        if self.device.backend().check_process().is_err() {
            self.spans.clear();
        }
        let mut all = true;
        for span in self.spans.drain(..).rev() {
            let backend = self.device.backend();
            all &= log::best_effort(|| {
                backend.unpin(span)?;
                backend.registry().release(span);
                Ok(())
            });
        }
        all
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.undo();
    }
}
