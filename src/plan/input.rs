//! The input of planning: parameters, the storages that they share, and their groups.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::error::{Result, fail};
use crate::plan::compression::{Coding, Compression, CompressionRule, RawReason};
use crate::plan::parameter::{AccessPattern, TransferMode};
use crate::plan::parameter::{Parameter, Storage, storages};
use crate::plan::plan::{ALIGNMENT, PlanOptions, Platform, capacity, host_bytes};
use crate::plan::step_model::{LinkBytes, StepModel};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_MAPPED, WB_ERR_OVERFLOW};

/// Of what a storage is expected to be compressed to, this part is planned in addition where the device
/// keeps it: the expected size is that of a sample.
const SPARE_PART: u64 = 256;

/// Everything that planning depends on.
pub struct PlanInput<'a> {
    pub options: PlanOptions,
    pub platform: &'a Platform,
    pub parameters: Vec<Parameter>,
    pub storages: Vec<Storage>,
    pub groups: Vec<String>,
    /// The index of each parameter's group.
    pub group_of: Vec<usize>,
    /// The groups that use each storage, ascending.
    pub groups_of: Vec<SmallVec<[usize; 1]>>,
    /// How each storage's parameters are used: many searches ask for it.
    uses: Vec<StorageUse>,
    /// How each storage is compressed where it is copied to a slot; empty if none is asked for.
    pub codings: Vec<std::result::Result<Coding, RawReason>>,
    /// Selectors of `compress` that match no parameter.
    pub unmatched_compress: Vec<String>,
    /// Device memory for windows, through which some storages pass.
    pub window_bytes: u64,
    /// Predicts the time of a step.
    pub model: StepModel,
}

/// How the parameters of a storage are used, taken together.
#[derive(Clone, Copy)]
struct StorageUse {
    /// The mode that one of them, or else the options, request.
    requested: TransferMode,
    /// Whether none is dense.
    sparse: bool,
    /// Whether all are experts.
    experts: bool,
}

impl<'a> PlanInput<'a> {
    pub fn new(
        parameters: Vec<Parameter>,
        options: PlanOptions,
        platform: &'a Platform,
    ) -> Result<Self> {
        let parameters = match &options.quantize {
            Some(rule) => rule.expand(parameters)?,
            None => parameters,
        };
        check_experts(&parameters)?;
        let storages = storages(&parameters)?;
        let mut indexes: HashMap<&str, usize> = HashMap::new();
        let mut groups = Vec::new();
        let mut group_of = Vec::with_capacity(parameters.len());
        let mut last: Option<(&Arc<str>, usize)> = None;
        for parameter in &parameters {
            let next = groups.len();
            let group = match last {
                // Parameters that follow one another share the name of their group.
                Some((name, group)) if Arc::ptr_eq(name, &parameter.group) => group,
                _ => *indexes.entry(&parameter.group).or_insert(next),
            };
            if group == next {
                groups.push(parameter.group.to_string());
            }
            last = Some((&parameter.group, group));
            group_of.push(group);
        }
        let groups_of: Vec<SmallVec<[usize; 1]>> = storages
            .iter()
            .map(|storage| {
                let mut groups: SmallVec<[usize; 1]> =
                    storage.parameters.iter().map(|(index, _)| group_of[*index]).collect();
                groups.sort_unstable();
                groups.dedup();
                groups
            })
            .collect();
        check_sums(&storages, &groups_of)?;
        let mut group_bytes = vec![0; groups.len()];
        for (storage, groups) in storages.iter().zip(&groups_of) {
            groups.iter().for_each(|group| group_bytes[*group] += storage.bytes);
        }
        let model = StepModel::new(&options, group_bytes)?;
        let use_of = |storage| StorageUse::new(storage, &parameters, options.transfer_mode);
        let uses = storages.iter().map(use_of).collect();
        let (codings, unmatched_compress) = codings(&options, platform, &parameters, &storages)?;
        Ok(Self {
            options,
            platform,
            parameters,
            storages,
            groups,
            group_of,
            groups_of,
            uses,
            codings,
            unmatched_compress,
            window_bytes: 0,
            model,
        })
    }

    /// How a storage is compressed if it is carried in a mode; `None` if it is not.
    pub fn coding(&self, storage: usize, mode: TransferMode) -> Option<Coding> {
        let coding = self.codings.get(storage)?.as_ref().ok().copied();
        coding.filter(|_| mode != TransferMode::ZeroCopy)
    }

    /// Bytes that a storage takes in its slot.
    pub fn carried_bytes(&self, storage: usize, mode: TransferMode) -> u64 {
        let coding = self.coding(storage, mode);
        capacity(self.storages[storage].bytes, coding.map(|coding| coding.coded))
    }

    /// Bytes that a storage takes in the arena.
    pub fn host_bytes(&self, storage: usize, mode: TransferMode) -> u64 {
        host_bytes(self.storages[storage].bytes, self.coding(storage, mode).as_ref())
    }

    /// Whether the source of a storage has the bytes that it is carried as, which are then not among others of
    /// its unit in host memory.
    pub fn is_given(&self, storage: usize, mode: TransferMode) -> bool {
        self.coding(storage, mode).is_some_and(|coding| coding.given)
    }

    /// What copying a storage moves over the link.
    pub fn link_bytes(&self, storage: usize, mode: TransferMode) -> LinkBytes {
        match self.coding(storage, mode) {
            Some(coding) if self.window_bytes > 0 && coding.is_windowed() => {
                LinkBytes { copied: coding.encoded_bytes, ..LinkBytes::default() }
            }
            Some(coding) => LinkBytes { decoded: coding.encoded_bytes, ..LinkBytes::default() },
            None => LinkBytes { copied: self.rounded_bytes(storage), ..LinkBytes::default() },
        }
    }

    /// Device memory that is planned for a storage that the device keeps compressed and decodes into the
    /// ring; `None` if it cannot, as where addresses are fixed, or would gain nothing.
    pub fn kept_bytes(&self, storage: usize) -> Option<u64> {
        // First, since without compression it reads nothing of the storage, and searches ask often.
        let Coding { coded, encoded_bytes, given } =
            self.coding(storage, TransferMode::Prefetch)?;
        let prefetched = self.preferred_mode(storage).ok()? == TransferMode::Prefetch;
        if !prefetched || self.groups_of[storage].len() > 1 || self.options.fixed_addresses {
            return None;
        }
        let most = capacity(self.storages[storage].bytes, Some(coded));
        let spare = if given { 0 } else { encoded_bytes / SPARE_PART };
        let bytes = (encoded_bytes + spare).max(1).next_multiple_of(ALIGNMENT);
        Some(bytes.min(most)).filter(|bytes| *bytes < self.rounded_bytes(storage))
    }

    /// Bytes that a storage takes on the device if it stays resident.
    pub fn rounded_bytes(&self, storage: usize) -> u64 {
        self.storages[storage].bytes.next_multiple_of(ALIGNMENT)
    }

    /// The mode that one of a storage's parameters, or else the options, request.
    pub fn requested_mode(&self, storage: usize) -> TransferMode {
        self.uses[storage].requested
    }

    /// The mode of a storage whose group is not too large for its slot.
    pub fn preferred_mode(&self, storage: usize) -> Result<TransferMode> {
        let views = self.platform.views;
        let shared = self.groups_of[storage].len() > 1;
        Ok(match self.requested_mode(storage) {
            TransferMode::ZeroCopy if !views => fail!(
                WB_ERR_NOT_MAPPED,
                "parameter {:?} is to be read in place ({}), and views are off: {}",
                self.first_name(storage),
                if self.is_experts(storage) { "by an expert cache" } else { "zero-copy" },
                self.platform.views_reason
            ),
            TransferMode::Auto if views && (shared || self.is_sparse(storage)) => {
                TransferMode::ZeroCopy
            }
            // Not in the ring, where a slot for several positions would leave gaps.
            TransferMode::Auto if shared => TransferMode::OnDemand,
            TransferMode::Auto => TransferMode::Prefetch,
            requested => requested,
        })
    }

    /// Whether a storage may be transferred in another mode than the preferred one.
    pub fn mode_is_free(&self, storage: usize) -> bool {
        self.requested_mode(storage) == TransferMode::Auto
    }

    /// Whether no parameter of a storage is dense.
    pub fn is_sparse(&self, storage: usize) -> bool {
        self.uses[storage].sparse
    }

    /// Whether all of a storage's parameters are experts.
    pub fn is_experts(&self, storage: usize) -> bool {
        self.uses[storage].experts
    }

    /// The groups that read all of a storage, ascending.
    pub fn dense_groups(&self, storage: usize) -> SmallVec<[usize; 1]> {
        let mut groups: SmallVec<[usize; 1]> = self.storages[storage]
            .parameters
            .iter()
            .filter(|(index, _)| self.parameters[*index].access_pattern == AccessPattern::Dense)
            .map(|(index, _)| self.group_of[*index])
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// The name of a storage's first parameter.
    pub fn first_name(&self, storage: usize) -> &str {
        &self.parameters[self.storages[storage].parameters[0].0].name
    }
}

impl StorageUse {
    fn new(storage: &Storage, parameters: &[Parameter], mode: TransferMode) -> Self {
        let mut this = Self { requested: TransferMode::Auto, sparse: true, experts: true };
        for (index, _) in &storage.parameters {
            let Parameter { access_pattern, transfer_mode, .. } = &parameters[*index];
            this.sparse &= *access_pattern != AccessPattern::Dense;
            this.experts &= *access_pattern == AccessPattern::Experts;
            if this.requested == TransferMode::Auto {
                this.requested = *transfer_mode;
            }
        }
        match this.requested {
            _ if this.experts => this.requested = TransferMode::ZeroCopy,
            TransferMode::Auto => this.requested = mode,
            _ => {}
        }
        this
    }
}

/// How a storage is compressed if it is carried in a mode, or why it is not.
pub fn coding_of(
    codings: &[std::result::Result<Coding, RawReason>],
    storage: usize,
    mode: TransferMode,
) -> std::result::Result<Coding, RawReason> {
    match (codings.get(storage), mode) {
        (None, _) => Err(RawReason::NotAsked),
        (Some(Ok(_)), TransferMode::ZeroCopy) => Err(RawReason::ReadInPlace),
        (Some(coding), _) => coding.clone(),
    }
}

/// How each storage is compressed, as far as its mode does not say, and the selectors that match no
/// parameter.
#[allow(clippy::type_complexity)]
fn codings(
    options: &PlanOptions,
    platform: &Platform,
    parameters: &[Parameter],
    storages: &[Storage],
) -> Result<(Vec<std::result::Result<Coding, RawReason>>, Vec<String>)> {
    let compress = &options.compress;
    let no_views = (!platform.views).then_some(platform.views_reason.as_str());
    let mut rule = CompressionRule::new(compress, no_views)?;
    if *compress == Compression::Off {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut coding = |storage: &Storage| {
        let mut first = Err(RawReason::NotAsked);
        // All parameters are matched, so that every selector that matches one is noted.
        for (at, (index, _)) in storage.parameters.iter().enumerate() {
            let parameter = &parameters[*index];
            let dtype = parameter.layout.dtype();
            let candidate = rule.candidate(&parameter.name, dtype, storage.bytes);
            if at == 0 || matches!(first, Err(RawReason::NotNamed)) {
                let own = parameter.layout.span_bytes();
                let source = parameter.encoded_source();
                let measured = source.or(parameter.encoded_bytes).map(|bytes| {
                    let all = u128::from(bytes) * u128::from(storage.bytes);
                    (all / u128::from(own.max(1))) as u64
                });
                // With fixed addresses they have space for any bytes: see [`Plan::takes_source`].
                let given = source.is_some() && !options.fixed_addresses;
                let judged = candidate.and_then(|coded| rule.judge(coded, storage.bytes, measured));
                first = judged.map(|coding| Coding { given, ..coding });
            }
        }
        first
    };
    let found = storages.iter().map(&mut coding).collect();
    Ok((found, rule.unmatched().map(str::to_owned).collect()))
}

/// Fails if experts are to be carried in another way than by an expert cache.
fn check_experts(parameters: &[Parameter]) -> Result<()> {
    let experts = |one: &&Parameter| one.access_pattern == AccessPattern::Experts;
    for parameter in parameters.iter().filter(experts) {
        if !matches!(parameter.transfer_mode, TransferMode::Auto | TransferMode::ZeroCopy) {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameter {:?} has the access pattern of experts, which a cache reads in place, and the \
                 transfer mode {}: leave out one of them",
                parameter.name,
                parameter.transfer_mode.name()
            );
        }
    }
    Ok(())
}

/// Fails with `WB_ERR_OVERFLOW` if the storages have more than 2^63 bytes, each counted once for
/// the device and once for every group that uses it. No sum of a plan is larger.
fn check_sums(storages: &[Storage], groups_of: &[SmallVec<[usize; 1]>]) -> Result<()> {
    let bytes_in_step = |(storage, groups): (&Storage, &SmallVec<[usize; 1]>)| {
        u128::from(storage.bytes.next_multiple_of(ALIGNMENT)) * (groups.len() as u128 + 1)
    };
    let all: u128 = storages.iter().zip(groups_of).map(bytes_in_step).sum();
    if all > i64::MAX as u128 {
        fail!(
            WB_ERR_OVERFLOW,
            "{} storages have {} bytes, and {all} as a plan counts them, once for the device and once for each \
             group; fewer than 2^63 can be planned: check their shapes",
            storages.len(),
            storages.iter().map(|storage| u128::from(storage.bytes)).sum::<u128>()
        );
    }
    Ok(())
}
