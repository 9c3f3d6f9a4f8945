//! [`Policy`]: whether to pin host memory, and whether the device reads it in place. Options take
//! precedence over the environment, and that over the platform.

use crate::device::backend::Capabilities;
use crate::error::{Result, fail, format_bytes};
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// Disables pinning.
pub const DISABLE_PIN_MEMORY: &str = "WEIGHBRIDGE_DISABLE_PIN_MEMORY";
/// Disables views.
pub const DISABLE_UVA: &str = "WEIGHBRIDGE_DISABLE_UVA";

/// A caller's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tristate {
    /// As the environment or the platform decides.
    #[default]
    Auto,
    /// No.
    Off,
    /// Yes.
    On,
}

/// The decisions and their reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whether to pin host memory.
    pub pin: bool,
    /// The reason.
    pub pin_reason: String,
    /// Whether the device reads host memory in place.
    pub views: bool,
    /// The reason.
    pub views_reason: String,
    /// `views` for a buffer that is pinned by its own option.
    views_when_pinned: bool,
}

impl Policy {
    /// Decides. `environment` returns the value of a variable.
    pub fn decide(
        pin: Tristate,
        views: Tristate,
        capabilities: &Capabilities,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let (pin, pin_reason) = match pin {
            Tristate::On => (true, "asked for in the options".into()),
            Tristate::Off => (false, "switched off in the options".into()),
            Tristate::Auto => match disabled(DISABLE_PIN_MEMORY, environment)? {
                Some(reason) => (false, reason),
                None => pin_by_platform(capabilities),
            },
        };
        let (views, views_reason, views_when_pinned) = match views {
            Tristate::On => (true, "asked for in the options".into(), true),
            Tristate::Off => (false, "switched off in the options".into(), false),
            Tristate::Auto => match disabled(DISABLE_UVA, environment)? {
                Some(reason) => (false, reason, false),
                None => {
                    let (views, reason) = views_by_platform(pin, capabilities);
                    (views, reason, views_by_platform(true, capabilities).0)
                }
            },
        };
        Ok(Self { pin, pin_reason, views, views_reason, views_when_pinned })
    }

    /// Whether a buffer is pinned: its own option takes precedence over the policy.
    pub fn pins(&self, choice: Tristate) -> bool {
        match choice {
            Tristate::Auto => self.pin,
            choice => choice == Tristate::On,
        }
    }

    /// Whether the device reads pinned, or pageable, memory in place.
    pub fn allows_views(&self, pinned: bool) -> bool {
        if pinned { self.views_when_pinned } else { self.views }
    }
}

fn disabled(
    variable: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<String>> {
    let Some(value) = environment(variable) else { return Ok(None) };
    match value.to_ascii_lowercase().as_str() {
        "" | "0" | "false" | "no" | "off" => Ok(None),
        "1" | "true" | "yes" | "on" => Ok(Some(format!("{variable}={value}"))),
        _ => fail!(WB_ERR_INVALID_ARGUMENT, "{variable}={value:?}: use 1 or 0"),
    }
}

fn pin_by_platform(capabilities: &Capabilities) -> (bool, String) {
    if capabilities.cuda && capabilities.pageable_access {
        let reason =
            "the device reads pageable memory, and pinned memory can count against its own";
        return (false, reason.into());
    }
    if capabilities.cuda {
        return (true, "copies from pinned memory run at the link's speed".into());
    }
    match capabilities.memlock_limit {
        None => (true, "this process may lock memory without limit".into()),
        Some(limit) => (false, format!("RLIMIT_MEMLOCK is {}", format_bytes(limit))),
    }
}

fn views_by_platform(pin: bool, capabilities: &Capabilities) -> (bool, String) {
    if capabilities.pageable_access {
        (true, "the device reads any memory of the process".into())
    } else if pin && capabilities.unified_addressing {
        (true, "the device reads pinned memory (unified addressing)".into())
    } else if pin {
        (false, "the device has no unified addressing".into())
    } else {
        (false, "nothing is pinned, and the device reads pinned memory only".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> Capabilities {
        Capabilities { cuda: true, unified_addressing: true, ..Capabilities::default() }
    }

    fn decide(
        pin: Tristate,
        views: Tristate,
        capabilities: &Capabilities,
        set: &[(&str, &str)],
    ) -> (bool, bool) {
        let policy = Policy::decide(pin, views, capabilities, &|variable| {
            set.iter().find(|(name, _)| *name == variable).map(|(_, value)| value.to_string())
        })
        .unwrap();
        assert!(!policy.pin_reason.is_empty() && !policy.views_reason.is_empty());
        (policy.pin, policy.views)
    }

    #[test]
    fn options_take_precedence_over_the_environment_and_that_over_the_platform() {
        use Tristate::{Auto, Off, On};
        let off = [(DISABLE_PIN_MEMORY, "1"), (DISABLE_UVA, "true")];
        assert_eq!(decide(Auto, Auto, &h200(), &[]), (true, true));
        assert_eq!(decide(Auto, Auto, &h200(), &off), (false, false));
        assert_eq!(decide(On, On, &h200(), &off), (true, true));
        assert_eq!(decide(Off, Auto, &h200(), &[]), (false, false));
        assert_eq!(decide(Auto, Off, &h200(), &[]), (true, false));
        assert_eq!(decide(Auto, Auto, &h200(), &[(DISABLE_UVA, "1")]), (true, false));
        assert_eq!(decide(Auto, Auto, &h200(), &[(DISABLE_PIN_MEMORY, "0")]), (true, true));
    }

    #[test]
    fn the_platform_decides_by_default() {
        use Tristate::Auto;
        let coherent = Capabilities { pageable_access: true, ..h200() };
        assert_eq!(decide(Auto, Auto, &coherent, &[]), (false, true));
        let split = Capabilities { unified_addressing: false, ..h200() };
        assert_eq!(decide(Auto, Auto, &split, &[]), (true, false));
        let host = Capabilities { pageable_access: true, ..Capabilities::default() };
        assert_eq!(decide(Auto, Auto, &host, &[]), (true, true));
        let limited = Capabilities { memlock_limit: Some(8 << 20), ..host };
        assert_eq!(decide(Auto, Auto, &limited, &[]), (false, true));
    }

    #[test]
    fn a_buffer_pinned_by_its_own_option_can_be_viewed() {
        let look_up = |variable: &str| (variable == DISABLE_PIN_MEMORY).then(|| "1".to_owned());
        let policy = Policy::decide(Tristate::Auto, Tristate::Auto, &h200(), &look_up).unwrap();
        assert!(!policy.pins(Tristate::Auto) && !policy.allows_views(false));
        assert!(policy.pins(Tristate::On) && policy.allows_views(true));
        let off = Policy::decide(Tristate::Auto, Tristate::Off, &h200(), &look_up).unwrap();
        assert!(!off.allows_views(true) && !off.pins(Tristate::Off));
    }

    #[test]
    fn an_unknown_environment_value_is_rejected() {
        let error =
            Policy::decide(Tristate::Auto, Tristate::Auto, &h200(), &|_| Some("perhaps".into()))
                .unwrap_err();
        assert_eq!(error.status, WB_ERR_INVALID_ARGUMENT);
        assert!(error.message.contains("WEIGHBRIDGE_DISABLE_PIN_MEMORY=\"perhaps\""));
    }
}
