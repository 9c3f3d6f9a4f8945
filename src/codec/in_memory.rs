//! Compresses and decompresses values in host memory, on the calling thread and others.

use crate::codec::format::{Info, check_directory, read_header};
use crate::device::host::codec::widest;
use crate::error::{Result, fail};
use crate::os::bytes;
use crate::os::mapping::Mapping;
use crate::os::span::Span;
use crate::status::{
    WB_ERR_DAMAGED, WB_ERR_INVALID_ARGUMENT, WB_ERR_OUT_OF_RANGE, WB_ERR_UNALIGNED,
};
use crate::tensor::coded::{CodedType, ENTRY, HEADER, TILE, tiles};

/// Reads and checks the header and the directory of compressed bytes.
pub fn inspect(encoded: Span) -> Result<Info> {
    let available = encoded.bytes() as u64;
    let mut info = read_header(&bytes::read(encoded.part(0, HEADER as usize)), available)?;
    let directory = (ENTRY * tiles(info.decoded_bytes)) as usize;
    check_directory(&bytes::read(encoded.part(HEADER as usize, directory)), &mut info)?;
    Ok(info)
}

/// Compresses `source` to `target`, which must have the bytes of [`CodedType::max_bytes`].
pub fn encode(coded: CodedType, source: Span, target: Span, threads: usize) -> Result<Info> {
    check_target(coded, source.bytes() as u64, target)?;
    let used = widest().encode(coded, source, target, threads);
    inspect(target.part(0, used as usize))
}

/// Fails if `target` may be too small for the compressed bytes.
pub fn check_target(coded: CodedType, source_bytes: u64, target: Span) -> Result<()> {
    let most = coded.max_bytes(source_bytes)?;
    if (target.bytes() as u64) < most {
        fail!(
            WB_ERR_OUT_OF_RANGE,
            "the target has {} bytes; {source_bytes} bytes of {} may take {most}",
            target.bytes(),
            coded.name()
        );
    }
    Ok(())
}

/// What `source` would be compressed to. Looks at `most_tiles` tiles at most, evenly spread over the
/// source; 0 for all of them. The bytes of the others are estimated.
pub fn measure(coded: CodedType, source: Span, most_tiles: u64) -> Result<Info> {
    let (decoded_bytes, whole) = (source.bytes() as u64, tiles(source.bytes() as u64));
    let most = coded.max_bytes(decoded_bytes)?;
    let seen = if most_tiles == 0 { whole } else { whole.min(most_tiles) };
    // The sampled tiles are compressed as a tensor of their own.
    let sample_bytes = if seen == whole { decoded_bytes } else { seen * TILE };
    let most_sampled = coded.max_bytes(sample_bytes)? as usize;
    let memory = Mapping::anonymous(most_sampled + sample_bytes as usize)?;
    let target = memory.span().part(0, most_sampled);
    let sample = if seen == whole {
        source
    } else {
        let sample = memory.span().part(most_sampled, sample_bytes as usize);
        // The last tile may be shorter than others, and is left out.
        let step = |at: u64| at * (whole - 1) / seen;
        for at in 0..seen {
            let from = source.part((step(at) * TILE) as usize, TILE as usize);
            bytes::copy(sample.part((at * TILE) as usize, TILE as usize), from);
        }
        sample
    };
    let info = encode(coded, sample, target, 0)?;
    let fixed = HEADER + ENTRY * whole;
    let bodies = info.encoded_bytes - HEADER - ENTRY * seen;
    let scaled = |count: u64| match sample_bytes {
        0 => 0,
        _ => (u128::from(count) * u128::from(decoded_bytes) / u128::from(sample_bytes)) as u64,
    };
    Ok(Info {
        coded,
        decoded_bytes,
        encoded_bytes: (fixed + scaled(bodies)).min(most),
        raw_tiles: scaled(info.raw_tiles),
        constant_tiles: scaled(info.constant_tiles),
    })
}

/// Decompresses the bytes from `offset` on to `target`, and compares checksums if `verify` is set.
/// Fails with `WB_ERR_DAMAGED`; what `target` then has is undefined.
pub fn decode(
    encoded: Span,
    offset: u64,
    target: Span,
    verify: bool,
    threads: usize,
) -> Result<Info> {
    let info = inspect(encoded)?;
    decode_part(&info, encoded, offset, target, verify, threads)?;
    Ok(info)
}

/// As [`decode`], of bytes that were inspected before, and have not changed.
pub fn decode_part(
    info: &Info,
    encoded: Span,
    offset: u64,
    target: Span,
    verify: bool,
    threads: usize,
) -> Result<()> {
    check_range(info.decoded_bytes, offset, target)?;
    let encoded = encoded.part(0, info.encoded_bytes as usize);
    let (first, total) = (offset / TILE, info.decoded_bytes);
    if let Some(tile) = widest().decode(info.coded, encoded, total, first, target, threads) {
        fail!(
            WB_ERR_DAMAGED,
            "tile {tile} is damaged: its codes are not as many as its entry says"
        );
    }
    if verify {
        let wrong = widest().verify(encoded, total, first, target, threads);
        if wrong > 0 {
            fail!(
                WB_ERR_DAMAGED,
                "the checksums of {wrong} of {} tiles are wrong: the compressed bytes are damaged",
                tiles(target.bytes() as u64)
            );
        }
    }
    Ok(())
}

/// Fails unless a range consists of whole tiles of `decoded_bytes` bytes, the last one excepted.
pub fn check_range(decoded_bytes: u64, offset: u64, target: Span) -> Result<()> {
    let bytes = target.bytes() as u64;
    let end = match offset.checked_add(bytes) {
        Some(end) if end <= decoded_bytes => end,
        _ => fail!(
            WB_ERR_INVALID_ARGUMENT,
            "asked for {bytes} bytes from byte {offset} on; there are {decoded_bytes} decoded bytes"
        ),
    };
    if !offset.is_multiple_of(TILE) || !(end.is_multiple_of(TILE) || end == decoded_bytes) {
        fail!(
            WB_ERR_UNALIGNED,
            "asked for bytes {offset} to {end}: tiles of {TILE} bytes are decoded as a whole; begin \
             and end at multiples of {TILE}, or end at {decoded_bytes}"
        );
    }
    Ok(())
}
