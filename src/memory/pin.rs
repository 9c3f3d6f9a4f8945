//! Registrations of a range with a device, in one piece or in chunks, undone together.

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

/// One registration of 512 GiB or more fails on drivers since R580.
const MOST_AT_ONCE: usize = 256 << 30;
/// What some kernels still pin where they refuse more in one go.
const SMALL_CHUNK: usize = 1 << 30;

/// The registrations of a range. They must be given back with [`Pins::release`]; when dropped
/// instead, an error on the way is only logged.
pub struct Pins {
    device: Arc<Device>,
    spans: Vec<Span>,
    bytes: u64,
    /// Device address of the first span, while all of them follow each other there as they do here.
    device_address: Option<u64>,
}

impl Pins {
    /// Registers a range; nothing stays registered when a part of it fails.
    pub fn pin(
        device: &Arc<Device>,
        span: Span,
        options: PinOptions,
        chunk_bytes: usize,
        holder: &'static str,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let chunk = match chunk_bytes {
            0 => MOST_AT_ONCE,
            bytes => bytes.checked_next_multiple_of(page_bytes()).unwrap_or(MOST_AT_ONCE),
        };
        let pinned = match Self::pin_chunks(device, span, options, chunk, holder, progress) {
            Err(error)
                if chunk_bytes == 0
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
                Self::pin_chunks(device, span, options, SMALL_CHUNK, holder, progress)
            }
            answer => answer,
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

    /// The same for a mapping, which goes back when it cannot be pinned.
    pub fn pin_mapping(
        device: &Arc<Device>,
        mapping: Mapping,
        options: PinOptions,
        chunk_bytes: usize,
        holder: &'static str,
        progress: &mut Progress<'_>,
    ) -> Result<(Self, Mapping)> {
        match Self::pin(device, mapping.span(), options, chunk_bytes, holder, progress) {
            Ok(pins) => Ok((pins, mapping)),
            Err(error) => {
                // Pages that the driver still holds must not go to somebody else.
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
        options: PinOptions,
        chunk: usize,
        holder: &'static str,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let mut pins =
            Self { device: device.clone(), spans: vec![], bytes: 0, device_address: None };
        let registry = device.backend().registry();
        // Pieces meet where pages do: no page is pinned, and counted, twice.
        let lead = span.start() - span.pages().start();
        let mut offset = 0;
        while offset < span.bytes() {
            let part = span.part(offset, if offset == 0 { chunk - lead } else { chunk });
            registry.claim(part, holder)?;
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

    /// Where the device sees a part of the range, if it sees all of it in one piece.
    pub fn device_address(&self, part: Span) -> Option<u64> {
        let first = self.spans.first()?;
        Some(self.device_address? + (part.start() - first.start()) as u64)
    }

    /// Undoes the registrations; `false` when the driver kept one.
    pub fn release(mut self) -> bool {
        self.undo()
    }

    /// In a forked child there is nothing to undo: neither locks nor registrations are inherited.
    fn undo(&mut self) -> bool {
        if self.device.backend().check_process().is_err() {
            self.spans.clear();
        }
        let mut all = true;
        for span in self.spans.drain(..).rev() {
            let backend = self.device.backend();
            let undone = catch_panic(|| {
                backend.unpin(span)?;
                backend.registry().release(span);
                Ok(())
            });
            if let Err(error) = undone {
                log::record(&error);
                all = false;
            }
        }
        all
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.undo();
    }
}
