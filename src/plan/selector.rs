//! Which parameters are meant, by their names.

use glob::Pattern;

use crate::error::{Result, fail};
use crate::status::WB_ERR_SELECTOR;

/// Each star takes a piece of the thread's stack while a name is looked at.
const MOST_STARS: usize = 64;

/// Matches names: whole segments between dots, or a glob.
#[derive(Debug, Clone)]
pub struct Selector {
    text: String,
    glob: Option<Pattern>,
}

impl Selector {
    /// A text with any of `*?[` is a glob over the whole name, in which `*` crosses dots too. Any other
    /// text means names that contain it as whole segments.
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
                Err(error) => fail!(WB_ERR_SELECTOR, "the selector {text:?} is no glob: {error}"),
            },
        };
        Ok(Self { text: text.into(), glob })
    }

    /// The text that it was made of.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match &self.glob {
            Some(glob) => glob.matches(name),
            None => contains_segments(name, &self.text),
        }
    }
}

/// Whether `.name.` contains `.text.`.
fn contains_segments(name: &str, text: &str) -> bool {
    let begins = name.match_indices('.').map(|(dot, _)| dot + 1);
    [0].into_iter().chain(begins).any(|at| {
        let behind = name[at..].strip_prefix(text);
        behind.is_some_and(|behind| behind.is_empty() || behind.starts_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn segments_match_whole() {
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
    fn what_is_no_selector_is_refused() {
        assert_eq!(Selector::parse("").unwrap_err().status, WB_ERR_SELECTOR);
        assert!(Selector::parse("a[").unwrap_err().message.contains("a["));
        assert!(
            Selector::parse(&"*a".repeat(64)).is_ok_and(|found| found.matches(&"a".repeat(99)))
        );
        assert_eq!(Selector::parse(&"*a".repeat(65)).unwrap_err().status, WB_ERR_SELECTOR);
    }

    proptest! {
        /// As vLLM writes it.
        #[test]
        fn segments_agree_with_the_rule(
            name in "[ab]{1,2}(\\.[ab]{1,2}){0,4}", text in "[ab]{1,2}(\\.[ab]{1,2}){0,1}"
        ) {
            let rule = format!(".{name}.").contains(&format!(".{text}."));
            prop_assert_eq!(Selector::parse(&text).unwrap().matches(&name), rule);
        }
    }
}
