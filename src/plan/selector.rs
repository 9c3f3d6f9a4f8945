//! Selectors of parameters by name.

use glob::Pattern;

use crate::error::{Result, fail};
use crate::status::WB_ERR_SELECTOR;

/// Matching recurses at each star: this bounds the stack that it takes.
const MOST_STARS: usize = 64;

/// Matches names by whole segments between dots, or by a glob.
#[derive(Debug, Clone)]
pub struct Selector {
    text: String,
    glob: Option<Pattern>,
}

impl Selector {
    /// A text with any of `*?[` is a glob of the whole name, in which `*` matches dots too. Any
    /// other text matches names that contain it as whole segments.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            fail!(WB_ERR_SELECTOR, "a selector is empty: leave it out to select everything");
        }
        if text.matches('*').count() > MOST_STARS {
            fail!(WB_ERR_SELECTOR, "a selector has more than {MOST_STARS} stars: use several");
        }
        let glob = match text.contains(['*', '?', '[']) {
            false => None,
            true => match Pattern::new(text) {
                Ok(glob) => Some(glob),
                Err(error) => {
                    fail!(WB_ERR_SELECTOR, "the selector {text:?} is not a valid glob: {error}")
                }
            },
        };
        Ok(Self { text: text.into(), glob })
    }

    /// Whether it matches a name.
    pub fn matches(&self, name: &str) -> bool {
        match &self.glob {
            Some(glob) => glob.matches(name),
            None => contains_segments(name, &self.text),
        }
    }
}

/// Several selectors, each with whether it has matched a name so far.
pub struct SelectorList(Vec<(Selector, bool)>);

impl SelectorList {
    /// Parses all of them.
    pub fn parse(texts: &[String]) -> Result<Self> {
        texts
            .iter()
            .map(|text| Ok((Selector::parse(text)?, false)))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text of the first selector that matches a name. All that match are noted.
    pub fn find_match(&mut self, name: &str) -> Option<&str> {
        let mut first = None;
        for (selector, matched) in &mut self.0 {
            if selector.matches(name) {
                *matched = true;
                first = first.or(Some(selector.text.as_str()));
            }
        }
        first
    }

    /// The texts of the selectors that have matched no name.
    pub fn unmatched(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, matched)| !matched).map(|(selector, _)| selector.text.as_str())
    }
}

/// Whether `.name.` contains `.text.`.
fn contains_segments(name: &str, text: &str) -> bool {
    let starts = name.match_indices('.').map(|(dot, _)| dot + 1);
    [0].into_iter().chain(starts).any(|at| {
        let rest = name[at..].strip_prefix(text);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn segments_match_as_a_whole() {
        for (text, name, matches) in [
            ("experts.w2_weight", "mlp.experts.w2_weight", true),
            ("experts.w2_weight", "mlp.experts.w2_weight_scale", false),
            ("layers.3", "model.layers.3.mlp.up", true),
            ("layers.3", "model.layers.30.mlp.up", false),
            ("layers.3", "layers.3", true),
            ("visual", "model.visual.patch", true),
            ("visual", "model.revisual.patch", false),
            ("a.a", "a.a.a", true),
            ("b.a", "bb.a.b.a", true),
            ("*.w?", "mlp.up.w2", true),
            ("*.w?", "mlp.up.w22", false),
            ("model.layers.[0-3].*", "model.layers.2.mlp.up", true),
            ("model.layers.[0-3].*", "model.layers.4.mlp.up", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(name), matches, "{text} {name}");
        }
    }

    #[test]
    fn malformed_selectors_fail() {
        assert_eq!(Selector::parse("").unwrap_err().status, WB_ERR_SELECTOR);
        assert!(Selector::parse("a[").unwrap_err().message.contains("a["));
        assert!(
            Selector::parse(&"*a".repeat(64)).is_ok_and(|found| found.matches(&"a".repeat(99)))
        );
        assert_eq!(Selector::parse(&"*a".repeat(65)).unwrap_err().status, WB_ERR_SELECTOR);
    }

    proptest! {
        /// vLLM's rule: `.name.` contains `.text.`.
        #[test]
        fn segments_match_by_the_rule_of_vllm(
            name in "[ab]{1,2}(\\.[ab]{1,2}){0,4}", text in "[ab]{1,2}(\\.[ab]{1,2}){0,1}"
        ) {
            let rule = format!(".{name}.").contains(&format!(".{text}."));
            prop_assert_eq!(Selector::parse(&text).unwrap().matches(&name), rule);
        }
    }
}
