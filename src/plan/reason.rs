//! The reason for a parameter's placement; formatted when it is displayed.

use std::fmt;
use std::fmt::{Display, Formatter};
use std::sync::Arc;

use crate::plan::parameter::TransferMode;

/// Why a parameter is resident, or has its transfer mode.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reason {
    Empty,
    NotSelected,
    RequestedResident(Arc<str>),
    TiedToUnselected(Arc<str>),
    Excluded(Arc<str>),
    BudgetLeft { left: u64, needs: u64 },
    Fits,
    Tiny,
    Requested(TransferMode),
    Dense,
    Sparse(TransferMode),
    Experts { bytes: u64, slots: u64, experts: u64 },
    TiedAcrossGroups(TransferMode, Arc<[String]>),
    TooLarge { transfer_mode: TransferMode, slots: u64 },
    Pieces { resident: u64, bytes: u64 },
}

impl Display for Reason {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(to, "resident: it has no bytes"),
            Self::NotSelected => write!(to, "resident: not selected"),
            Self::RequestedResident(name) => write!(to, "resident: requested by {name:?}"),
            Self::TiedToUnselected(name) => {
                write!(to, "resident: tied to {name:?}, which is not selected")
            }
            Self::Excluded(selector) => write!(to, "resident: excluded by {selector:?}"),
            Self::BudgetLeft { left, needs } => {
                write!(to, "resident: budget left {}, needs {}", Grouped(*left), Grouped(*needs))
            }
            Self::Fits => write!(to, "resident: the rest fits"),
            Self::Tiny => write!(to, "resident: tiny, and larger ones leave first"),
            Self::Requested(transfer_mode) => write!(to, "{}: requested", transfer_mode.name()),
            Self::Dense => write!(to, "prefetch: a step reads all of it"),
            Self::Sparse(transfer_mode @ TransferMode::ZeroCopy) => {
                write!(to, "{}: a step reads a few rows of it", transfer_mode.name())
            }
            Self::Sparse(transfer_mode) => {
                write!(
                    to,
                    "{}: a step reads a few rows of it, but views are off",
                    transfer_mode.name()
                )
            }
            Self::Experts { bytes: 0, experts, .. } => {
                write!(to, "zero-copy: of {experts} experts, for a cache that no budget limits")
            }
            Self::Experts { bytes, slots, experts } => write!(
                to,
                "zero-copy: of experts, about {slots} of {experts} in slots of {}",
                Grouped(*bytes)
            ),
            Self::TiedAcrossGroups(transfer_mode, groups) => {
                write!(to, "{}: tied across groups {}", transfer_mode.name(), groups.join(", "))
            }
            Self::TooLarge { transfer_mode, slots } => write!(
                to,
                "{}: its group has more bytes than the {} of the slots",
                transfer_mode.name(),
                Grouped(*slots)
            ),
            Self::Pieces { resident, bytes } => write!(
                to,
                "zero-copy: in pieces, with {} of {} bytes on the device",
                Grouped(*resident),
                Grouped(*bytes)
            ),
        }
    }
}

/// A number with commas between thousands.
struct Grouped(u64);

impl Display for Grouped {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                write!(to, ",")?;
            }
            write!(to, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_with_thousands_separators() {
        for (number, text) in [(0, "0"), (999, "999"), (1024, "1,024"), (1_234_567, "1,234,567")] {
            assert_eq!(Grouped(number).to_string(), text);
        }
        let reason = Reason::BudgetLeft { left: 1024, needs: 4096 };
        assert_eq!(reason.to_string(), "resident: budget left 1,024, needs 4,096");
    }
}
