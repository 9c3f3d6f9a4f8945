//! Every encoder gives the bytes of the reference, and every decoder the values.

use proptest::prelude::*;

use crate::codec::format::{Tile, read_entry};
use crate::codec::{in_memory, reference};
use crate::device::host::codec::codecs;
use crate::os::bytes;
use crate::os::mapping::Mapping;
use crate::os::span::Span;
use crate::tensor::coded::{CodedType, ENTRY, HEADER, TILE, tiles};

/// Memory of a test, with some bytes before and behind that nothing may write.
pub(super) struct Memory {
    mapping: Mapping,
    bytes: usize,
}

/// Bytes on each side.
const GUARD: usize = 64;

impl Memory {
    pub fn new(bytes: usize) -> Self {
        let mapping = Mapping::anonymous(bytes + 2 * GUARD).unwrap();
        bytes::fill(mapping.span(), 0xa5);
        Self { mapping, bytes }
    }

    pub fn of(content: &[u8]) -> Self {
        let memory = Self::new(content.len());
        bytes::write(memory.span(), content);
        memory
    }

    pub fn span(&self) -> Span {
        self.mapping.span().part(GUARD, self.bytes)
    }

    pub fn read(&self) -> Vec<u8> {
        bytes::read(self.span())
    }

    pub fn is_guarded(&self) -> bool {
        let behind = self.mapping.span().part(GUARD + self.bytes, GUARD);
        bytes::is_filled(self.mapping.span().part(0, GUARD), 0xa5) && bytes::is_filled(behind, 0xa5)
    }
}

/// A pseudorandom number generator (splitmix64).
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// A normally distributed number.
    fn normal(&mut self) -> f64 {
        let mut uniform = || (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
    }
}

/// A number rounded towards zero to a coded type, with exponents out of its range set to zero.
fn rounded(coded: CodedType, number: f32) -> u32 {
    let bits = number.to_bits();
    let (sign, exponent) = (bits >> 31, (bits >> 23 & 0xff) as i32 - 127);
    let in_type = |mantissa: u32, bias: i32, width: u32| match exponent + bias {
        e if (1..1 << width).contains(&e) => {
            sign << (width + mantissa) | (e as u32) << mantissa | bits << 9 >> (32 - mantissa)
        }
        _ => sign << (width + mantissa),
    };
    match coded {
        CodedType::F32 => bits,
        CodedType::Bf16 => bits >> 16,
        CodedType::F16 => in_type(10, 15, 5),
        CodedType::E4m3 => in_type(3, 7, 4),
        CodedType::E5m2 => in_type(2, 15, 5),
    }
}

/// Weights as a model has them.
pub(super) fn weights(coded: CodedType, count: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let scale = if coded == CodedType::E4m3 { 100.0 } else { 0.02 };
    of_values(coded, count, |_| rounded(coded, (random.normal() * scale) as f32))
}

fn of_values(coded: CodedType, count: usize, mut value: impl FnMut(usize) -> u32) -> Vec<u8> {
    let size = coded.bytes() as usize;
    (0..count).flat_map(|at| value(at).to_le_bytes()[..size].to_vec()).collect()
}

fn entries(encoded: &[u8], coded: CodedType, decoded_bytes: u64) -> Vec<Tile> {
    let entry = |tile: u64| {
        let at = (HEADER + tile * ENTRY) as usize;
        let bytes = TILE.min(decoded_bytes - tile * TILE);
        read_entry(&encoded[at..at + 16], coded, bytes).unwrap().tile
    };
    (0..tiles(decoded_bytes)).map(entry).collect()
}

/// Compresses and decompresses with the reference and with every instruction set. Returns the
/// compressed bytes.
pub(super) fn check(coded: CodedType, source: &[u8]) -> Vec<u8> {
    let wanted = reference::encode(coded, source);
    assert_eq!(reference::decode(&wanted).as_deref(), Some(source), "the reference");
    let most = coded.max_bytes(source.len() as u64).unwrap();
    assert!(wanted.len() as u64 <= most, "{} of at most {most}", wanted.len());
    let from = Memory::of(source);
    for (at, codec) in codecs().iter().enumerate() {
        for threads in [1, 3] {
            let target = Memory::new(most as usize);
            let used = codec.encode(coded, from.span(), target.span(), threads);
            assert!(target.read()[..used as usize] == wanted, "codec {at} encodes {coded:?}");
            assert!(target.is_guarded(), "codec {at} writes outside of its target");
            let encoded = target.span().part(0, used as usize);
            let (decoded, bytes) = (Memory::new(source.len()), source.len() as u64);
            let damaged = codec.decode(coded, encoded, bytes, 0, decoded.span(), threads);
            assert_eq!(damaged, None, "codec {at} decodes {coded:?}");
            assert!(decoded.read() == source, "codec {at} decodes {coded:?}");
            assert!(decoded.is_guarded(), "codec {at} writes outside of its target");
            let wrong = codec.verify(encoded, bytes, 0, decoded.span(), threads);
            assert_eq!(wrong, 0, "codec {at} verifies {coded:?}");
        }
    }
    wanted
}

/// Makes a value of its number.
type Class = Box<dyn FnMut(usize) -> u32>;

fn whole(coded: CodedType) -> usize {
    (TILE / coded.bytes()) as usize
}

#[test]
fn every_pattern_of_16_bits_survives() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for coded in [CodedType::Bf16, CodedType::F16] {
        check(coded, &all);
        // In an order in which no tile is all of one exponent.
        let mixed: Vec<u8> =
            (0..=u16::MAX).flat_map(|at| at.wrapping_mul(40_503).to_le_bytes()).collect();
        check(coded, &mixed);
    }
    for coded in [CodedType::E4m3, CodedType::E5m2] {
        check(coded, &all);
    }
}

#[test]
fn every_class_of_values_survives_at_every_size_around_a_tile() {
    for coded in CodedType::ALL {
        let tile = whole(coded);
        let sign = 1u32 << (8 * coded.bytes() - 1);
        let top = (sign - 1) | sign;
        let mut random = Random(1);
        let mut classes: Vec<(&str, Class)> = vec![
            ("zeros", Box::new(|_| 0)),
            ("negative zeros", Box::new(move |_| sign)),
            ("zeros of both signs", Box::new(move |at| sign * ((at as u32 * 7 % 5) & 1))),
            ("subnormals", Box::new(|at| (at as u32 * 37 % 4) & 7)),
            ("largest exponents", Box::new(move |at| top ^ (at as u32 * 11 % 4))),
            ("random bits", Box::new(move |_| random.next() as u32 & top)),
            ("counting", Box::new(move |at| at as u32 & top)),
            ("one outlier", Box::new(move |at| if at % 4096 == 77 { top } else { 0x3b })),
            ("two values", Box::new(|at| if at % 3 == 0 { 0x3c } else { 0x44 })),
        ];
        for count in
            [0, 1, 2, 3, 7, 8, tile - 1, tile, tile + 1, 2 * tile - 1, 2 * tile, 2 * tile + 9]
        {
            for (name, class) in &mut classes {
                let source = of_values(coded, count, class);
                let encoded = check(coded, &source);
                if count > 0 && name.starts_with("zeros") && !name.contains("both") {
                    let tiles = entries(&encoded, coded, source.len() as u64);
                    assert!(tiles.iter().all(|tile| matches!(tile, Tile::Constant([0, 0, 0, 0]))));
                }
                if *name == "random bits" && count == 2 * tile {
                    let tiles = entries(&encoded, coded, source.len() as u64);
                    assert!(tiles.iter().all(|tile| *tile == Tile::Raw), "{coded:?}: {tiles:?}");
                }
            }
        }
    }
}

#[test]
fn a_type_inside_of_a_larger_one_has_constant_planes() {
    let narrow = weights(CodedType::Bf16, 8192, 3);
    let wide: Vec<u8> = narrow.chunks(2).flat_map(|half| [0, 0, half[0], half[1]]).collect();
    let encoded = check(CodedType::F32, &wide);
    for tile in entries(&encoded, CodedType::F32, wide.len() as u64) {
        assert!(matches!(tile, Tile::Coded { constant: 0b0011, .. }), "{tile:?}");
    }
    // As many bytes as the same values of the smaller type take, but for the directory.
    let plain = reference::encode(CodedType::Bf16, &narrow).len();
    assert!(encoded.len() < plain + plain / 50, "{} and {plain}", encoded.len());
    // One exponent, and all signs and mantissas.
    let powers = of_values(CodedType::Bf16, 4096, |at| 0x3f80 | ((at as u32 * 13) & 0x807f));
    let encoded = check(CodedType::Bf16, &powers);
    let tiles = entries(&encoded, CodedType::Bf16, powers.len() as u64);
    assert_eq!(tiles, [Tile::Coded { counts: [0; 4], constant: 0b1000 }]);
}

#[test]
fn weights_take_what_the_format_promises() {
    // docs/codec.md states these for normally distributed weights.
    let promised = [0.670, 0.860, 0.838, 0.835, 0.715];
    for (coded, most) in CodedType::ALL.into_iter().zip(promised) {
        let source = weights(coded, 64 * whole(coded), 5);
        let ratio = check(coded, &source).len() as f64 / source.len() as f64;
        assert!(ratio <= most, "{coded:?}: {ratio}");
    }
    let mut random = Random(9);
    for coded in CodedType::ALL {
        let source: Vec<u8> = (0..1 << 18).flat_map(|_| random.next().to_le_bytes()).collect();
        let most = source.len() as f64 * 1.002;
        let encoded = check(coded, &source).len() as f64;
        assert!(encoded <= most, "{coded:?}: random bits take {encoded}, at most {most}");
    }
}

#[test]
fn tensors_with_more_tiles_than_are_sampled_have_the_ranks_of_the_sample() {
    // Every second tile is sampled; the others have exponents of their own.
    let tiles = 1030;
    let mut source = Vec::new();
    for tile in 0..tiles {
        let value = if tile % 2 == 0 { [0x80u8, 0x3f] } else { [0x00, 0x42] };
        source.extend(value.repeat(TILE as usize / 2));
        // A tile of two exponents, so that it is coded.
        source[tile * TILE as usize] = 0;
        source[tile * TILE as usize + 1] = 0;
    }
    let encoded = check(CodedType::Bf16, &source);
    assert_eq!(&encoded[24..27], [127, 0, 1], "{:?}", &encoded[24..36]);
}

#[test]
fn ranges_of_tiles_are_decoded_alone() {
    for coded in CodedType::ALL {
        let source = weights(coded, 5 * whole(coded) + 24, 11);
        let encoded = Memory::of(&reference::encode(coded, &source));
        let (all, tile) = (source.len(), TILE as usize);
        for (from, to) in
            [(0, tile), (tile, 3 * tile), (4 * tile, all), (5 * tile, all), (all, all)]
        {
            let target = Memory::new(to - from);
            let range = in_memory::decode(encoded.span(), from as u64, target.span(), true, 0);
            if from % tile == 0 {
                range.unwrap();
                assert!(target.read() == source[from..to] && target.is_guarded());
            } else {
                assert!(range.unwrap_err().message.contains("tiles of 8192 bytes"));
            }
        }
        for (from, bytes) in [(1, tile), (0, tile - 1), (0, all + 1), (tile, all)] {
            let target = Memory::new(bytes);
            in_memory::decode(encoded.span(), from as u64, target.span(), true, 0).unwrap_err();
        }
    }
}

#[test]
fn a_measure_of_all_tiles_is_exact_and_one_of_some_is_close() {
    for coded in CodedType::ALL {
        let source = Memory::of(&weights(coded, 40 * whole(coded) + 8, 13));
        let exact = in_memory::measure(coded, source.span(), 0).unwrap();
        let encoded = reference::encode(coded, &source.read());
        assert_eq!(exact.encoded_bytes, encoded.len() as u64);
        let sampled = in_memory::measure(coded, source.span(), 8).unwrap();
        let ratio = sampled.encoded_bytes as f64 / exact.encoded_bytes as f64;
        assert!((0.99..1.01).contains(&ratio), "{coded:?}: {ratio}");
        let nothing = in_memory::measure(coded, Span::EMPTY, 8).unwrap();
        assert_eq!(nothing.encoded_bytes, HEADER);
    }
}

#[test]
fn each_changed_bit_of_a_tile_changes_its_checksum() {
    let mut random = Random(17);
    let mut tile: Vec<u8> = (0..1024).flat_map(|_| random.next().to_le_bytes()).collect();
    let before = reference::checksum(&tile);
    for bit in 0..tile.len() * 8 {
        tile[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(reference::checksum(&tile), before, "bit {bit}");
        tile[bit / 8] ^= 1 << (bit % 8);
    }
    for words in [(0, 1), (3, 700), (2046, 2047)] {
        let mut swapped = tile.clone();
        for byte in 0..4 {
            swapped.swap(4 * words.0 + byte, 4 * words.1 + byte);
        }
        assert_ne!(reference::checksum(&swapped), before, "words {words:?}");
    }
}

fn any_values() -> impl Strategy<Value = (CodedType, Vec<u8>)> {
    let kinds = (0..5usize, 0..3usize, 0..40usize, any::<u64>(), 0..6u32, 1..8u32);
    kinds.prop_map(|(coded, whole_tiles, more, seed, kind, spread)| {
        let coded = CodedType::ALL[coded];
        let mut random = Random(seed);
        let count = whole_tiles * whole(coded) + more;
        let source = of_values(coded, count, |at| {
            let bits = random.next() as u32;
            match kind {
                0 => bits,
                1 => rounded(coded, (random.normal() * 0.02) as f32),
                2 => rounded(coded, (random.normal() * 6.0).exp() as f32),
                3 => bits >> (bits % (4 * spread)),
                4 => bits & 0x8080_8080,
                _ if at % 1000 < 990 => rounded(coded, 0.25),
                _ => bits,
            }
        });
        (coded, source)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_values_survive((coded, source) in any_values()) {
        check(coded, &source);
    }
}
