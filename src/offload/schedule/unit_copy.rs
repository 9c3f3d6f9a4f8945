//! The copy of a unit into its slot: of raw bytes one copy from pinned memory; from pageable memory,
//! copies through a pinned staging buffer, since a copy from pageable memory blocks the calling thread.
//! Compressed bytes are decoded by a kernel, which reads them in host memory, through windows, or where the
//! device keeps them.

use crate::device::backend::{HostWork, Stream};
use crate::device::device::Device;
use crate::device::kernel::{DecodeSource, Kernel};
use crate::error::Result;
use crate::memory::staging::Staging;
use crate::offload::schedule::arrangement::{CarriedUnit, EncodedPart};
use crate::offload::schedule::windows::{WindowStreams, Windows, encoded_bytes};
use crate::os::bytes;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// The copy of one unit.
pub struct UnitCopy {
    host: Span,
    slot: Span,
    raw: Vec<RawPart>,
    encoded: Vec<EncodedPart>,
    staging: Option<Span>,
}

/// Bytes that are not compressed.
struct RawPart {
    offset: usize,
    bytes: usize,
    /// Host work that copies each piece of them into the staging buffer; empty if the memory is pinned.
    stage_pieces: Vec<Arc<HostWork>>,
}

/// What a copy of a unit moves over the link.
#[derive(Debug, Clone, Copy, Default)]
pub struct MovedBytes {
    /// All bytes.
    pub moved: u64,
    /// Compressed ones of them.
    pub encoded: u64,
    /// What those are decoded to.
    pub decoded: u64,
}

impl UnitCopy {
    /// A copy of a unit to `slot`, which has as many bytes. With `staging`, host memory is pageable.
    pub fn new(unit: &CarriedUnit, slot: Span, staging: Option<&Staging>) -> Self {
        let (host, encoded) = (unit.host, unit.encoded.clone());
        let staging = staging.map(Staging::span);
        let mut raw = Vec::new();
        let mut end = 0;
        let starts = encoded.iter().map(|part| (part.offset, part.offset + part.capacity));
        for (start, next) in starts.chain([(host.bytes(), host.bytes())]) {
            // Behind the unit's own host memory are only bytes that are compressed elsewhere.
            let start = start.min(host.bytes());
            if end < start || encoded.is_empty() {
                raw.push(RawPart::new(host, end, start - end, staging));
            }
            end = next;
        }
        Self { host, slot, raw, encoded, staging }
    }

    /// Queues the copy; returns the stream that ends it. It must not be dropped before the streams, and every
    /// graph that captures it, have run it for the last time.
    pub fn queue(
        &self,
        device: &Device,
        streams: WindowStreams,
        windows: Option<&mut Windows>,
    ) -> Result<Stream> {
        let stream = streams.copy;
        for part in &self.raw {
            let slot = self.slot.part(part.offset, part.bytes);
            let Some(staging) = self.staging else {
                device.copy(slot, self.host.part(part.offset, part.bytes), stream)?;
                continue;
            };
            for (index, stage_piece) in part.stage_pieces.iter().enumerate() {
                device.backend().call_shared(stream, stage_piece)?;
                let to = slot.part(index * staging.bytes(), staging.bytes());
                device.copy(to, staging.part(0, to.bytes()), stream)?;
            }
        }
        let mut seen = Vec::new();
        for part in &self.encoded {
            if windows.is_some() && Windows::take(part) {
                seen.push(part);
                continue;
            }
            let decode = Kernel::Decode {
                coded: part.coded,
                encoded: part.on_device,
                decoded_bytes: part.decoded_bytes,
                first_tile: 0,
                target: self.slot.part(part.offset, part.decoded_bytes as usize),
                source: if part.kept { DecodeSource::Kept } else { DecodeSource::Host },
            };
            device.backend().launch(decode, stream)?;
        }
        let Some(windows) = windows.filter(|_| !seen.is_empty()) else { return Ok(stream) };
        // After the others, so that the last window to be decoded is filled after all of them.
        for part in seen {
            let slot = self.slot.part(part.offset, part.decoded_bytes as usize);
            windows.queue(device, part, slot, streams)?;
        }
        Ok(streams.decode)
    }

    /// What the copy moves with the bytes that are in host memory now.
    pub fn moved_bytes(&self) -> MovedBytes {
        let mut sum = MovedBytes::default();
        sum.moved = self.raw.iter().map(|part| part.bytes as u64).sum();
        for part in &self.encoded {
            let encoded = encoded_bytes(part.host);
            // Those that do not fit in device memory cross the link.
            if !part.kept || encoded > part.on_device.bytes() as u64 {
                sum.encoded += encoded;
                sum.decoded += part.decoded_bytes;
            }
        }
        sum.moved += sum.encoded;
        sum
    }
}

impl RawPart {
    fn new(host: Span, offset: usize, bytes: usize, staging: Option<Span>) -> Self {
        let host = host.part(offset, bytes);
        let stage_pieces = staging.map_or(Vec::new(), |staging| {
            let piece = |offset: usize| {
                let piece = host.part(offset, staging.bytes());
                Arc::new(HostWork(Box::new(move || bytes::copy(staging, piece))))
            };
            (0..bytes).step_by(staging.bytes()).map(piece).collect()
        });
        Self { offset, bytes, stage_pieces }
    }
}
