//! Settings that are on, off, or decided by the library.

use crate::capi::enumeration::c_enum;
use crate::device::policy::Tristate;

/// A setting that is on, off, or decided by the library.
pub type wb_tristate = i32;
/// Decided by the environment and the platform; the default.
pub const WB_TRISTATE_AUTO: wb_tristate = 0;
/// On; overrides the environment.
pub const WB_TRISTATE_ON: wb_tristate = 1;
/// Off; overrides the environment.
pub const WB_TRISTATE_OFF: wb_tristate = 2;

c_enum!(Tristate { WB_TRISTATE_AUTO => Auto, WB_TRISTATE_ON => On, WB_TRISTATE_OFF => Off });
