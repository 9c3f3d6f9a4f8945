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

/// What a glob asks for, one after the other.
enum Piece {
    Any,
    One,
    /// One of these ranges, or, where `false`, none of them.
    Class(bool, Vec<(char, char)>),
}

/// The pieces of a glob without `**`; `None` where a class does not end.
fn pieces(glob: &str) -> Option<Vec<Piece>> {
    let mut rest: Vec<char> = glob.chars().rev().collect();
    let mut pieces = Vec::new();
    while let Some(next) = rest.pop() {
        pieces.push(match next {
            '*' => Piece::Any,
            '?' => Piece::One,
            '[' => {
                let within = rest.last() != Some(&'!');
                if !within {
                    rest.pop();
                }
                // A bracket that comes first is one of the class.
                let mut class = vec![rest.pop()?];
                loop {
                    match rest.pop()? {
                        ']' => break,
                        one => class.push(one),
                    }
                }
                Piece::Class(within, ranges(&class))
            }
            plain => Piece::Class(true, vec![(plain, plain)]),
        });
    }
    Some(pieces)
}

fn ranges(class: &[char]) -> Vec<(char, char)> {
    match class {
        [] => Vec::new(),
        [from, '-', to, rest @ ..] => [vec![(*from, *to)], ranges(rest)].concat(),
        [one, rest @ ..] => [vec![(*one, *one)], ranges(rest)].concat(),
    }
}

/// Whether a glob without `**` means a name: `*` any characters, `?` one, `[...]` one of a class.
pub fn glob_matches(glob: &str, name: &str) -> bool {
    let Some(pieces) = pieces(glob) else { return false };
    let name: Vec<char> = name.chars().collect();
    // Which beginnings of the name the glob so far means.
    let mut means = vec![false; name.len() + 1];
    means[0] = true;
    for piece in &pieces {
        let before = means;
        means = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            let one = at > 0 && before[at - 1];
            means[at] = match piece {
                Piece::Any => before[at] || (at > 0 && means[at - 1]),
                Piece::One => one,
                Piece::Class(within, ranges) => {
                    one && *within
                        == ranges.iter().any(|(from, to)| (from..=to).contains(&&name[at - 1]))
                }
            };
        }
    }
    means[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_mean_what_is_written_of_them() {
        for (glob, name, means) in [
            ("a*c", "abbc", true),
            ("a?c", "ac", false),
            ("[0-3]x", "2x", true),
            ("[0-3]x", "4x", false),
            ("[!0-3]x", "4x", true),
            ("[]-]x", "]x", true),
            ("[!]]", "]", false),
            ("[a-]", "-", true),
            ("[a", "[a", false),
        ] {
            assert_eq!(glob_matches(glob, name), means, "{glob} {name}");
        }
    }
}
