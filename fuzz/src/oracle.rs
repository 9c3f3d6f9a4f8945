//! What the library decides, decided again in the plainest way.

use weighbridge::tensor::dtype::*;

/// Bytes of an element of each `WB_DTYPE_*`, from 1 on: written down a second time.
pub const DTYPE_BYTES: [i128; 18] = [1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 8, 1, 1, 1, 1];

/// Types whose numbers can be quantized.
pub const WIDE: [wb_dtype; 3] = [WB_DTYPE_F16, WB_DTYPE_BF16, WB_DTYPE_F32];

/// Bytes from the first element down to the lowest one, and from there to the end of the highest one;
/// `None` for what is no layout: negative sizes, or more than 63 bits of anything.
pub fn extent(bytes: i128, shape: &[i64], strides: Option<&[i64]>) -> Option<(u64, u64)> {
    let most = i128::from(i64::MAX);
    let mut elements: i128 = 1;
    for size in shape {
        if *size < 0 {
            return None;
        }
        elements = elements.checked_mul(i128::from(*size).max(1)).filter(|all| *all <= most)?;
    }
    if elements * bytes > most {
        return None;
    }
    if shape.contains(&0) {
        return Some((0, 0));
    }
    let Some(strides) = strides else { return Some((0, (elements * bytes) as u64)) };
    let (mut low, mut high) = (0i128, 0i128);
    for (size, stride) in shape.iter().zip(strides) {
        let reach = i128::from(size - 1) * i128::from(*stride);
        if reach.abs() > most {
            return None;
        }
        if reach < 0 { low -= reach } else { high += reach }
    }
    let span = (low + high + 1) * bytes;
    (span <= most).then_some(((low * bytes) as u64, span as u64))
}

/// Number of elements.
pub fn elements(shape: &[i64]) -> u64 {
    shape.iter().map(|size| *size as u64).product()
}

/// Whether the selector of a segment means a name: its segments are some of the name's in a row.
pub fn segments_match(text: &str, name: &str) -> bool {
    let (text, name): (Vec<_>, Vec<_>) = (text.split('.').collect(), name.split('.').collect());
    name.windows(text.len()).any(|some| some == text)
}

/// Whether a selector is a glob.
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Whether a glob of `*` and `?` alone means a name: `*` any characters, `?` one.
pub fn wildcards_match(glob: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Which beginnings of the name the glob so far means.
    let mut means = vec![false; name.len() + 1];
    means[0] = true;
    for wanted in glob.chars() {
        let before = means;
        means = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            means[at] = match wanted {
                '*' => before[at] || (at > 0 && means[at - 1]),
                '?' => at > 0 && before[at - 1],
                _ => at > 0 && before[at - 1] && name[at - 1] == wanted,
            };
        }
    }
    means[name.len()]
}
