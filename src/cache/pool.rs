//! The memory of a cache: how many slots fit in given bytes, where each tensor's slots begin, and the
//! initial state.

use crate::cache::experts::Experts;
use crate::device::experts::{CHUNK_BYTES, ExpertState, HEAD_BYTES};
use crate::error::{Result, fail, format_bytes};
use crate::status::{WB_ERR_INVALID_ARGUMENT, WB_ERR_OUT_OF_RANGE, WB_ERR_SLOTS_BUDGET};

/// Slots of a tensor, and parts of the state, begin at a multiple of this many bytes.
const ALIGNMENT: u64 = 256;

/// The most lanes.
pub const MOST_LANES: u32 = 16;

/// The stamp of a lane that holds nothing.
const HOLDS_NOTHING: u64 = u64::MAX;

/// How large a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// Number of slots.
    pub slots: u32,
    /// Bytes of the slots of all tensors, with padding between them.
    pub slot_bytes: u64,
    /// Bytes of the state.
    pub state_bytes: u64,
}

impl PoolSize {
    /// The size of a cache with as many slots. In pieces, of which slots of each tensor and the state
    /// have whole ones, the state is for as many slots as there are experts.
    pub fn of(experts: &Experts, lanes: u32, slots: u32, piece: Option<u64>) -> Self {
        let (slot_bytes, state_bytes) = match piece {
            None => (slot_offsets(experts, slots).1, StateLayout::new(experts, lanes, slots).bytes),
            Some(piece) => {
                let state = StateLayout::new(experts, lanes, experts.count()).bytes;
                (pieces_of(experts, slots, piece).sum(), state.next_multiple_of(piece))
            }
        };
        Self { slots, slot_bytes, state_bytes }
    }

    /// Slots and state.
    pub fn bytes(&self) -> u64 {
        self.slot_bytes.saturating_add(self.state_bytes)
    }

    /// The size for a number of slots, or the largest in `device_bytes`: one of them is 0.
    pub fn choose(
        experts: &Experts,
        lanes: u32,
        slots: u64,
        device_bytes: u64,
        piece: Option<u64>,
    ) -> Result<Self> {
        if !(1..=MOST_LANES).contains(&lanes) {
            fail!(WB_ERR_OUT_OF_RANGE, "asked for {lanes} lanes; 1 to {MOST_LANES} are allowed");
        }
        let all = experts.count();
        match (slots, device_bytes) {
            (0, 0) | (1.., 1..) => fail!(
                WB_ERR_INVALID_ARGUMENT,
                "slots is {slots} and device_bytes {device_bytes}: give one of them, the other 0"
            ),
            (_, 0) if slots > u64::from(all) => fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for {slots} slots; there are {all} experts: more slots stay empty"
            ),
            (_, 0) if slots < u64::from(lanes) => fail!(
                WB_ERR_SLOTS_BUDGET,
                "asked for {slots} slots and {lanes} lanes: each lane needs a slot at least, and as \
                 many as a token uses experts in practice"
            ),
            (_, 0) => Ok(Self::of(experts, lanes, slots as u32, piece)),
            _ => {
                let least = Self::of(experts, lanes, lanes.min(all), piece);
                if lanes > all || least.bytes() > device_bytes {
                    fail!(
                        WB_ERR_SLOTS_BUDGET,
                        "a cache of experts was given device_bytes of {}; a slot for each of {lanes} lanes \
                         takes {}: raise the budget, or give fewer lanes",
                        format_bytes(device_bytes),
                        format_bytes(least.bytes())
                    );
                }
                Ok(Self::most(experts, lanes, lanes, device_bytes, piece))
            }
        }
    }

    /// The most slots that fit in `device_bytes`, of which `least` do.
    pub fn most(
        experts: &Experts,
        lanes: u32,
        least: u32,
        device_bytes: u64,
        piece: Option<u64>,
    ) -> Self {
        // `low` fit, and more than `high` do not.
        let (mut low, mut high) = (least, experts.count());
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match Self::of(experts, lanes, middle, piece).bytes() <= device_bytes {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Self::of(experts, lanes, low, piece)
    }
}

/// Bytes of each tensor's slots in whole pieces.
pub fn pieces_of(experts: &Experts, slots: u32, piece: u64) -> impl Iterator<Item = u64> {
    let most = u64::MAX >> 20;
    experts.kinds.iter().map(move |kind| {
        let bytes = kind.bytes.saturating_mul(u64::from(slots)).min(most);
        bytes.next_multiple_of(piece)
    })
}

/// Where the slots of each tensor begin, and the bytes of all.
pub fn slot_offsets(experts: &Experts, slots: u32) -> (Vec<u64>, u64) {
    let mut end = 0u64;
    let offsets = experts.kinds.iter().map(|kind| {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start.saturating_add(kind.bytes.saturating_mul(u64::from(slots)));
        // A sum that would not fit in 63 bits fits no device.
        end = end.min(u64::MAX >> 1);
        start
    });
    (offsets.collect(), end)
}

/// Where the parts of the state are, from its start.
struct StateLayout {
    parts: ExpertState,
    bytes: u64,
}

impl StateLayout {
    fn new(experts: &Experts, lanes: u32, slots: u32) -> Self {
        let mut bytes = 0;
        let mut part = |count: u64, each: u64| {
            let start = bytes;
            bytes = (start + count * each).next_multiple_of(ALIGNMENT);
            start
        };
        let (layers, kinds) = (experts.layers.len() as u64, experts.kinds.len() as u64);
        let (all, slots, lane_count) = (experts.count(), u64::from(slots), u64::from(lanes));
        let parts = ExpertState {
            head: part(1, HEAD_BYTES),
            tensors: part(kinds, 24),
            sources: part(layers * kinds, 16),
            slot_of: part(u64::from(all), 4),
            expert_in: part(slots, 4),
            used: part(slots, 8),
            held: part(slots * lane_count, 8),
            lanes: part(lane_count, 8),
            counters: part(layers, COUNTERS_BYTES),
            misses: part(u64::from(experts.most()), 8),
            expert_bytes: experts.bytes(),
            expert_chunks: chunks(experts).1,
            lane_count: lanes,
            tensor_count: kinds as u32,
            capacity: slots as u32,
            layer_count: layers as u32,
            experts: all,
            reserved: 0,
        };
        Self { parts, bytes }
    }
}

/// Bytes of the counters of a layer: `wb_experts_counters`.
pub const COUNTERS_BYTES: u64 = 64;

/// The number of chunks before each tensor of an expert, and that of all.
fn chunks(experts: &Experts) -> (Vec<u64>, u64) {
    let mut end = 0;
    let before = experts.kinds.iter().map(|kind| {
        let start = end;
        end += kind.bytes.div_ceil(CHUNK_BYTES);
        start
    });
    (before.collect(), end)
}

/// The state of an empty cache: its bytes, and its addresses if it is at `address` and the slots of each
/// tensor at one of `slot_addresses`.
pub fn initial_state(
    experts: &Experts,
    lanes: u32,
    slots: u32,
    address: u64,
    slot_addresses: &[u64],
) -> (Vec<u8>, ExpertState) {
    let layout = StateLayout::new(experts, lanes, slots);
    let mut image = vec![0u8; layout.bytes as usize];
    let mut write = |at: u64, bytes: &[u8]| {
        image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    let parts = layout.parts;
    write(parts.head + 8, &slots.to_ne_bytes());
    let before = chunks(experts).0;
    for (index, kind) in experts.kinds.iter().enumerate() {
        let numbers = [slot_addresses[index], kind.bytes, before[index]];
        for (word, number) in (0..).zip(numbers) {
            write(parts.tensors + 24 * index as u64 + 8 * word, &number.to_ne_bytes());
        }
    }
    for (index, source) in (0..).zip(&experts.sources) {
        write(parts.sources + 16 * index, &source.bytes());
    }
    write(parts.slot_of, &[0xff].repeat(4 * experts.count() as usize));
    write(parts.expert_in, &[0xff].repeat(4 * slots as usize));
    for lane in 0..u64::from(lanes) {
        write(parts.lanes + 8 * lane, &HOLDS_NOTHING.to_ne_bytes());
    }
    let state = ExpertState {
        head: address + parts.head,
        tensors: address + parts.tensors,
        sources: address + parts.sources,
        slot_of: address + parts.slot_of,
        expert_in: address + parts.expert_in,
        used: address + parts.used,
        held: address + parts.held,
        lanes: address + parts.lanes,
        counters: address + parts.counters,
        misses: address + parts.misses,
        ..parts
    };
    (image, state)
}
