//! Compressed parameters of an offloader: which they are after a change, writing and reading them.

use crate::codec::in_memory;
use crate::device::backend::Location;
use crate::device::owned::OwnedStream;
use crate::error::{Result, fail};
use crate::offload::backing::{Backing, Block, Encoding};
use crate::offload::bulk_copy::{self, CopyJob};
use crate::offload::encoded::{estimate, host_memory};
use crate::offload::offloader::Offloader;
use crate::offload::state::OffloadState;
use crate::os::bytes;
use crate::os::mapping::Mapping;
use crate::os::span::Span;
use crate::plan::compression::{Compression, CompressionRule};
use crate::plan::parameter::TransferMode;
use crate::status::{WB_ERR_NOT_FOUND, WB_ERR_OUT_OF_RANGE};
use crate::tensor::coded::{CodedType, LINK, link};
use crate::tensor::layout::Layout;

impl Offloader {
    /// The type as which a parameter that is added, or replaced by another size, is compressed.
    pub(super) fn coding_of(
        &self,
        (name, layout): (&str, &Layout),
        mode: TransferMode,
        source: Option<Location>,
    ) -> Result<Option<CodedType>> {
        let (device, compress) = (self.device(), &self.options().compress);
        if *compress == Compression::Off || mode == TransferMode::ZeroCopy {
            return Ok(None);
        }
        let policy = device.policy();
        let views = policy.allows_views(policy.pin);
        let mut rule = CompressionRule::new(compress, (!views).then_some(&policy.views_reason))?;
        let bytes = layout.span_bytes();
        let Ok(coded) = rule.candidate(name, layout.dtype(), bytes) else { return Ok(None) };
        let measured = source.map(|source| estimate(device, coded, source)).transpose()?;
        Ok(rule.judge(coded, bytes, measured).ok().map(|coding| coding.coded))
    }

    /// Copies a source to an offset in a compressed block: decodes the others of its bytes, if there
    /// are any, and compresses all again.
    pub(super) fn write_encoded(
        &self,
        state: &mut OffloadState,
        at: usize,
        encoding: Encoding,
        offset: u64,
        source: Location,
    ) -> Result<()> {
        let Encoding { coded, decoded_bytes, encoded_bytes } = encoding;
        let block = &state.host.blocks()[at];
        let place = block.place(&state.host.units()[block.unit]);
        let is_whole = offset == 0 && source.span.bytes() as u64 == decoded_bytes;
        let encoded = if is_whole && !source.on_device {
            in_memory::encode(coded, source.span, place, 0)?
        } else {
            let scratch = host_memory(self.device(), decoded_bytes as usize)?;
            if !is_whole && encoded_bytes > 0 {
                state.decode_block(at, scratch.data())?;
            }
            let to = scratch.data().part(offset as usize, source.span.bytes());
            let job = CopyJob { to, from: source };
            bulk_copy::into_host(self.device(), &scratch, &[job], 0, &mut None)?;
            in_memory::encode(coded, scratch.data(), place, 0)?
        };
        state.host.note_encoded(at, encoded.encoded_bytes);
        self.write_kept(state, at)
    }

    /// Writes the compressed bytes of a block, as host memory has them, to where the device keeps them; if
    /// they do not fit there, a link to host memory, which the same kernels follow.
    fn write_kept(&self, state: &OffloadState, at: usize) -> Result<()> {
        let block = &state.host.blocks()[at];
        let Some(kept) = &block.kept else { return Ok(()) };
        let stored = state.stored(at);
        if stored.bytes() as u64 <= kept.bytes {
            let to = kept.span().part(0, stored.bytes());
            let job = CopyJob { to, from: Location::host(stored) };
            return bulk_copy::write_device(self.device(), job);
        }
        let on_device = state.on_device(at).unwrap_or(Span::EMPTY);
        let text = host_memory(self.device(), LINK as usize)?;
        bytes::write(text.data(), &link(on_device.start() as u64, on_device.bytes() as u64));
        let job = CopyJob {
            to: kept.span().part(0, LINK as usize),
            from: Location::host(text.data().part(0, LINK as usize)),
        };
        bulk_copy::write_device(self.device(), job)
    }

    /// Sets the bytes of a new block to 0.
    pub(super) fn clear_block(&self, state: &mut OffloadState, at: usize) -> Result<()> {
        let block = &state.host.blocks()[at];
        let place = block.place(&state.host.units()[block.unit]);
        match block.encoding {
            None => bytes::fill(place.part(0, block.bytes as usize), 0),
            Some(Encoding { coded, decoded_bytes, .. }) => {
                let zeros = Mapping::anonymous(decoded_bytes as usize)?;
                let zeros = zeros.span().part(0, decoded_bytes as usize);
                let encoded = in_memory::encode(coded, zeros, place, 0)?;
                state.host.note_encoded(at, encoded.encoded_bytes);
            }
        }
        Ok(())
    }

    /// Copies the bytes of an offloaded parameter, from its lowest element to the end of its highest,
    /// to host memory, decompressed if they are compressed.
    pub fn read(&self, index: usize, target: Span) -> Result<()> {
        let state = self.state()?;
        let parameter = state.parameter(index)?;
        let bytes = parameter.layout.span_bytes();
        let block = match parameter.backing {
            Backing::Block { block, offset } => Some((block, offset)),
            _ if state.in_pieces(index) && !parameter.incomplete => None,
            _ => fail!(
                WB_ERR_NOT_FOUND,
                "asked to read parameter {:?} from host memory, where it is not: it is resident, or its \
                 replacement failed",
                parameter.name()
            ),
        };
        if (target.bytes() as u64) != bytes {
            fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked to read parameter {:?} of {bytes} bytes to {} bytes: give memory for as many",
                parameter.name(),
                target.bytes()
            );
        }
        let Some((block, offset)) = block else {
            let Some(from) = state.own_location(index) else { return Ok(()) };
            let stream = OwnedStream::new(self.device())?;
            self.device().copy(target, from.span, stream.get())?;
            return self.device().backend().synchronize(stream.get());
        };
        let Block { unit, offset: start, .. } = state.host.blocks()[block];
        state.read_unit(unit, start + offset, target)
    }
}
