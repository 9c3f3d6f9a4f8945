//! Groups that parameters' names imply.

/// Which part of a parameter's name is the name of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Up to the first segment that is a number, as `model.layers.3`; without one, the module.
    Layer,
    /// All but the last segment.
    Module,
}

impl Grouping {
    /// The group of a parameter; empty for a name of one segment.
    pub fn group_of(self, name: &str) -> &str {
        let module = name.rfind('.').unwrap_or(0);
        if self == Self::Module {
            return &name[..module];
        }
        let mut end = 0;
        for segment in name.split('.') {
            end += segment.len();
            if !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) {
                return &name[..end];
            }
            end += 1;
        }
        &name[..module]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_ends_with_its_number_and_other_names_with_their_module() {
        for (name, layer, module) in [
            ("model.layers.3.mlp.up.weight", "model.layers.3", "model.layers.3.mlp.up"),
            ("h.0.experts.7.w", "h.0", "h.0.experts.7"),
            ("model.norm.weight", "model.norm", "model.norm"),
            ("w2.weight", "w2", "w2"),
            ("weight", "", ""),
            ("12", "12", ""),
            ("", "", ""),
            (".5.x", ".5", ".5"),
        ] {
            assert_eq!(Grouping::Layer.group_of(name), layer, "{name}");
            assert_eq!(Grouping::Module.group_of(name), module, "{name}");
        }
    }
}
