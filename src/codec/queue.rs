//! Queues the kernels that compress, decompress and verify, on any device. Nothing is allocated, and
//! nothing is waited for: calls may be captured.

use crate::codec::in_memory::{check_range, check_target};
use crate::device::backend::Stream;
use crate::device::device::Device;
use crate::device::kernel::{DecodeSource, Kernel};
use crate::error::{Result, fail};
use crate::os::span::Span;
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_UNALIGNED};
use crate::tensor::coded::{CodedType, ENTRY, HEADER, TILE, UNIT, tiles};

/// Compressed bytes that the device can read, and how many bytes they decode to.
#[derive(Debug, Clone, Copy)]
pub struct Encoded {
    /// The compressed bytes.
    pub span: Span,
    /// Bytes that they decode to.
    pub decoded_bytes: u64,
}

/// Queues compressing `source` to `target`. The header tells how many bytes were used.
pub fn encode(
    device: &Device,
    coded: CodedType,
    source: Span,
    target: Span,
    stream: Stream,
) -> Result<()> {
    check_target(coded, source.bytes() as u64, target)?;
    check_aligned(source, "the source")?;
    check_aligned(target, "the target")?;
    device.backend().check_process()?;
    device.backend().launch(Kernel::Encode { coded, source, target }, stream)
}

/// Queues decompressing the bytes from `offset` on to `target`.
pub fn decode(
    device: &Device,
    coded: CodedType,
    encoded: Encoded,
    offset: u64,
    target: Span,
    stream: Stream,
) -> Result<()> {
    coded.max_bytes(encoded.decoded_bytes)?;
    check(encoded, offset, target)?;
    device.backend().check_process()?;
    if target.bytes() == 0 {
        return Ok(());
    }
    let (first_tile, decoded_bytes) = (offset / TILE, encoded.decoded_bytes);
    let source = DecodeSource::Given;
    let kernel =
        Kernel::Decode { coded, encoded: encoded.span, decoded_bytes, first_tile, target, source };
    device.backend().launch(kernel, stream)
}

/// Queues comparing the checksums of decoded bytes from `offset` on. The tiles that differ are added
/// to `mismatches`.
pub fn verify(
    device: &Device,
    encoded: Encoded,
    offset: u64,
    decoded: Span,
    mismatches: Span,
    stream: Stream,
) -> Result<()> {
    check(encoded, offset, decoded)?;
    if !mismatches.start().is_multiple_of(8) || mismatches.bytes() != 8 {
        fail!(
            WB_ERR_UNALIGNED,
            "the count of mismatches is at {:#x}: it takes 8 bytes at a multiple of 8",
            mismatches.start()
        );
    }
    device.backend().check_process()?;
    if decoded.bytes() == 0 {
        return Ok(());
    }
    let (first_tile, decoded_bytes) = (offset / TILE, encoded.decoded_bytes);
    let encoded = encoded.span;
    let kernel = Kernel::Verify { encoded, decoded_bytes, first_tile, decoded, mismatches };
    device.backend().launch(kernel, stream)
}

/// Checks what the kernels take for granted; they check everything else themselves.
fn check(encoded: Encoded, offset: u64, decoded: Span) -> Result<()> {
    check_range(encoded.decoded_bytes, offset, decoded)?;
    check_aligned(encoded.span, "the compressed bytes")?;
    check_aligned(decoded, "the decoded bytes")?;
    let least = HEADER + ENTRY * tiles(encoded.decoded_bytes);
    if (encoded.span.bytes() as u64) < least {
        fail!(
            WB_ERR_INVALID_ARGUMENT,
            "there are {} compressed bytes; {} decoded ones have a header and a directory of {least}",
            encoded.span.bytes(),
            encoded.decoded_bytes
        );
    }
    Ok(())
}

/// Kernels move 16 bytes at a time.
fn check_aligned(span: Span, what: &str) -> Result<()> {
    if !(span.start() as u64).is_multiple_of(UNIT) {
        fail!(
            WB_ERR_UNALIGNED,
            "{what} begin at {:#x}, which is not a multiple of {UNIT}: move them to an address that is",
            span.start()
        );
    }
    Ok(())
}
