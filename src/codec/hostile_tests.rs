//! Damaged compressed bytes are an error, and nothing outside of the given memory is accessed.

use crate::codec::tests::{Memory, Random, weights};
use crate::codec::{in_memory, reference};
use crate::device::host::codec::codecs;
use crate::os::span::Span;
use crate::status::WB_ERR_DAMAGED;
use crate::tensor::coded::{CodedType, ENTRY, HEADER, TILE};

/// A tensor with coded, constant and raw tiles, compressed.
fn sample(coded: CodedType) -> (Vec<u8>, Vec<u8>) {
    let values = (TILE / coded.bytes()) as usize;
    let mut source = weights(coded, 2 * values, 3);
    source.extend(vec![7; TILE as usize]);
    let mut random = Random(5);
    source.extend((0..TILE / 8 + 3).flat_map(|_| random.next().to_le_bytes()));
    let encoded = reference::encode(coded, &source);
    (source, encoded)
}

/// Decodes everything; the bytes end where a page that cannot be read begins.
fn decode(encoded: &[u8], decoded_bytes: usize) -> crate::error::Result<Vec<u8>> {
    let (from, target) = (AtEnd::of(encoded), Memory::new(decoded_bytes));
    let done = in_memory::decode(from.span(), 0, target.span(), true, 0);
    assert!(target.is_guarded(), "bytes outside of the target were written");
    done.map(|_| target.read())
}

/// Bytes that end at the end of a mapping.
struct AtEnd(crate::os::mapping::Mapping, usize);

impl AtEnd {
    fn of(content: &[u8]) -> Self {
        let this = Self(
            crate::os::mapping::Mapping::anonymous(content.len().max(1)).unwrap(),
            content.len(),
        );
        crate::os::bytes::write(this.span(), content);
        this
    }

    fn span(&self) -> Span {
        let whole = self.0.span();
        whole.part(whole.bytes() - self.1, self.1)
    }
}

#[test]
fn every_truncation_is_an_error() {
    for coded in CodedType::ALL {
        let (source, encoded) = sample(coded);
        assert!(decode(&encoded, source.len()).unwrap() == source);
        for bytes in (0..200).chain((200..encoded.len()).step_by(97)) {
            let error = decode(&encoded[..bytes], source.len()).unwrap_err();
            assert_eq!(error.status, WB_ERR_DAMAGED, "{bytes}: {}", error.message);
        }
    }
}

#[test]
fn every_changed_byte_is_an_error_or_changes_nothing() {
    for coded in CodedType::ALL {
        let (source, encoded) = sample(coded);
        let mut random = Random(23);
        let header = (HEADER + 5 * ENTRY) as usize;
        let places = (0..header).chain((0..400).map(|_| random.next() as usize % encoded.len()));
        for at in places.collect::<Vec<_>>() {
            let mut damaged = encoded.clone();
            damaged[at] ^= 1 << (random.next() % 8);
            match decode(&damaged, source.len()) {
                // Padding, a rank that no value has, an unused constant.
                Ok(decoded) => assert!(decoded == source, "byte {at} of {coded:?}"),
                Err(error) if at != 8 && (16..).contains(&at) => {
                    assert_eq!(error.status, WB_ERR_DAMAGED, "byte {at}: {}", error.message);
                }
                // The number of values, of which fewer or more are asked for.
                Err(_) => {}
            }
        }
    }
}

#[test]
fn lies_of_the_directory_and_counts_that_differ_are_found_without_checksums() {
    for coded in CodedType::ALL {
        let (source, encoded) = sample(coded);
        let found = |damaged: &[u8]| {
            let (from, target) = (AtEnd::of(damaged), Memory::new(source.len()));
            let inspected = in_memory::inspect(from.span()).is_err();
            let decoded = in_memory::decode(from.span(), 0, target.span(), false, 1);
            assert!(target.is_guarded(), "bytes outside of the target were written");
            (inspected, decoded.is_err())
        };
        // Two coded tiles, and a raw one; the third is constant, and has its value there.
        for tile in [0, 1, 3] {
            let entry = (HEADER + tile * ENTRY) as usize;
            for bit in (0..32).chain(64..128) {
                let mut damaged = encoded.clone();
                damaged[entry + bit / 8] ^= 1 << (bit % 8);
                let (inspected, decoded) = found(&damaged);
                assert!(decoded, "{coded:?}: bit {bit} of tile {tile}");
                assert!(inspected || bit >= 64, "{coded:?}: the offset of tile {tile}, bit {bit}");
            }
        }
        // The first level ends where the counts of the first tile say; its codes are in front.
        let body = (HEADER + 5 * ENTRY) as usize;
        let values = (TILE / coded.bytes()) as usize;
        let planes: usize = coded.plane_bits().iter().map(|bits| values * *bits as usize / 8).sum();
        let mut damaged = encoded.clone();
        let codes = &mut damaged[body + planes..][..values / 4];
        let at = codes.iter().position(|four| four & 3 != 3).expect("not all are escapes");
        codes[at] |= 3;
        assert_eq!(found(&damaged), (false, true), "{coded:?}: an escape more");
    }
}

/// What a device's kernels do with bytes that were not checked, in the functions that have the same
/// bounds: any bytes, any number of them, any number of values.
#[test]
fn unchecked_bytes_are_decoded_within_their_memory() {
    let mut random = Random(31);
    for coded in CodedType::ALL {
        let (source, encoded) = sample(coded);
        for _ in 0..300 {
            let mut damaged = encoded.clone();
            for _ in 0..random.next() % 40 {
                let reach = if random.next().is_multiple_of(2) { 200 } else { damaged.len() };
                let at = random.next() as usize % reach;
                damaged[at] = random.next() as u8;
            }
            damaged.truncate(1 + random.next() as usize % damaged.len());
            let (from, target) = (AtEnd::of(&damaged), Memory::new(source.len()));
            for codec in codecs() {
                codec.decode(coded, from.span(), source.len() as u64, 0, target.span(), 1);
                codec.verify(from.span(), source.len() as u64, 0, target.span(), 1);
                assert!(target.is_guarded(), "bytes outside of the target were written");
            }
        }
    }
}
