//! The state of an expert cache in device memory, and the arguments of its kernels: the structs of
//! `kernels/experts.h`.

/// The most experts of a layer. `WB_MOST_EXPERTS`.
pub const MOST_EXPERTS: u64 = 4096;

/// Bytes that a block copies at a time. `WB_EXPERTS_CHUNK`.
pub const CHUNK_BYTES: u64 = 65536;

/// Blocks of a CUDA launch. `WB_EXPERTS_BLOCKS`.
pub const BLOCKS: u64 = 32;

/// Bytes of `wb_experts_head`.
pub const HEAD_BYTES: u64 = 40;

/// Addresses of the parts of a state, and its numbers. `wb_experts`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ExpertState {
    pub head: u64,
    pub tensors: u64,
    pub sources: u64,
    pub slot_of: u64,
    pub expert_in: u64,
    pub used: u64,
    pub held: u64,
    pub lanes: u64,
    pub counters: u64,
    pub misses: u64,
    pub expert_bytes: u64,
    pub expert_chunks: u64,
    pub lane_count: u32,
    pub tensor_count: u32,
    pub capacity: u32,
    pub layer_count: u32,
    pub experts: u32,
    pub reserved: u32,
}

/// The arguments of a call. `wb_experts_call`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpertCall {
    /// Address of `count` numbers of experts.
    pub ids: u64,
    /// Address for as many slots; 0 if none are written.
    pub slots: u64,
    /// How many ids there are.
    pub count: u64,
    /// 1 if an id has 8 bytes, 0 if it has 4.
    pub wide: u32,
    /// The layer.
    pub layer: u32,
    /// The lane.
    pub lane: u32,
    /// 1 for a hint, which holds nothing.
    pub hint: u32,
    /// The first expert of the pass.
    pub first: u32,
    /// One past its last expert.
    pub end: u32,
    /// Index of the layer's first expert among those of all layers.
    pub base: u32,
    /// Number of its experts.
    pub experts: u32,
}
