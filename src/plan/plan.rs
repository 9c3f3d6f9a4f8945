//! A plan, and the options that it is made with.

use smallvec::SmallVec;

use crate::plan::compression::{Coding, Compression, RawReason};
use crate::plan::order::Order;
use crate::plan::parameter::{Parameter, TransferMode};
use crate::plan::quantization::QuantizationRule;
use crate::plan::reason::Reason;
use crate::tensor::coded::CodedType;

/// Storages begin at multiples of this in the arena and in the slots.
pub const ALIGNMENT: u64 = 256;

/// The bytes that a parameter is given in its slot, and in memory of the offloader for its replacements: a
/// compressed one as many as any values of its type may need, so that they always fit.
pub fn capacity(bytes: u64, coded: Option<CodedType>) -> u64 {
    let most = coded.and_then(|coded| coded.max_bytes(bytes).ok());
    most.unwrap_or(bytes).next_multiple_of(ALIGNMENT)
}

/// The bytes that a parameter is given in the arena: compressed ones that its source has take no more than these,
/// without space for others.
pub fn host_bytes(bytes: u64, coding: Option<&Coding>) -> u64 {
    match coding {
        Some(Coding { encoded_bytes, given: true, .. }) => {
            encoded_bytes.next_multiple_of(ALIGNMENT)
        }
        _ => capacity(bytes, coding.map(|coding| coding.coded)),
    }
}

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
    /// Those alone of parameters whose sources have them as they are carried, compressed.
    Compressed,
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
    /// Which offloaded parameters cross the link compressed.
    pub compress: Compression,
    /// Whether the device compresses what a commit compresses; by default, where it can.
    pub device_encoding: Option<bool>,
    /// Whether a commit verifies what it carries as its source has it compressed.
    pub verify_compressed: bool,
    /// Bandwidth of the link, for the predicted time of a step; 0 for the measured one, if any.
    pub link_bytes_per_second: f64,
    /// Bytes of parameters that kernels go through in a second; 0 if that is not known.
    pub compute_bytes_per_second: f64,
    /// Seconds of each group's kernels, instead of a rate; empty if they are not known.
    pub group_seconds: Vec<f64>,
    /// Rows that a step multiplies with each dense parameter; 0 if they are not known.
    pub rows: u64,
    /// Bytes of device memory for expert caches; 0 for what a budget of device memory leaves.
    pub expert_bytes: u64,
    /// Whether every unit keeps its address while the memory behind it changes.
    pub fixed_addresses: bool,
    /// With fixed addresses, whether resident parameters have a host copy from the commit on.
    pub keep_host_copy: bool,
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
            compress: Compression::Off,
            device_encoding: None,
            verify_compressed: false,
            link_bytes_per_second: 0.0,
            compute_bytes_per_second: 0.0,
            group_seconds: Vec::new(),
            rows: 0,
            expert_bytes: 0,
            fixed_addresses: false,
            keep_host_copy: false,
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
    /// How it is compressed, or why it is not.
    pub coding: std::result::Result<Coding, RawReason>,
    /// Whether it is read in place, or would be if it left the device, from memory of the offloader.
    pub in_place: bool,
    /// Its unit in pieces, and its offset there, if it is in one.
    pub pieces: Option<(u32, u64)>,
    /// Device memory in which the device is to keep it compressed; 0 if it does not.
    pub kept_bytes: u64,
    /// Indexes of the parameters that share it, ascending.
    pub parameters: SmallVec<[usize; 1]>,
}

impl PlannedStorage {
    /// Whether it is carried as its source has it compressed.
    pub fn is_given(&self) -> bool {
        self.coding.as_ref().is_ok_and(|coding| coding.given)
    }

    /// Bytes that it takes in its slot.
    pub fn carried_bytes(&self) -> u64 {
        capacity(self.bytes, self.coding.as_ref().ok().map(|coding| coding.coded))
    }
}

/// Storages that are adjacent in the arena and are copied as one.
#[derive(Debug, Clone)]
pub struct PlannedUnit {
    /// How it is transferred.
    pub transfer_mode: TransferMode,
    /// Whether the device keeps its storages compressed, and decodes them instead of copying them.
    pub kept: bool,
    /// The groups that use it.
    pub groups: Vec<usize>,
    /// Offset in the arena.
    pub arena_offset: u64,
    /// Bytes in its slot, each storage's as [`capacity`] says.
    pub bytes: u64,
    /// Bytes in the arena, each storage's as [`host_bytes`] says: first those that lie as in the slot,
    /// then the compressed ones that sources have.
    pub host_bytes: u64,
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
    /// With fixed addresses: what is read in place, piece by piece on the device or in host memory.
    pub pieces: Vec<PieceUnit>,
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
    /// Bytes of device memory for windows, through which compressed bytes pass to slots.
    pub window_bytes: u64,
    /// Bytes of device memory for storages that the device keeps compressed.
    pub kept_bytes: u64,
    /// Bytes of these storages.
    pub kept_decoded_bytes: u64,
    /// Bytes of device memory for expert caches.
    pub expert_bytes: u64,
    /// With fixed addresses, what the bytes of units and of each group's resident parameters are
    /// rounded up to on the device, in `slot_bytes` and `resident_bytes`.
    pub granularity: Option<u64>,
    /// Bytes that this adds.
    pub padding_bytes: u64,
    /// Bytes of all storages.
    pub payload_bytes: u64,
    /// Bytes of the offloaded storages.
    pub offloaded_payload_bytes: u64,
    /// Bytes copied in every step, compressed ones as they are expected to be.
    pub step_bytes: u64,
    /// Bytes of the storages that are carried compressed.
    pub decoded_bytes: u64,
    /// What these are expected to be compressed to.
    pub encoded_bytes: u64,
    /// Predicted seconds of a step in which kernels read compressed bytes over the link and decode
    /// them.
    pub decode_seconds: Option<f64>,
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

/// Storages of the same first group whose memory is in pieces.
#[derive(Debug, Clone, Default)]
pub struct PieceUnit {
    /// The groups that use them, ascending.
    pub groups: Vec<usize>,
    /// Indexes of the storages, and their offsets.
    pub storages: Vec<(usize, u64)>,
    /// Number of bytes, without the padding to whole pieces.
    pub bytes: u64,
    /// Whether each piece is on the device.
    pub resident: Vec<bool>,
}

/// Resident storages of a group, which are adjacent on the device if addresses are fixed.
#[derive(Debug, Clone)]
pub struct ResidentUnit {
    /// The groups that use them, ascending. A storage that several share is with its first one's.
    pub groups: Vec<usize>,
    /// Indexes of the storages, and their offsets.
    pub storages: Vec<(usize, u64)>,
    /// Number of bytes.
    pub bytes: u64,
}

impl Plan {
    /// Whether a storage is carried as its source has it compressed: apart from its unit, or with
    /// fixed addresses in it, with space for any bytes, so that no replacement moves it.
    pub fn takes_source(&self, storage: &PlannedStorage) -> bool {
        let first = &self.parameters[storage.parameters[0]].parameter;
        let layout = &first.layout;
        let same = |coding: &Coding| {
            coding.given || CodedType::of(layout.dtype()).is_ok_and(|coded| coded == coding.coded)
        };
        storage.coding.as_ref().is_ok_and(same)
            && first.encoded_source().is_some()
            && layout.span_bytes() == storage.bytes
    }

    /// Why a parameter is where it is, and with [`PlanOptions::compress`] why it is compressed or not.
    pub fn reason(&self, parameter: &PlannedParameter) -> String {
        let mut text = parameter.reason.to_string();
        if parameter.transfer_mode.is_none() || self.options.compress == Compression::Off {
            return text;
        }
        let storage = &self.storages[parameter.storage];
        text += &match &storage.coding {
            Ok(Coding { encoded_bytes, .. }) => {
                let keeps = self.options.budget.device_bytes().is_some();
                let place = match storage.kept_bytes {
                    1.. => ", on the device",
                    0 if keeps && self.granularity.is_some() => {
                        ", in host memory alone, since addresses are fixed"
                    }
                    0 => "",
                };
                let file = if self.takes_source(storage) { "in its file " } else { "" };
                let percent = (100 * encoded_bytes).div_ceil(storage.bytes.max(1));
                format!("; compressed {file}to {percent} %{place}")
            }
            Err(reason) => format!("; not compressed: {reason}"),
        };
        text
    }

    /// The resident storages that are not in pieces, by their first groups.
    pub fn resident_units(&self) -> Vec<ResidentUnit> {
        let none = || ResidentUnit { groups: Vec::new(), storages: Vec::new(), bytes: 0 };
        let mut units: Vec<_> = self.groups.iter().map(|_| none()).collect();
        for (at, storage) in self.storages.iter().enumerate() {
            if storage.unit.is_some() || storage.pieces.is_some() || storage.bytes == 0 {
                continue;
            }
            let groups = storage.parameters.iter().map(|at| self.parameters[*at].group);
            let unit = &mut units[groups.clone().min().unwrap_or(0)];
            unit.storages.push((at, unit.bytes));
            unit.bytes += storage.bytes.next_multiple_of(ALIGNMENT);
            unit.groups.extend(groups);
        }
        units.retain(|unit| unit.bytes > 0);
        for unit in &mut units {
            unit.groups.sort_unstable();
            unit.groups.dedup();
        }
        units
    }
}
