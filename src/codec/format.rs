//! The header and the directory of compressed bytes, and what makes them well-formed.

use crate::error::{Result, fail};
use crate::status::WB_ERR_DAMAGED;
use crate::tensor::coded::{CodedType, ENTRY, HEADER, TILE, UNIT, tiles};

/// The first bytes of a header.
pub const MAGIC: [u8; 4] = *b"WBC1";
/// The version of the format.
pub const VERSION: u8 = 1;
/// Levels of codes.
pub const LEVELS: usize = 4;
/// Exponents with a code.
pub const RANKS: usize = 3 * LEVELS;
/// Where the header has them.
pub const RANKS_AT: usize = 24;
/// The bit of the exponents among the constant planes.
pub const EXPONENT_PLANE: u32 = 3;

/// What compressed bytes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Type of the values.
    pub coded: CodedType,
    /// Bytes of the values.
    pub decoded_bytes: u64,
    /// Compressed bytes, with header and directory.
    pub encoded_bytes: u64,
    /// Tiles that are not compressed.
    pub raw_tiles: u64,
    /// Tiles with one value.
    pub constant_tiles: u64,
}

/// What a tile's entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// Compressed.
    Coded {
        /// Values that are not on the first level, on the first two, and so on.
        counts: [u64; LEVELS],
        /// A bit for each plane that is constant.
        constant: u32,
    },
    /// Stored unchanged.
    Raw,
    /// One value, repeated to four bytes.
    Constant([u8; 4]),
}

/// An entry of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where the body is, in bytes from the start of the header.
    pub offset: u64,
    /// The checksum of the decoded bytes.
    pub checksum: u32,
    /// What the tile is.
    pub tile: Tile,
}

/// Reads an integer.
fn integer<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[at..at + N]);
    found
}

/// Reads and checks a header, of which `available` bytes are there in all, but not the counts of
/// tiles, which are in the directory.
pub fn read_header(header: &[u8], available: u64) -> Result<Info> {
    if available < HEADER || (header.len() as u64) < HEADER {
        fail!(WB_ERR_DAMAGED, "there are {available} bytes: a header alone has {HEADER}");
    }
    if header[..4] != MAGIC {
        fail!(WB_ERR_DAMAGED, "the bytes do not begin as compressed values do");
    }
    if header[4] != VERSION {
        fail!(
            WB_ERR_DAMAGED,
            "version {} of the format: this library reads version {VERSION}",
            header[4]
        );
    }
    let Some(coded) = CodedType::from_number(header[5]) else {
        fail!(WB_ERR_DAMAGED, "the header names type {}, which does not exist", header[5])
    };
    let decoded_bytes = u64::from_le_bytes(integer(header, 8));
    let encoded_bytes = u64::from_le_bytes(integer(header, 16));
    let most = coded.max_bytes(decoded_bytes);
    let Ok(most) = most else {
        fail!(WB_ERR_DAMAGED, "the header says {decoded_bytes} bytes of {}", coded.name())
    };
    let least = HEADER + ENTRY * tiles(decoded_bytes);
    if encoded_bytes < least || encoded_bytes > most {
        fail!(
            WB_ERR_DAMAGED,
            "the header says {encoded_bytes} compressed bytes, which {decoded_bytes} bytes cannot have"
        );
    }
    if encoded_bytes > available {
        fail!(
            WB_ERR_DAMAGED,
            "the header says {encoded_bytes} compressed bytes; there are {available}: they are \
             truncated"
        );
    }
    let ranks = &header[RANKS_AT..RANKS_AT + RANKS];
    if ranks.iter().any(|rank| u32::from(*rank) >> coded.exponent_bits() != 0) {
        fail!(WB_ERR_DAMAGED, "the header has an exponent that {} has not", coded.name());
    }
    if header[6..8].iter().chain(&header[RANKS_AT + RANKS..HEADER as usize]).any(|byte| *byte != 0)
    {
        fail!(WB_ERR_DAMAGED, "a reserved byte of the header is not 0");
    }
    Ok(Info { coded, decoded_bytes, encoded_bytes, raw_tiles: 0, constant_tiles: 0 })
}

/// Checks the directory, and counts tiles. Bodies must follow one another without gaps, so that each
/// is within the compressed bytes.
pub fn check_directory(directory: &[u8], info: &mut Info) -> Result<()> {
    let mut expected = HEADER + ENTRY * tiles(info.decoded_bytes);
    for tile in 0..tiles(info.decoded_bytes) {
        let decoded = TILE.min(info.decoded_bytes - tile * TILE);
        let at = (tile * ENTRY) as usize;
        let Some(entry) = read_entry(&directory[at..at + ENTRY as usize], info.coded, decoded)
        else {
            fail!(WB_ERR_DAMAGED, "the directory's entry of tile {tile} is not well-formed")
        };
        if entry.offset != expected {
            fail!(
                WB_ERR_DAMAGED,
                "the directory says that tile {tile} begins at byte {}; the tiles before it end at \
                 {expected}",
                entry.offset
            );
        }
        expected += body_bytes(entry.tile, info.coded, decoded);
        match entry.tile {
            Tile::Coded { .. } => {}
            Tile::Raw => info.raw_tiles += 1,
            Tile::Constant(_) => info.constant_tiles += 1,
        }
    }
    if expected != info.encoded_bytes {
        fail!(
            WB_ERR_DAMAGED,
            "the tiles of the directory end at byte {expected}; the header says {} compressed bytes",
            info.encoded_bytes
        );
    }
    Ok(())
}

/// Reads an entry of a tile with `decoded` bytes; `None` if it is not well-formed.
pub fn read_entry(entry: &[u8], coded: CodedType, decoded: u64) -> Option<Entry> {
    let bits = u64::from_le_bytes(integer(entry, 8));
    let tile = match bits >> 60 {
        0 if decoded == TILE => {
            let counts: [u64; LEVELS] = std::array::from_fn(|level| bits >> (14 * level) & 0x3fff);
            let constant = (bits >> 56) as u32 & 15;
            let planes = ((1 << coded.plane_bits().len()) - 1) | 1 << EXPONENT_PLANE;
            let one_exponent = constant >> EXPONENT_PLANE & 1 == 1;
            let most = if one_exponent { 0 } else { TILE / coded.bytes() };
            if constant & !planes != 0 || counts[0] > most || !counts.is_sorted_by(|a, b| a >= b) {
                return None;
            }
            Tile::Coded { counts, constant }
        }
        1 if bits << 4 == 0 => Tile::Raw,
        2 if bits << 4 >> 36 == 0 => Tile::Constant((bits as u32).to_le_bytes()),
        _ => return None,
    };
    let offset = u64::from(u32::from_le_bytes(integer(entry, 0))) * UNIT;
    Some(Entry { offset, checksum: u32::from_le_bytes(integer(entry, 4)), tile })
}

/// Bytes of a tile's body.
pub fn body_bytes(tile: Tile, coded: CodedType, decoded: u64) -> u64 {
    match tile {
        Tile::Raw => decoded.next_multiple_of(UNIT),
        Tile::Constant(_) => 0,
        Tile::Coded { counts, constant } => {
            let values = TILE / coded.bytes();
            let bits = coded.plane_bits().iter().enumerate();
            let kept = bits.filter(|(plane, _)| constant >> plane & 1 == 0);
            let planes: u64 = kept.map(|(_, bits)| values * bits / 8).sum();
            let first = if constant >> EXPONENT_PLANE & 1 == 1 { 0 } else { values / 4 };
            let levels: u64 = counts[..LEVELS - 1].iter().map(|count| count.div_ceil(4)).sum();
            let constants = if constant == 0 { 0 } else { UNIT };
            (constants + planes + first + levels + counts[LEVELS - 1]).next_multiple_of(UNIT)
        }
    }
}
