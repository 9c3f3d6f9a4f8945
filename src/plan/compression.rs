//! Which parameters are carried compressed, and in how many bytes.

use std::fmt;
use std::fmt::{Display, Formatter};

use crate::error::Result;
use crate::plan::selector::SelectorList;
use crate::tensor::coded::{CodedType, TILE};
use crate::tensor::dtype::Dtype;

/// Bytes from which on a parameter that is not named is compressed: for fewer, the launch of a kernel
/// takes longer than the bytes that are saved.
const LEAST_BYTES: u64 = 256 << 10;
/// What a parameter that is not named is compressed to at most, in sixteenths of its bytes: kernels
/// read host memory at nine tenths of the rate of copies.
const MOST_SIXTEENTHS: u64 = 14;

/// The number of windows: device memory through which compressed bytes pass to slots. One is filled while
/// the other is decoded.
pub const WINDOWS: usize = 2;
/// Bytes of a window.
pub const WINDOW_BYTES: u64 = 32 << 20;
/// Compressed bytes from which on they pass through windows: fewer are read by a kernel over the link, at nine
/// tenths of the rate of copies, before a window would be copied and decoded.
pub const WINDOWED_BYTES: u64 = 2 << 20;
/// The part of a budget of device memory that windows may take.
const WINDOWS_PART: u64 = 16;

/// Bytes of all windows.
pub const ALL_WINDOWS: u64 = WINDOWS as u64 * WINDOW_BYTES;

/// Whether windows take little enough of a budget of device memory, if there is one.
pub fn windows_fit(budget: Option<u64>) -> bool {
    budget.is_none_or(|budget| ALL_WINDOWS <= budget / WINDOWS_PART)
}

/// Which offloaded parameters cross the link compressed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Compression {
    /// None.
    #[default]
    Off,
    /// Those that are copied faster for it, of all or of those that selectors name.
    Auto(Vec<String>),
    /// Those that these selectors name, as far as they become smaller.
    Selected(Vec<String>),
}

/// How a parameter is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// Type of the values.
    pub coded: CodedType,
    /// Bytes that it is expected to take: as a sample of the source does, or else as values of the
    /// type usually do.
    pub encoded_bytes: u64,
    /// Whether its source has these bytes, which are taken unchanged.
    pub given: bool,
}

impl Coding {
    /// Whether it passes through windows, where there are some.
    pub fn is_windowed(&self) -> bool {
        self.encoded_bytes >= WINDOWED_BYTES
    }
}

/// Why a parameter is not compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RawReason {
    NotAsked,
    NotNamed,
    ReadInPlace,
    NoViews(std::sync::Arc<str>),
    Type(&'static str),
    Few(u64),
    Shape,
    Poorly { encoded_bytes: u64, bytes: u64 },
}

impl Display for RawReason {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => write!(to, "not asked for"),
            Self::NotNamed => write!(to, "no selector of compress names it"),
            Self::ReadInPlace => write!(to, "the device reads it in place"),
            Self::NoViews(reason) => {
                write!(
                    to,
                    "the device decodes from mapped host memory, which there is not: {reason}"
                )
            }
            Self::Type(name) => write!(to, "values of {name} are not compressed"),
            Self::Few(bytes) => write!(to, "its {bytes} bytes are too few"),
            Self::Shape => write!(to, "its bytes are not whole values, or too many for one tensor"),
            Self::Poorly { encoded_bytes, bytes } => {
                write!(to, "its {bytes} bytes would become {encoded_bytes}")
            }
        }
    }
}

/// Decides what is compressed.
pub struct CompressionRule {
    /// Whether parameters are named for the sake of it, not chosen by what is saved.
    named: bool,
    /// Of those that may be compressed; `None` for all.
    selectors: Option<SelectorList>,
    /// Why nothing can be compressed on this platform.
    no_views: Option<std::sync::Arc<str>>,
}

impl CompressionRule {
    /// The rule of an option, for a device that reads host memory in place or, for a reason, does not.
    pub fn new(compression: &Compression, no_views: Option<&str>) -> Result<Self> {
        let selectors = match compression {
            Compression::Off => Some(SelectorList::parse(&[])?),
            Compression::Auto(texts) if texts.is_empty() => None,
            Compression::Auto(texts) | Compression::Selected(texts) => {
                Some(SelectorList::parse(texts)?)
            }
        };
        let named = matches!(compression, Compression::Selected(_));
        Ok(Self { named, selectors, no_views: no_views.map(Into::into) })
    }

    /// The selectors that have matched no name.
    pub fn unmatched(&self) -> impl Iterator<Item = &str> {
        self.selectors.iter().flat_map(SelectorList::unmatched)
    }

    /// The type that a parameter of `bytes` bytes would be compressed as, or why it is not.
    pub fn candidate(
        &mut self,
        name: &str,
        dtype: Dtype,
        bytes: u64,
    ) -> std::result::Result<CodedType, RawReason> {
        if let Some(selectors) = &mut self.selectors
            && selectors.find_match(name).is_none()
        {
            return Err(RawReason::NotNamed);
        }
        if let Some(reason) = &self.no_views {
            return Err(RawReason::NoViews(reason.clone()));
        }
        let coded = CodedType::of(dtype).map_err(|_| RawReason::Type(dtype.name()))?;
        if bytes < if self.named { TILE } else { LEAST_BYTES } {
            return Err(RawReason::Few(bytes));
        }
        coded.max_bytes(bytes).map(|_| coded).map_err(|_| RawReason::Shape)
    }

    /// Whether a candidate is compressed, of which a sample takes `measured` bytes.
    pub fn judge(
        &self,
        coded: CodedType,
        bytes: u64,
        measured: Option<u64>,
    ) -> std::result::Result<Coding, RawReason> {
        let usual = || (u128::from(bytes) * u128::from(coded.usual_percent()) / 100) as u64;
        let encoded_bytes = measured.unwrap_or_else(usual);
        let most = if self.named { bytes.saturating_sub(1) } else { bytes / 16 * MOST_SIXTEENTHS };
        match encoded_bytes <= most {
            true => Ok(Coding { coded, encoded_bytes, given: false }),
            false => Err(RawReason::Poorly { encoded_bytes, bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::parameter::tests::parameter;
    use crate::plan::parameter::{Origin, Parameter, TransferMode};
    use crate::plan::plan::{ALIGNMENT, Budget, Plan, PlanOptions, capacity, host_bytes};
    use crate::plan::planner::plan;
    use crate::plan::tests::platform;
    use crate::tensor::dtype::{WB_DTYPE_BF16, WB_DTYPE_I8};
    use crate::tensor::layout::Layout;

    fn weight(at: usize, group: usize, bytes: u64, encoded_bytes: Option<u64>) -> Parameter {
        let dtype = Dtype::from_code(WB_DTYPE_BF16).unwrap();
        Parameter {
            layout: Layout::new(dtype, &[(bytes / 2) as i64], None).unwrap(),
            encoded_bytes,
            ..parameter(&format!("layers.{group}.w{at}"), &format!("layers.{group}"), 2, 0)
        }
    }

    /// Eight layers of two weights, of 1 MiB and 512 KiB, which become 67 % as large.
    fn model() -> Vec<Parameter> {
        let sizes = (0..16).map(|at| if at % 2 == 0 { 1 << 20 } else { 1 << 19 });
        let one = |(at, bytes): (usize, u64)| weight(at, at / 2, bytes, Some(bytes * 67 / 100));
        sizes.enumerate().map(one).collect()
    }

    fn options(budget: Budget, compress: Compression) -> PlanOptions {
        let mut options = PlanOptions::new(budget);
        options.compress = compress;
        options.link_bytes_per_second = 1e9;
        options.transfer_mode = TransferMode::Prefetch;
        options.allowed.everything_fits = true;
        options.allowed.nothing_offloaded = true;
        options
    }

    /// The sums of a plan are those of its storages.
    fn check_sums(plan: &Plan) {
        let coded = plan.storages.iter().filter_map(|one| Some((one, one.coding.as_ref().ok()?)));
        let sums = coded.clone().fold((0, 0), |(decoded, encoded), (one, coding)| {
            (decoded + one.bytes, encoded + coding.encoded_bytes)
        });
        assert_eq!((plan.decoded_bytes, plan.encoded_bytes), sums);
        assert!(coded.into_iter().all(|(one, _)| one.unit.is_some()));
        for unit in &plan.units {
            let in_unit = unit.storages.iter().map(|at| &plan.storages[*at]);
            let coded = |coding: &Coding| coding.coded;
            let bytes = |one: &crate::plan::plan::PlannedStorage| {
                capacity(one.bytes, one.coding.as_ref().ok().map(coded))
            };
            assert_eq!(unit.bytes, in_unit.clone().map(bytes).sum::<u64>());
            let host = |one: &crate::plan::plan::PlannedStorage| {
                host_bytes(one.bytes, one.coding.as_ref().ok())
            };
            assert_eq!(unit.host_bytes, in_unit.clone().map(host).sum::<u64>());
            // Storages whose host memory is as in the slot come first.
            assert!(in_unit.is_sorted_by_key(crate::plan::plan::PlannedStorage::is_given));
        }
        let host: u64 = plan.units.iter().map(|unit| unit.host_bytes).sum();
        assert_eq!(plan.arena_bytes, host.next_multiple_of(platform(true).page_bytes));
    }

    #[test]
    fn what_a_source_has_compressed_takes_no_more_host_memory() {
        let mut parameters = model();
        for one in parameters.iter_mut().step_by(2) {
            // Exact bytes, which no sample tells.
            one.origin = Origin::Encoded(one.encoded_bytes.take().unwrap());
        }
        let of = |compress, budget| {
            plan(
                parameters.clone(),
                options(Budget::OffloadBytes(budget), compress),
                &platform(true),
            )
        };
        let auto = || Compression::Auto(Vec::new());
        let made = of(auto(), u64::MAX / 2).unwrap();
        check_sums(&made);
        let given = 702_545u64.next_multiple_of(ALIGNMENT);
        let own = capacity(1 << 19, Some(CodedType::Bf16));
        assert_eq!(made.units.iter().map(|unit| unit.host_bytes).sum::<u64>(), 8 * (given + own));
        assert_eq!(made.encoded_bytes, 8 * (702_545 + 351_272));
        let reason = |at: usize| made.reason(&made.parameters[at]);
        assert!(reason(0).ends_with("; compressed in its file to 67 %"), "{}", reason(0));
        assert!(reason(1).ends_with("; compressed to 67 %"), "{}", reason(1));
        // A budget of exactly these bytes has space for all, one page less does not.
        assert_eq!(of(auto(), made.arena_bytes).unwrap().decoded_bytes, made.decoded_bytes);
        let less = of(auto(), made.arena_bytes - 4096).unwrap();
        check_sums(&less);
        assert!(less.decoded_bytes < made.decoded_bytes && less.arena_bytes < made.arena_bytes);
        // Raw, it has its values there.
        let raw = of(Compression::Off, u64::MAX / 2).unwrap();
        assert_eq!(raw.arena_bytes, raw.payload_bytes);
    }

    #[test]
    fn fewer_bytes_cross_the_link_and_reads_in_place_are_slower_than_copies() {
        let of = |compress| {
            let budget = Budget::OffloadBytes(u64::MAX / 2);
            plan(model(), options(budget, compress), &platform(true)).unwrap()
        };
        let raw = of(Compression::Off);
        assert_eq!((raw.encoded_bytes, raw.decode_seconds), (0, Some(0.0)));
        for compress in
            [Compression::Auto(Vec::new()), Compression::Selected(vec!["layers".into()])]
        {
            let made = of(compress);
            check_sums(&made);
            assert_eq!(made.decoded_bytes, made.payload_bytes);
            assert_eq!(made.step_bytes, made.encoded_bytes);
            assert_eq!(made.encoded_bytes, (0..8).map(|_| 702_545 + 351_272).sum::<u64>());
            let (seconds, raw_seconds) = (made.step_seconds.unwrap(), raw.step_seconds.unwrap());
            assert!((seconds / raw_seconds - 0.67 / 0.9).abs() < 1e-3, "{seconds} {raw_seconds}");
            assert!((made.decode_seconds.unwrap() - seconds).abs() < 1e-6);
        }
        let some = of(Compression::Auto(vec!["layers.3".into()]));
        check_sums(&some);
        assert_eq!(some.decoded_bytes, 3 << 19);
        assert_eq!(some.step_bytes, raw.step_bytes - some.decoded_bytes + some.encoded_bytes);
    }

    #[test]
    fn large_weights_pass_through_windows_at_the_rate_of_copies() {
        let of = |budget, slot_bytes| {
            let options = PlanOptions { slot_bytes, ..options(budget, Compression::Auto(vec![])) };
            let large = (0..600).map(|at| weight(at, at, 4 << 20, None)).collect();
            let made = plan(large, options, &platform(true)).unwrap();
            let held = made.resident_bytes + made.slot_bytes + made.window_bytes + made.kept_bytes;
            assert!(budget.device_bytes().is_none_or(|budget| held <= budget), "{held} bytes");
            made
        };
        let everything = Budget::OffloadBytes(u64::MAX / 2);
        let made = of(everything, None);
        assert_eq!(made.window_bytes, ALL_WINDOWS);
        assert!((made.step_seconds.unwrap() - made.step_bytes as f64 / 1e9).abs() < 1e-6);
        assert_eq!(made.decode_seconds, Some(0.0));
        // Where slots are limited, or a budget is small, kernels read over the link.
        let limited = of(everything, Some(1 << 30));
        assert_eq!((limited.window_bytes, limited.step_bytes), (0, made.step_bytes));
        assert!(limited.step_seconds > made.step_seconds);
        for (budget, windows) in [(1 << 30, ALL_WINDOWS), ((1 << 30) - 1, 0)] {
            assert_eq!(of(Budget::DeviceBytes(budget), None).window_bytes, windows);
        }
        // Where the device keeps all of them, none is used.
        let kept = of(Budget::DeviceBytes(2 << 30), None);
        assert!(kept.kept_bytes > 0 && kept.step_bytes == 0);
        assert_eq!(kept.window_bytes, 0);
    }

    #[test]
    fn what_gains_nothing_stays_raw_for_a_reason() {
        let auto = Compression::Auto(Vec::new());
        let named = Compression::Selected(vec!["*".into()]);
        let (bf16, i8) =
            (Dtype::from_code(WB_DTYPE_BF16).unwrap(), Dtype::from_code(WB_DTYPE_I8).unwrap());
        let found = |compression: &Compression, dtype, bytes: u64, measured| {
            let mut rule = CompressionRule::new(compression, None).unwrap();
            let coded = rule.candidate("layers.0.w", dtype, bytes);
            coded.and_then(|coded| rule.judge(coded, bytes, measured))
        };
        let few = |bytes| Err(RawReason::Few(bytes));
        assert_eq!(found(&auto, bf16, (256 << 10) - 2, None), few((256 << 10) - 2));
        assert_eq!(found(&named, bf16, TILE - 2, None), few(TILE - 2));
        assert_eq!(found(&auto, i8, 1 << 20, None), Err(RawReason::Type("int8")));
        assert_eq!(found(&named, bf16, TILE + 1, None), Err(RawReason::Shape));
        assert_eq!(found(&Compression::Off, bf16, 1 << 20, None), Err(RawReason::NotNamed));
        // 7/8 is worth it by itself, more is not; a byte less is enough where it is named.
        let bytes = 1 << 20;
        let poorly = |encoded_bytes| Err(RawReason::Poorly { encoded_bytes, bytes });
        assert!(found(&auto, bf16, bytes, Some(bytes / 8 * 7)).is_ok());
        assert_eq!(found(&auto, bf16, bytes, Some(bytes / 8 * 7 + 1)), poorly(bytes / 8 * 7 + 1));
        assert!(found(&named, bf16, bytes, Some(bytes - 1)).is_ok());
        assert_eq!(found(&named, bf16, bytes, Some(bytes)), poorly(bytes));
        // Without a sample, as weights usually are.
        assert_eq!(found(&auto, bf16, bytes, None).unwrap().encoded_bytes, bytes * 68 / 100);
        let mut blind = CompressionRule::new(&auto, Some("off")).unwrap();
        let reason = blind.candidate("w", bf16, bytes).unwrap_err().to_string();
        assert!(reason.contains("mapped host memory") && reason.ends_with("off"), "{reason}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// No budget is exceeded, sums are right, and zero-copy storages stay raw.
        #[test]
        fn budgets_hold_with_compressed_parameters(
            sizes in prop::collection::vec((1u64..600_000, 0u64..120, 0usize..4), 1..24),
            groups in 1usize..6,
            percent in 1u64..110,
            device in any::<bool>(),
            auto in any::<bool>(),
            views in any::<bool>(),
        ) {
            let parameters: Vec<_> = sizes.iter().enumerate().map(|(at, (half, ratio, mode))| {
                let bytes = 2 * half;
                let mut one = weight(at, at % groups, bytes, Some(bytes * ratio / 100));
                if half % 2 == 0 {
                    one.origin = Origin::Encoded(bytes * ratio / 100);
                }
                one.transfer_mode = match mode {
                    0 if views => TransferMode::ZeroCopy,
                    1 => TransferMode::OnDemand,
                    _ => TransferMode::Auto,
                };
                one
            }).collect();
            let total: u64 = parameters.iter().map(|one| one.layout.span_bytes()).sum();
            let budget = total * percent / 100 + 8192;
            let kind = if device { Budget::DeviceBytes(budget) } else { Budget::OffloadBytes(budget) };
            let compress = match auto {
                true => Compression::Auto(Vec::new()),
                false => Compression::Selected(vec!["*".into()]),
            };
            let Ok(made) = plan(parameters, options(kind, compress), &platform(views)) else {
                return Ok(());
            };
            check_sums(&made);
            match device {
                true => {
                    prop_assert!(made.resident_bytes + made.slot_bytes + made.kept_bytes <= budget);
                }
                false => prop_assert!(made.arena_bytes <= budget),
            }
            prop_assert!(views || made.decoded_bytes == 0);
            for unit in made.units.iter().filter(|one| one.transfer_mode == TransferMode::ZeroCopy) {
                prop_assert!(unit.storages.iter().all(|at| made.storages[*at].coding.is_err()));
            }
        }

        /// The space of a compressed parameter is enough for any values, and little more than its own.
        #[test]
        fn the_space_is_enough(values in 1u64..10_000_000) {
            for coded in CodedType::ALL {
                let bytes = values * coded.bytes();
                let space = capacity(bytes, Some(coded));
                prop_assert!(space >= coded.max_bytes(bytes).unwrap() && space.is_multiple_of(ALIGNMENT));
                prop_assert!(space <= bytes + bytes / 500 + 95 + ALIGNMENT);
            }
        }
    }
}
