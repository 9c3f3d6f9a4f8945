//! A plan, and the options that it is made with.

use smallvec::SmallVec;

use crate::plan::order::Order;
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::quantization::QuantizationRule;
use crate::plan::reason::Reason;

/// Storages begin at multiples of this in the arena and in the slots.
pub const ALIGNMENT: u64 = 256;

/// Outcomes that are warnings instead of errors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed {
    /// `WB_ERR_NOTHING_OFFLOADED`.
    pub nothing_offloaded: bool,
    /// `WB_ERR_SELECTOR` for a selector that matches no parameter.
    pub unmatched_selector: bool,
    /// `WB_ERR_EVERYTHING_FITS`.
    pub everything_fits: bool,
}

/// The ceiling that a plan keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// At most this many bytes of host memory, in whole pages, hold offloaded parameters.
    OffloadBytes(u64),
    /// Resident parameters and slots take at most this many bytes of device memory.
    DeviceBytes(u64),
}

impl Budget {
    /// The limit of host memory, if that is the budget.
    pub fn offload_bytes(self) -> Option<u64> {
        match self {
            Self::OffloadBytes(bytes) => Some(bytes),
            Self::DeviceBytes(_) => None,
        }
    }

    /// The limit of device memory, if that is the budget.
    pub fn device_bytes(self) -> Option<u64> {
        match self {
            Self::OffloadBytes(_) => None,
            Self::DeviceBytes(bytes) => Some(bytes),
        }
    }
}

/// The host memory of offloaded parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostStore {
    /// Memory of the offloader, to which sources are copied.
    Copy,
    /// The buffers of the sources, where their layout allows it.
    Source,
}

/// The options of a plan.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The ceiling.
    pub budget: Budget,
    /// Bytes of slots for prefetched units, at most; without it and without a budget of device
    /// memory, what `depth` groups need, or two if `depth` is 0.
    pub slot_bytes: Option<u64>,
    /// Groups that have their slots at the same time; 0 for the number that is fastest.
    pub depth: u32,
    /// The mode of parameters that ask for [`TransferMode::Auto`].
    pub transfer_mode: TransferMode,
    /// The order in which parameters leave the device.
    pub order: Order,
    /// The host memory of offloaded parameters.
    pub host_store: HostStore,
    /// Selectors of the parameters that may be offloaded; empty for all.
    pub select: Vec<String>,
    /// Selectors of the parameters that stay resident.
    pub exclude: Vec<String>,
    /// Outcomes that are warnings.
    pub allowed: Allowed,
    /// Parameters that are quantized at commit.
    pub quantize: Option<QuantizationRule>,
    /// Bandwidth of the link, for the predicted time of a step; 0 for the measured one, if any.
    pub link_bytes_per_second: f64,
    /// Bytes of parameters that kernels go through in a second; 0 if that is not known.
    pub compute_bytes_per_second: f64,
    /// Seconds of each group's kernels, instead of a rate; empty if they are not known.
    pub group_seconds: Vec<f64>,
    /// Rows that a step multiplies with each dense parameter; 0 if they are not known.
    pub rows: u64,
}

impl PlanOptions {
    /// A budget, and the default of everything else.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            slot_bytes: None,
            depth: 0,
            transfer_mode: TransferMode::Auto,
            order: Order::Spread,
            host_store: HostStore::Copy,
            select: Vec::new(),
            exclude: Vec::new(),
            allowed: Allowed::default(),
            quantize: None,
            link_bytes_per_second: 0.0,
            compute_bytes_per_second: 0.0,
            group_seconds: Vec::new(),
            rows: 0,
        }
    }
}

/// The properties of the platform that planning depends on.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Whether the device can read host memory in place.
    pub views: bool,
    /// Why, or why not.
    pub views_reason: String,
    /// Bytes of a page of host memory.
    pub page_bytes: u64,
}

/// A parameter and where it is placed.
#[derive(Debug, Clone)]
pub struct PlannedParameter {
    /// The parameter.
    pub parameter: Parameter,
    /// Index of its group.
    pub group: usize,
    /// Index of its storage.
    pub storage: usize,
    /// Offset of its lowest byte in the storage.
    pub offset: u64,
    /// How it is transferred; `None` for a resident parameter.
    pub transfer_mode: Option<TransferMode>,
    /// Why.
    pub reason: Reason,
}

/// The bytes of one parameter, or of several that are tied.
#[derive(Debug, Clone)]
pub struct PlannedStorage {
    /// Number of bytes.
    pub bytes: u64,
    /// Index of its unit, if it is offloaded.
    pub unit: Option<usize>,
    /// Offset in the unit.
    pub offset_in_unit: u64,
    /// Indexes of the parameters that share it, ascending.
    pub parameters: SmallVec<[usize; 1]>,
}

/// Storages that are adjacent in the arena and are copied as one.
#[derive(Debug, Clone)]
pub struct PlannedUnit {
    /// How it is transferred.
    pub transfer_mode: TransferMode,
    /// The groups that use it.
    pub groups: Vec<usize>,
    /// Offset in the arena.
    pub arena_offset: u64,
    /// Number of bytes, each storage's rounded up to [`ALIGNMENT`].
    pub bytes: u64,
    /// Offset of its slot in the slots; `None` for a zero-copy unit.
    pub slot_offset: Option<u64>,
    /// Indexes of its storages, by offset.
    pub storages: Vec<usize>,
}

/// Parameters that are acquired together.
#[derive(Debug, Clone, Default)]
pub struct PlannedGroup {
    /// Its name.
    pub name: String,
    /// Indexes of its units.
    pub units: Vec<usize>,
    /// Its position in the ring, if it has prefetched units.
    pub ring_position: Option<usize>,
    /// Bytes of its offloaded parameters; tied ones count in their first group.
    pub offloaded_bytes: u64,
    /// Bytes of its resident parameters; tied ones count in their first group.
    pub resident_bytes: u64,
}

/// Which parameters are offloaded, how each is transferred, and why.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The options that it was made with.
    pub options: PlanOptions,
    /// In the order in which they were given.
    pub parameters: Vec<PlannedParameter>,
    /// In the order of their first parameters.
    pub storages: Vec<PlannedStorage>,
    /// By offset in the arena.
    pub units: Vec<PlannedUnit>,
    /// In the order in which they were first named.
    pub groups: Vec<PlannedGroup>,
    /// Groups with prefetched units, in the order of a step.
    pub ring: Vec<usize>,
    /// How many groups of the ring have their slots at the same time.
    pub depth: usize,
    /// Whether the first groups of a step wait for the last ones of the step before, because the
    /// slots do not wrap around.
    pub wrap_stalls: bool,
    /// Bytes of host memory, in whole pages.
    pub arena_bytes: u64,
    /// Bytes of device memory for slots.
    pub slot_bytes: u64,
    /// Bytes of those for prefetched units.
    pub ring_bytes: u64,
    /// Bytes of device memory for resident parameters, each storage's rounded up to [`ALIGNMENT`].
    pub resident_bytes: u64,
    /// Bytes of all storages.
    pub payload_bytes: u64,
    /// Bytes of the offloaded storages.
    pub offloaded_payload_bytes: u64,
    /// Bytes copied in every step.
    pub step_bytes: u64,
    /// Bytes that the device reads in place in every step, if it reads all dense parameters
    /// completely.
    pub view_bytes: u64,
    /// Predicted seconds of a step; those of the link alone if the time of kernels is not known.
    pub step_seconds: Option<f64>,
    /// Predicted seconds of a step in which the link is busy.
    pub link_seconds: Option<f64>,
    /// What plans were compared by.
    #[cfg(test)]
    pub cost: f64,
    /// Seconds of a step's kernels with all parameters on the device, as the options give them.
    pub kernel_seconds: Option<f64>,
    /// The outcomes that were allowed, and advice.
    pub warnings: Vec<String>,
}
