//! Blocks whose bytes are compressed in host memory: what they are expected to become, compressing those of
//! a commit, and reading them.

use std::sync::atomic::Ordering;

use crate::codec::in_memory;
use crate::device::backend::Location;
use crate::device::device::Device;
use crate::device::policy::Tristate;
use crate::error::{Error, Result};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::offload::backing::{Backing, Block, Encoding};
use crate::offload::bulk_copy::{self, CopyJob};
use crate::offload::device_encode::{DeviceEncode, EncodeProgress};
use crate::offload::scratch::Scratch;
use crate::offload::state::{EncodedBy, OffloadState};
use crate::os::bytes;
use crate::os::in_order::{Pieces, in_order};
use crate::os::mapping::Mapping;
use crate::os::parallel::{Progress, threads_for};
use crate::os::span::Span;
use crate::os::sync::{Arc, AtomicU64};
use crate::plan::compression::{Compression, CompressionRule};
use crate::plan::parameter::Parameter;
use crate::tensor::coded::{CodedType, HEADER, TILE};

/// Bytes of a block up to which one thread compresses it while others compress others: fewer are not the
/// work of several.
const SMALL_BYTES: u64 = 16 << 20;

/// Tiles of a source that tell how it is compressed, at most.
const SAMPLED_TILES: u64 = 64;

/// Notes for each parameter that may be compressed what a sample of its source is compressed to.
pub fn measure(
    device: &Arc<Device>,
    compress: &Compression,
    parameters: &mut [Parameter],
    sources: &[Option<Location>],
) -> Result<()> {
    if *compress == Compression::Off {
        return Ok(());
    }
    let mut rule = CompressionRule::new(compress, None)?;
    for (parameter, source) in parameters.iter_mut().zip(sources) {
        let (dtype, bytes) = (parameter.layout.dtype(), parameter.layout.span_bytes());
        let Some(source) = source.filter(|_| parameter.encoded_source().is_none()) else {
            continue;
        };
        if let Ok(coded) = rule.candidate(&parameter.name, dtype, bytes) {
            parameter.encoded_bytes = Some(estimate(device, coded, source)?);
        }
    }
    Ok(())
}

/// What a source is compressed to, as a sample of it tells.
pub fn estimate(device: &Arc<Device>, coded: CodedType, source: Location) -> Result<u64> {
    if !source.on_device {
        return Ok(in_memory::measure(coded, source.span, SAMPLED_TILES)?.encoded_bytes);
    }
    let (bytes, whole) = (source.span.bytes() as u64, source.span.bytes() as u64 / TILE);
    let count = whole.min(SAMPLED_TILES);
    let sample = host_memory(device, (count * TILE) as usize)?;
    let jobs: Vec<CopyJob> = (0..count)
        .map(|at| CopyJob {
            to: sample.data().part((at * TILE) as usize, TILE as usize),
            from: Location::device(
                source.span.part((at * whole / count * TILE) as usize, TILE as usize),
            ),
        })
        .collect();
    bulk_copy::into_host(device, &sample, &jobs, 1, &mut None)?;
    let measured = in_memory::measure(coded, sample.data(), 0)?;
    let bodies = u128::from(measured.encoded_bytes - HEADER) * u128::from(bytes);
    Ok(HEADER + (bodies / u128::from((count * TILE).max(1))) as u64)
}

/// New pageable host memory.
pub fn host_memory(device: &Arc<Device>, bytes: usize) -> Result<Arc<Buffer>> {
    let options = BufferOptions { pin: Tristate::Off, ..BufferOptions::default() };
    Buffer::alloc(device, bytes, &options, &mut None)
}

/// Compresses the blocks of a commit: some by the device, and the others, whose bytes are in their places, by
/// `threads` threads.
pub fn encode_all(
    device: &Arc<Device>,
    state: &mut OffloadState,
    by_device: DeviceEncode,
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<()> {
    // Those of compressed sources are not compressed again.
    let is_left = |encoding: &Encoding| encoding.encoded_bytes == 0;
    let left_of = |block: &Block| block.encoding.filter(is_left);
    let left = |state: &OffloadState| {
        let blocks = state.host.blocks().iter().enumerate();
        blocks.filter_map(|(at, block)| Some((at, left_of(block)?))).collect::<Vec<_>>()
    };
    let total = left(state).iter().map(|(_, encoding)| encoding.decoded_bytes).sum();
    state.encoded_by = EncodedBy { device: by_device.bytes(), host: total - by_device.bytes() };
    let mut progress = EncodeProgress::new(total, progress);
    by_device.run(device, state, threads, &mut progress)?;
    // Large blocks one after another, each by all threads, and small ones at the same time.
    let is_small = |(_, encoding): &(usize, Encoding)| encoding.decoded_bytes <= SMALL_BYTES;
    let (small, large): (Vec<_>, Vec<_>) = left(state).into_iter().partition(is_small);
    let small_bytes = small.iter().map(|(_, encoding)| encoding.decoded_bytes as usize).sum();
    encode_blocks(state, &large, (1, threads), &mut progress)?;
    encode_blocks(state, &small, (threads_for(threads, small_bytes), 1), &mut progress)
}

/// Compresses blocks in place, `at_once` at the same time, with `threads` threads each.
fn encode_blocks(
    state: &mut OffloadState,
    blocks: &[(usize, Encoding)],
    (at_once, threads): (usize, usize),
    progress: &mut EncodeProgress<'_, '_>,
) -> Result<()> {
    let place = |&(at, _): &(usize, Encoding)| {
        let block = &state.host.blocks()[at];
        block.place(&state.host.units()[block.unit])
    };
    let places: Vec<Span> = blocks.iter().map(place).collect();
    let scratch = Scratch::new(places.iter().map(|place| place.bytes()).max().unwrap_or(0));
    let encoded: Vec<_> = blocks.iter().map(|_| AtomicU64::new(0)).collect();
    let encode = |index: usize, _| {
        let (place, Encoding { coded, decoded_bytes, .. }) = (places[index], blocks[index].1);
        scratch.with(|scratch| {
            let raw = place.part(0, decoded_bytes as usize);
            let bytes = in_memory::encode(coded, raw, scratch, threads)?.encoded_bytes;
            bytes::copy(place, scratch.part(0, bytes as usize));
            encoded[index].store(bytes, Ordering::Release);
            Ok(())
        })
    };
    let mut end = |index: usize| {
        let (block, Encoding { decoded_bytes, .. }) = blocks[index];
        state.host.note_encoded(block, encoded[index].load(Ordering::Acquire));
        progress.add(decoded_bytes)
    };
    let pieces = Pieces { count: blocks.len(), parts: 1, ahead: 2 * at_once };
    in_order(pieces, at_once, &mut |_| Ok(()), &encode, &mut end)
}

impl OffloadState {
    /// Decompresses all bytes of a compressed block.
    pub fn decode_block(&self, block: usize, target: Span) -> Result<()> {
        let block = &self.host.blocks()[block];
        let encoded = block.place(&self.host.units()[block.unit]);
        let encoded = encoded.part(0, block.stored_bytes() as usize);
        in_memory::decode(encoded, 0, target, true, 0).map(drop).map_err(|error| {
            let name = block.parameters.first().map_or("", |at| self.parameters[*at].name());
            let message = format!(
                "parameter {name:?}, compressed in host memory: {}; replace it, or commit its file again",
                error.message
            );
            Error::new(error.status, message)
        })
    }

    /// Copies bytes of a unit, as they are in its slot, to host memory.
    pub fn read_unit(&self, unit: usize, offset: u64, target: Span) -> Result<()> {
        let end = offset + target.bytes() as u64;
        let region = self.host.units()[unit].region;
        for at in self.host.blocks_in(unit) {
            let block = &self.host.blocks()[at];
            let (start, stop) = (block.offset.max(offset), (block.offset + block.bytes).min(end));
            if start >= stop {
                continue;
            }
            let to = target.part((start - offset) as usize, (stop - start) as usize);
            let Some(Encoding { decoded_bytes, .. }) = block.encoding else {
                bytes::copy(to, region.part(start as usize, to.bytes()));
                continue;
            };
            if to.bytes() as u64 == decoded_bytes {
                self.decode_block(at, to)?;
                continue;
            }
            let scratch = Mapping::anonymous(decoded_bytes as usize)?;
            let decoded = scratch.span().part(0, decoded_bytes as usize);
            self.decode_block(at, decoded)?;
            bytes::copy(to, decoded.part((start - block.offset) as usize, to.bytes()));
        }
        Ok(())
    }

    /// How a parameter's bytes are compressed in host memory, if they are.
    pub fn encoding_of(&self, at: usize) -> Option<Encoding> {
        match self.parameters[at].backing {
            Backing::Block { block, .. } => self.host.blocks()[block].encoding,
            _ => None,
        }
    }
}
