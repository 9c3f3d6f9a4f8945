//! The PTX of the kernels, as the build packs it.

use std::io::Write;

/// The kernels of quantization, for every GPU from Turing on.
pub const BASE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quantize.sm_75.ptx"));
/// With Hopper's instructions for 8-bit floats.
pub const HOPPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quantize.sm_90.ptx"));
/// Those of the codec, for every GPU: newer ones have no instruction that it would use.
pub const CODEC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/codec.sm_75.ptx"));
/// Those of the expert cache, likewise.
pub const EXPERTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/experts.sm_75.ptx"));

/// Unpacks PTX, in which each register has the difference from the last one of its class, such as
/// `%rd-3`; `None` if it is damaged.
pub fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let text = String::from_utf8(miniz_oxide::inflate::decompress_to_vec(packed).ok()?).ok()?;
    let (mut last, mut ptx) = (Vec::<(&str, i64)>::new(), Vec::with_capacity(text.len()));
    let mut parts = text.split('%');
    ptx.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let letters = part.bytes().take_while(u8::is_ascii_lowercase).count();
        let (class, behind) = part.split_at(letters);
        let sign = usize::from(behind.starts_with('-'));
        let digits = behind.bytes().skip(sign).take_while(u8::is_ascii_digit).count();
        ptx.push(b'%');
        ptx.extend_from_slice(class.as_bytes());
        if letters == 0 || digits == 0 {
            ptx.extend_from_slice(behind.as_bytes());
            continue;
        }
        let (difference, behind) = behind.split_at(sign + digits);
        // There are few classes.
        let at = last.iter().position(|(known, _)| *known == class).unwrap_or_else(|| {
            last.push((class, 0));
            last.len() - 1
        });
        last[at].1 = last[at].1.checked_add(difference.parse().ok()?)?;
        write!(ptx, "{}", last[at].1).ok()?;
        ptx.extend_from_slice(behind.as_bytes());
    }
    Some(ptx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_ptx_is_unpacked() {
        let kernels = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let packed = [
            (BASE, "quantize.sm_75"),
            (HOPPER, "quantize.sm_90"),
            (CODEC, "codec.sm_75"),
            (EXPERTS, "experts.sm_75"),
        ];
        for (packed, name) in packed {
            let committed = std::fs::read(kernels.join(format!("{name}.ptx"))).unwrap();
            assert!(unpack(packed).unwrap() == committed, "{name}");
        }
        assert_eq!(unpack(b"damaged"), None);
    }
}
