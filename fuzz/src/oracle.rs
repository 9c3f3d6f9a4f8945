//! A second, plain implementation of decisions of the library, to compare with.

use weighbridge::tensor::dtype::*;

/// Bytes of an element of each `WB_DTYPE_*`, from 1 on.
pub const DTYPE_BYTES: [i128; 18] = [1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 8, 1, 1, 1, 1];

/// Types that can be quantized.
pub const SOURCE_DTYPES: [wb_dtype; 3] = [WB_DTYPE_F16, WB_DTYPE_BF16, WB_DTYPE_F32];

/// Bytes from the first element down to the lowest one, and from there to the end of the highest one;
/// `None` if the layout is invalid: a negative size, or a product or a sum of more than 63 bits.
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

/// Whether a selector that is not a glob matches a name: its segments are consecutive segments of the name.
pub fn segments_match(text: &str, name: &str) -> bool {
    let (text, name): (Vec<_>, Vec<_>) = (text.split('.').collect(), name.split('.').collect());
    name.windows(text.len()).any(|some| some == text)
}

/// Whether a selector is a glob.
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// A part of a glob.
enum Piece {
    Any,
    One,
    /// A character in one of these ranges, or, if `false`, in none of them.
    Class(bool, Vec<(char, char)>),
}

/// The pieces of a glob without `**`; `None` if a class does not end.
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
                // A bracket that comes first belongs to the class.
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

/// Whether a glob without `**` matches a name: `*` any characters, `?` one, `[...]` one of a class.
pub fn glob_matches(glob: &str, name: &str) -> bool {
    let Some(pieces) = pieces(glob) else { return false };
    let name: Vec<char> = name.chars().collect();
    // matches[at]: the pieces so far match the first `at` characters of the name.
    let mut matches = vec![false; name.len() + 1];
    matches[0] = true;
    for piece in &pieces {
        let before = matches;
        matches = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            let one = at > 0 && before[at - 1];
            matches[at] = match piece {
                Piece::Any => before[at] || (at > 0 && matches[at - 1]),
                Piece::One => one,
                Piece::Class(within, ranges) => {
                    one && *within
                        == ranges.iter().any(|(from, to)| (from..=to).contains(&&name[at - 1]))
                }
            };
        }
    }
    matches[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_documented() {
        for (glob, name, matches) in [
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
            assert_eq!(glob_matches(glob, name), matches, "{glob} {name}");
        }
    }
}
