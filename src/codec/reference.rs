//! The format of docs/codec.md, one value at a time: plain, slow, and what the kernels are compared
//! with.

use crate::codec::format::{
    EXPONENT_PLANE, Entry, LEVELS, MAGIC, RANKS, RANKS_AT, Tile, VERSION, body_bytes,
    check_directory, read_entry, read_header,
};
use crate::tensor::coded::{CodedType, ENTRY, HEADER, TILE, UNIT, tiles};

/// Values that share the sums of a level.
const ROUND: usize = 1024;
const LANES: usize = 32;
const SAMPLED: usize = 1024;

/// The order in which a tile's codes are written: the index of the value in each slot.
fn slots(coded: CodedType) -> Vec<usize> {
    let (values, piece) = ((TILE / coded.bytes()) as usize, (16 / coded.bytes()) as usize);
    (0..values)
        .map(|slot| {
            let (round, lane, at) = (slot / ROUND, slot % ROUND / LANES, slot % LANES);
            round * ROUND + (at / piece * LANES + lane) * piece + at % piece
        })
        .collect()
}

fn values(coded: CodedType, bytes: &[u8]) -> Vec<u32> {
    let value =
        |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    bytes.chunks(coded.bytes() as usize).map(value).collect()
}

/// The exponent of a value, and what each plane has of it.
fn split(coded: CodedType, value: u32) -> (u32, Vec<u32>) {
    match coded {
        CodedType::Bf16 => (value >> 7 & 0xff, vec![value >> 15 << 7 | value & 0x7f]),
        CodedType::F16 => (value >> 10 & 0x1f, vec![value & 0xff, value >> 8 & 3, value >> 15]),
        CodedType::F32 => (
            value >> 23 & 0xff,
            vec![value & 0xff, value >> 8 & 0xff, value >> 31 << 7 | value >> 16 & 0x7f],
        ),
        CodedType::E4m3 => (value >> 3 & 0xf, vec![value >> 7 << 3 | value & 7]),
        CodedType::E5m2 => (value >> 2 & 0x1f, vec![value & 3, value >> 7]),
    }
}

fn join(coded: CodedType, exponent: u32, planes: &[u32]) -> u32 {
    match coded {
        CodedType::Bf16 => planes[0] >> 7 << 15 | exponent << 7 | planes[0] & 0x7f,
        CodedType::F16 => planes[2] << 15 | exponent << 10 | planes[1] << 8 | planes[0],
        CodedType::F32 => {
            planes[2] >> 7 << 31
                | exponent << 23
                | (planes[2] & 0x7f) << 16
                | planes[1] << 8
                | planes[0]
        }
        CodedType::E4m3 => planes[0] >> 3 << 7 | exponent << 3 | planes[0] & 7,
        CodedType::E5m2 => planes[1] << 7 | exponent << 2 | planes[0],
    }
}

/// The checksum of a tile's decoded bytes.
pub fn checksum(tile: &[u8]) -> u32 {
    // Loops, since a test computes it for each bit of a tile, and iterators are slow where nothing is optimized.
    let (mut sum, mut at) = (0, 0);
    while at < tile.len() {
        let (mut word, bytes) = ([0; 4], 4.min(tile.len() - at));
        word[..bytes].copy_from_slice(&tile[at..at + bytes]);
        sum += u64::from(u32::from_le_bytes(word)) * (2 * (at as u64 / 4) + 1);
        at += 4;
    }
    (sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// Writes numbers of a few bits, the first in the lowest ones, and fills the last byte with zeros.
fn pack(numbers: &[u32], bits: u64) -> Vec<u8> {
    let mut bytes = vec![0; (numbers.len() * bits as usize).div_ceil(8)];
    for (at, number) in numbers.iter().enumerate() {
        let bit = at * bits as usize;
        bytes[bit / 8] |= (number << (bit % 8)) as u8;
    }
    bytes
}

fn unpack(bytes: &[u8], bits: u64, count: usize) -> Vec<u32> {
    let number = |at: usize| {
        let bit = at * bits as usize;
        u32::from(bytes[bit / 8]) >> (bit % 8) & ((1 << bits) - 1)
    };
    (0..count).map(number).collect()
}

/// The exponents with a code, most frequent first.
fn ranks(coded: CodedType, source: &[u8]) -> Vec<u32> {
    let whole = source.len() / TILE as usize;
    let mut counts = vec![0u64; 1 << coded.exponent_bits()];
    for tile in (0..whole).step_by(whole.div_ceil(SAMPLED).max(1)) {
        let first = &source[tile * TILE as usize..][..ROUND * coded.bytes() as usize];
        for value in values(coded, first) {
            counts[split(coded, value).0 as usize] += 1;
        }
    }
    let mut exponents: Vec<u32> = (0..counts.len() as u32).collect();
    // A stable sort: of equal counts the smaller exponent comes first.
    exponents.sort_by_key(|exponent| std::cmp::Reverse(counts[*exponent as usize]));
    exponents.truncate(RANKS);
    exponents
}

fn encode_tile(coded: CodedType, ranks: &[u32], bytes: &[u8]) -> (Tile, Vec<u8>) {
    let numbers = values(coded, bytes);
    if numbers.iter().all(|number| *number == numbers[0]) {
        let size = coded.bytes() as usize;
        return (Tile::Constant(std::array::from_fn(|at| bytes[at % size])), Vec::new());
    }
    let mut raw = bytes.to_vec();
    raw.resize(bytes.len().next_multiple_of(UNIT as usize), 0);
    if bytes.len() as u64 != TILE {
        return (Tile::Raw, raw);
    }
    let parts: Vec<_> = numbers.iter().map(|number| split(coded, *number)).collect();
    let order = slots(coded);
    let (mut constant, mut constants, mut body) = (0, vec![0; UNIT as usize], Vec::new());
    for (plane, bits) in coded.plane_bits().iter().enumerate() {
        let plane_of = |value: usize| parts[value].1[plane];
        if (0..parts.len()).all(|value| plane_of(value) == plane_of(0)) {
            constant |= 1 << plane;
            constants[plane] = plane_of(0) as u8;
        } else if *bits == 8 {
            body.extend((0..parts.len()).map(|value| plane_of(value) as u8));
        } else {
            let in_slots: Vec<u32> = order.iter().map(|value| plane_of(*value)).collect();
            body.extend(pack(&in_slots, *bits));
        }
    }
    let mut counts = [0; LEVELS];
    if parts.iter().all(|part| part.0 == parts[0].0) {
        constant |= 1 << EXPONENT_PLANE;
        constants[EXPONENT_PLANE as usize] = parts[0].0 as u8;
    } else {
        let mut left: Vec<u32> = order.iter().map(|value| parts[*value].0).collect();
        for level in 0..LEVELS {
            let on_level = &ranks[3 * level..3 * level + 3];
            let code = |e: &u32| on_level.iter().position(|rank| rank == e).unwrap_or(3) as u32;
            let codes: Vec<u32> = left.iter().map(code).collect();
            body.extend(pack(&codes, 2));
            left.retain(|exponent| code(exponent) == 3);
            counts[level] = left.len() as u64;
        }
        body.extend(left.iter().map(|exponent| *exponent as u8));
    }
    if constant != 0 {
        body.splice(0..0, constants);
    }
    body.resize(body.len().next_multiple_of(UNIT as usize), 0);
    if body.len() as u64 >= TILE {
        return (Tile::Raw, raw);
    }
    (Tile::Coded { counts, constant }, body)
}

/// Compresses values.
pub fn encode(coded: CodedType, source: &[u8]) -> Vec<u8> {
    let ranks = ranks(coded, source);
    let mut encoded = MAGIC.to_vec();
    encoded.extend([VERSION, coded as u8, 0, 0]);
    encoded.extend((source.len() as u64).to_le_bytes());
    encoded.extend(0u64.to_le_bytes());
    encoded.extend(ranks.iter().map(|rank| *rank as u8));
    encoded.resize((HEADER + ENTRY * tiles(source.len() as u64)) as usize, 0);
    for (at, bytes) in source.chunks(TILE as usize).enumerate() {
        let (tile, body) = encode_tile(coded, &ranks, bytes);
        let bits = match tile {
            Tile::Raw => 1 << 60,
            Tile::Constant(value) => 2 << 60 | u64::from(u32::from_le_bytes(value)),
            Tile::Coded { counts, constant } => {
                let counts = counts.iter().rev().fold(0, |bits, count| bits << 14 | count);
                u64::from(constant) << 56 | counts
            }
        };
        let entry = HEADER as usize + at * ENTRY as usize;
        let offset = (encoded.len() as u64 / UNIT) as u32;
        encoded[entry..entry + 4].copy_from_slice(&offset.to_le_bytes());
        encoded[entry + 4..entry + 8].copy_from_slice(&checksum(bytes).to_le_bytes());
        encoded[entry + 8..entry + 16].copy_from_slice(&bits.to_le_bytes());
        encoded.extend(body);
    }
    let total = encoded.len() as u64;
    encoded[16..24].copy_from_slice(&total.to_le_bytes());
    encoded
}

/// Decompresses a tile; `None` if its codes are not as many as its entry says.
fn decode_tile(
    coded: CodedType,
    ranks: &[u8],
    entry: Entry,
    body: &[u8],
    bytes: u64,
) -> Option<Vec<u8>> {
    let (counts, constant) = match entry.tile {
        Tile::Raw => return Some(body[..bytes as usize].to_vec()),
        Tile::Constant(value) => {
            return Some((0..bytes as usize).map(|at| value[at % 4]).collect());
        }
        Tile::Coded { counts, constant } => (counts, constant),
    };
    let count = (TILE / coded.bytes()) as usize;
    let order = slots(coded);
    let mut at = if constant == 0 { 0 } else { UNIT as usize };
    let mut planes = vec![Vec::new(); count];
    for (plane, bits) in coded.plane_bits().iter().enumerate() {
        let is_constant = constant >> plane & 1 == 1;
        let packed = if is_constant { 0 } else { count * *bits as usize / 8 };
        let numbers = unpack(&body[at..at + packed], *bits, if is_constant { 0 } else { count });
        for slot in 0..count {
            let value = if *bits == 8 { slot } else { order[slot] };
            planes[value].push(match is_constant {
                true => u32::from(body[plane]) & ((1 << bits) - 1),
                false => numbers[slot],
            });
        }
        at += packed;
    }
    let mut exponents = vec![u32::from(body[EXPONENT_PLANE as usize]); count];
    if constant >> EXPONENT_PLANE & 1 == 0 {
        let mut codes = Vec::new();
        let mut on_level = count;
        for left in counts {
            codes.push(unpack(&body[at..], 2, on_level));
            at += on_level.div_ceil(4);
            on_level = left as usize;
        }
        let mut next: Vec<u32> =
            body[at..at + on_level].iter().map(|raw| u32::from(*raw)).collect();
        for (level, codes) in codes.iter().enumerate().rev() {
            let mut taken = next.into_iter();
            let found: Option<Vec<u32>> = codes
                .iter()
                .map(|code| match code {
                    3 => taken.next(),
                    code => Some(u32::from(ranks[3 * level + *code as usize])),
                })
                .collect();
            next = found.filter(|_| taken.next().is_none())?;
        }
        for (slot, exponent) in next.into_iter().enumerate() {
            exponents[order[slot]] = exponent & ((1 << coded.exponent_bits()) - 1);
        }
    }
    let joined =
        exponents.iter().zip(&planes).map(|(exponent, planes)| join(coded, *exponent, planes));
    Some(joined.flat_map(|value| value.to_le_bytes()[..coded.bytes() as usize].to_vec()).collect())
}

/// Decompresses values; `None` if anything is damaged, the checksums included.
pub fn decode(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut info = read_header(encoded, encoded.len() as u64).ok()?;
    check_directory(&encoded[HEADER as usize..], &mut info).ok()?;
    let ranks = &encoded[RANKS_AT..RANKS_AT + RANKS];
    let mut decoded = Vec::new();
    for tile in 0..tiles(info.decoded_bytes) {
        let bytes = TILE.min(info.decoded_bytes - tile * TILE);
        let at = (HEADER + tile * ENTRY) as usize;
        let entry = read_entry(&encoded[at..at + ENTRY as usize], info.coded, bytes)?;
        let end = entry.offset + body_bytes(entry.tile, info.coded, bytes);
        let body = &encoded[entry.offset as usize..end as usize];
        let found = decode_tile(info.coded, ranks, entry, body, bytes)?;
        if checksum(&found) != entry.checksum {
            return None;
        }
        decoded.extend(found);
    }
    Some(decoded)
}
