//! Predicts the time of a step: copies over the link, kernels, and where one waits for the other.

use std::ops::AddAssign;

use crate::error::{Result, fail};
use crate::plan::group_bytes::GroupBytes;
use crate::plan::plan::PlanOptions;
use crate::plan::slot_ring::RingShape;
use crate::status::WB_ERR_INVALID_ARGUMENT;

/// Rows of a matrix product that one read of a weight serves: a tile of a GEMM kernel. Host memory
/// is not cached on the device, so more rows read the weight over the link again.
const ROWS_OF_A_PASS: u64 = 128;

/// The rate at which kernels read host memory in place, as a part of the rate of copies: loads have
/// more overhead on the link. Measured on PCIe 5: 0.92 by a kernel that does nothing else, 0.87 in
/// the matrix products of a decode step.
const RATE_IN_PLACE: f64 = 0.9;

/// Rows that are assumed for decisions if the caller names none: a prompt of 2048 tokens. A plan
/// that reads dense parameters in place would be many times slower for it.
const ASSUMED_ROWS: u64 = 2048;

/// Bandwidth that is assumed for decisions if none is known: PCIe 4 with 16 lanes.
const ASSUMED_LINK: f64 = 25e9;

/// Bytes that a device decodes in a second out of its own memory, beside the kernels of a step: less than an H100
/// does that does nothing else (`SUBJECT=lossless`).
const DECODED_PER_SECOND: f64 = 1e12;

/// Steps that are simulated, of which the last are taken: the first ones start with an idle link.
const STEPS: usize = 4;
const MEASURED_STEPS: usize = 2;

/// Bytes that cross the link for copies into slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkBytes {
    /// By copies.
    pub copied: u64,
    /// By kernels, which read compressed bytes and decode them.
    pub decoded: u64,
    /// Bytes that are decoded out of device memory, and cross no link.
    pub kept: u64,
}

impl LinkBytes {
    /// As many bytes as a copy moves in the same time.
    pub fn as_copied(self) -> u64 {
        self.copied + (self.decoded as f64 / RATE_IN_PLACE) as u64
    }

    /// All bytes that cross the link.
    pub fn sum(self) -> u64 {
        self.copied + self.decoded
    }
}

impl AddAssign for LinkBytes {
    fn add_assign(&mut self, other: Self) {
        self.copied += other.copied;
        self.decoded += other.decoded;
        self.kept += other.kept;
    }
}

/// What each group moves over the link in a step: as many bytes as a copy moves in the same time.
#[derive(Debug, Clone, Default)]
pub struct StepLoad {
    /// Copied into the ring.
    pub prefetched: GroupBytes,
    /// Copied when the group is acquired.
    pub on_demand: GroupBytes,
    /// Of dense parameters that kernels read in place, once.
    pub read: GroupBytes,
    /// Bytes that are decoded into the ring out of device memory, which use the device and not the link.
    pub kept: GroupBytes,
}

impl StepLoad {
    /// No bytes, of any group.
    pub fn new(groups: usize) -> Self {
        let none = || GroupBytes::new(groups);
        Self { prefetched: none(), on_demand: none(), read: none(), kept: none() }
    }

    /// Bytes that are copied in a step.
    pub fn copied_bytes(&self, streams: bool) -> u64 {
        let prefetched = if streams { self.prefetched.sum() } else { 0 };
        prefetched + self.on_demand.sum()
    }

    /// Seconds of a step in which the device decodes out of its own memory.
    fn kept_seconds(&self, streams: bool) -> f64 {
        decode_kept(if streams { self.kept.sum() } else { 0 })
    }

    /// Bytes of dense parameters that are read in place in a step.
    pub fn read_bytes(&self) -> u64 {
        self.read.sum()
    }
}

/// The ring of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepRing<'a> {
    /// Its groups, in the order of a step.
    pub groups: &'a [usize],
    /// How many of them are in their slots at a time.
    pub shape: RingShape,
}

impl StepRing<'_> {
    fn streams(&self) -> bool {
        self.groups.len() > self.shape.depth
    }
}

/// Predicts the time of steps.
#[derive(Debug, Clone)]
pub struct StepModel {
    link: Option<f64>,
    rows: u64,
    /// Seconds of each group's kernels, if they are known, with all parameters on the device.
    compute: Option<Vec<f64>>,
    /// Bytes of each group's parameters.
    group_bytes: Vec<u64>,
}

impl StepModel {
    /// A model of the groups, with the bytes that each uses.
    pub fn new(options: &PlanOptions, group_bytes: Vec<u64>) -> Result<Self> {
        let (rate, given) = (options.compute_bytes_per_second, &options.group_seconds);
        if !given.is_empty() && given.len() != group_bytes.len() {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "group_seconds has {} entries; the parameters name {} groups: give one for each, in the \
                 order in which they are named",
                given.len(),
                group_bytes.len()
            );
        }
        let compute = match (given.is_empty(), rate > 0.0) {
            (false, _) => Some(given.clone()),
            (true, true) => Some(group_bytes.iter().map(|bytes| *bytes as f64 / rate).collect()),
            (true, false) => None,
        };
        let link = (options.link_bytes_per_second > 0.0).then_some(options.link_bytes_per_second);
        Ok(Self { link, rows: options.rows, compute, group_bytes })
    }

    /// Whether the time of kernels is known.
    pub fn knows_compute(&self) -> bool {
        self.compute.is_some()
    }

    /// Whether the rows of a step are known.
    pub fn knows_rows(&self) -> bool {
        self.rows > 0
    }

    /// The predicted time of a step; `None` if the bandwidth of the link is not known.
    pub fn step_seconds(&self, load: &StepLoad, ring: StepRing<'_>) -> Option<f64> {
        Some(self.seconds(load, ring, Link { rate: self.link?, passes: passes(self.rows) }))
    }

    /// The predicted time of a step in which the link is busy; `None` if its bandwidth is not known.
    pub fn link_seconds(&self, load: &StepLoad, ring: StepRing<'_>) -> Option<f64> {
        Some(Link { rate: self.link?, passes: passes(self.rows) }.seconds(load, ring))
    }

    /// The time in which a step decodes `bytes` compressed bytes; `None` if the bandwidth of the link is not known.
    pub fn decode_seconds(&self, bytes: u64) -> Option<f64> {
        Some(bytes as f64 / (RATE_IN_PLACE * self.link?))
    }

    /// The time of a step's kernels with all parameters on the device, if it is known.
    pub fn kernel_seconds(&self) -> Option<f64> {
        self.compute.as_ref().map(|compute| compute.iter().sum())
    }

    /// What plans are compared by: the time of a step, with assumptions for what is not known. If
    /// the time of kernels is not known, it is assumed to be as long as that of the copies, which
    /// a ring of depth 1 does not overlap.
    pub fn cost(&self, load: &StepLoad, ring: StepRing<'_>) -> f64 {
        let rows = if self.rows == 0 { ASSUMED_ROWS } else { self.rows };
        let link = Link { rate: self.link.unwrap_or(ASSUMED_LINK), passes: passes(rows) };
        let seconds = self.seconds(load, ring, link);
        let serial = ring.streams() && ring.shape.depth == 1;
        if serial && self.compute.is_none() { 2.0 * seconds } else { seconds }
    }

    /// A lower bound of the cost of any plan that copies or reads as many bytes once.
    pub fn least_cost(&self, bytes: u64) -> f64 {
        let link = bytes as f64 / self.link.unwrap_or(ASSUMED_LINK);
        self.compute.iter().flatten().sum::<f64>().max(link)
    }

    fn seconds(&self, load: &StepLoad, ring: StepRing<'_>, link: Link) -> f64 {
        let decode = load.kept_seconds(ring.streams());
        let at_least = link.seconds(load, ring).max(decode);
        match &self.compute {
            // Without kernels the link is never idle.
            None => at_least,
            Some(compute) => {
                let kernels = compute.iter().sum::<f64>();
                let timeline = Timeline { load, ring, link, compute };
                timeline.period(&self.group_bytes).max(at_least).max(kernels + decode)
            }
        }
    }
}

/// The link, as a step uses it.
#[derive(Clone, Copy)]
struct Link {
    /// Bytes of copies in a second.
    rate: f64,
    /// How often a step reads a dense weight in place.
    passes: u64,
}

impl Link {
    fn copy(self, bytes: u64) -> f64 {
        bytes as f64 / self.rate
    }

    fn read(self, bytes: u64) -> f64 {
        bytes as f64 * self.passes as f64 / (RATE_IN_PLACE * self.rate)
    }

    /// The seconds in which a step keeps it busy.
    fn seconds(self, load: &StepLoad, ring: StepRing<'_>) -> f64 {
        self.copy(load.copied_bytes(ring.streams())) + self.read(load.read_bytes())
    }
}

/// Seconds in which a device decodes bytes out of its own memory.
fn decode_kept(bytes: u64) -> f64 {
    bytes as f64 / DECODED_PER_SECOND
}

/// How often a step of this many rows reads a dense weight in place.
fn passes(rows: u64) -> u64 {
    rows.div_ceil(ROWS_OF_A_PASS).max(1)
}

/// A simulation of steps that follow one another.
struct Timeline<'a> {
    load: &'a StepLoad,
    ring: StepRing<'a>,
    link: Link,
    compute: &'a [f64],
}

impl Timeline<'_> {
    /// Seconds from one step to the next.
    fn period(&self, group_bytes: &[u64]) -> f64 {
        let RingShape { depth, wraps } = self.ring.shape;
        let (ring, streams) = (self.ring.groups, self.ring.streams());
        let copy = |position: usize| self.link.copy(self.load.prefetched.at(ring[position]));
        let decode = |position: usize| decode_kept(self.load.kept.at(ring[position]));
        // When the slot of each position is filled next, and when the link is idle, and the decoder.
        let mut ready = vec![0.0f64; ring.len()];
        let (mut idle, mut decoded) = (0.0f64, 0.0f64);
        if streams {
            for (position, ready) in ready.iter_mut().enumerate().take(depth) {
                idle += copy(position);
                decoded += decode(position);
                *ready = idle.max(decoded);
            }
        }
        let (mut now, mut ends) = (0.0f64, [0.0; STEPS]);
        for end in &mut ends {
            let mut position = 0;
            for (group, seconds) in self.compute.iter().enumerate() {
                let on_demand = self.link.copy(self.load.on_demand.at(group));
                if on_demand > 0.0 {
                    idle = idle.max(now) + on_demand;
                    now += on_demand;
                }
                let in_ring = ring.get(position) == Some(&group);
                if in_ring && streams {
                    now = now.max(ready[position]);
                }
                let read = self.link.read(self.load.read.at(group));
                let part = self.load.read.at(group) as f64 / group_bytes[group].max(1) as f64;
                if read > 0.0 {
                    idle = idle.max(now) + read;
                }
                now += seconds * (1.0 - part) + read.max(seconds * part);
                if !in_ring {
                    continue;
                }
                // The release of a group lets the copy of a later one begin.
                let mut fill = |position: usize| {
                    idle = idle.max(now) + copy(position);
                    decoded = decoded.max(now) + decode(position);
                    ready[position] = idle.max(decoded);
                };
                match (streams, wraps) {
                    (false, _) => {}
                    (true, true) => fill((position + depth) % ring.len()),
                    (true, false) if position + depth < ring.len() => fill(position + depth),
                    (true, false) if position + 1 == ring.len() => (0..depth).for_each(fill),
                    (true, false) => {}
                }
                position += 1;
            }
            *end = now;
        }
        (ends[STEPS - 1] - ends[STEPS - 1 - MEASURED_STEPS]) / MEASURED_STEPS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan::Budget;

    /// A link of a byte per second, and groups of these seconds.
    fn model(seconds: &[f64], rows: u64) -> StepModel {
        let options = PlanOptions {
            link_bytes_per_second: 1.0,
            group_seconds: seconds.to_vec(),
            rows,
            ..PlanOptions::new(Budget::DeviceBytes(0))
        };
        StepModel::new(&options, vec![100; seconds.len()]).unwrap()
    }

    fn prefetched(bytes: &[u64]) -> StepLoad {
        StepLoad { prefetched: bytes.to_vec().into(), ..StepLoad::new(bytes.len()) }
    }

    fn ring(groups: &[usize], depth: usize, wraps: bool) -> StepRing<'_> {
        StepRing { groups, shape: RingShape { depth, wraps } }
    }

    #[test]
    fn a_ring_of_depth_1_is_serial_and_deeper_ones_overlap() {
        let groups: Vec<usize> = (0..8).collect();
        let load = prefetched(&[10; 8]);
        for (seconds, depth, expected) in [
            (10.0, 1, 160.0), // copies and kernels in turn
            (10.0, 2, 80.0),  // both at once
            (4.0, 1, 112.0),
            (4.0, 2, 80.0),   // the link is busy
            (30.0, 2, 240.0), // the kernels are busy
            (30.0, 1, 320.0),
            (10.0, 8, 80.0), // every group has its slot: no copies
        ] {
            let model = model(&[seconds; 8], 1);
            let took = model.step_seconds(&load, ring(&groups, depth, true)).unwrap();
            assert_eq!(took, expected, "{seconds} s of kernels, depth {depth}");
        }
    }

    #[test]
    fn without_the_time_of_kernels_they_are_taken_to_be_as_long_as_copies() {
        let options =
            PlanOptions { link_bytes_per_second: 1.0, ..PlanOptions::new(Budget::DeviceBytes(0)) };
        let model = StepModel::new(&options, vec![100; 8]).unwrap();
        let groups: Vec<usize> = (0..8).collect();
        let load = prefetched(&[10; 8]);
        for (depth, seconds, cost) in [(1, 80.0, 160.0), (2, 80.0, 80.0), (8, 0.0, 0.0)] {
            let ring = ring(&groups, depth, true);
            assert_eq!(model.step_seconds(&load, ring), Some(seconds), "depth {depth}");
            assert_eq!(model.cost(&load, ring), cost, "depth {depth}");
        }
        // Rows that are not known are taken to be 2048: 16 reads in place.
        let load = StepLoad { read: vec![90; 8].into(), ..StepLoad::new(8) };
        let cost = model.cost(&load, ring(&[], 1, true));
        assert!((cost - 16.0 * 8.0 * 100.0).abs() < 1e-6, "{cost}");
    }

    #[test]
    fn decoding_out_of_device_memory_takes_turns_with_kernels_and_not_with_the_link() {
        let groups: Vec<usize> = (0..8).collect();
        // Ten seconds of the link and ten of the device for each group.
        let kept = vec![(10.0 * DECODED_PER_SECOND) as u64; 8].into();
        let load = StepLoad { kept, ..prefetched(&[10; 8]) };
        let options =
            PlanOptions { link_bytes_per_second: 1.0, ..PlanOptions::new(Budget::DeviceBytes(0)) };
        let blind = StepModel::new(&options, vec![100; 8]).unwrap();
        assert_eq!(blind.step_seconds(&load, ring(&groups, 2, true)), Some(80.0));
        for (seconds, expected) in [(10.0, 160.0), (1.0, 88.0)] {
            let took = model(&[seconds; 8], 1).step_seconds(&load, ring(&groups, 2, true)).unwrap();
            assert_eq!(took, expected, "{seconds} s of kernels");
        }
        // With a slot for every group nothing is decoded again.
        let took = model(&[10.0; 8], 1).step_seconds(&load, ring(&groups, 8, true)).unwrap();
        assert_eq!(took, 80.0);
    }

    #[test]
    fn a_ring_that_does_not_wrap_waits_at_the_end_of_a_step() {
        let groups: Vec<usize> = (0..8).collect();
        let load = prefetched(&[10; 8]);
        let took = model(&[10.0; 8], 1).step_seconds(&load, ring(&groups, 2, false)).unwrap();
        // The first copy of a step follows its predecessor's last kernel.
        assert_eq!(took, 90.0);
    }

    #[test]
    fn uneven_groups_are_smoothed_by_depth() {
        let groups: Vec<usize> = (0..6).collect();
        let load = prefetched(&[30, 0, 0, 30, 0, 0]);
        let model = model(&[10.0; 6], 1);
        let took = |depth| model.step_seconds(&load, ring(&groups, depth, true)).unwrap();
        // One group's kernels hide a third of the copy for the next group; three hide all of it.
        assert_eq!((took(2), took(4)), (100.0, 60.0));
    }

    #[test]
    fn dense_weights_in_place_are_read_once_for_each_tile_of_rows() {
        // 90 of the first group's 100 bytes, and a tenth of its 5 seconds for the others. Reading
        // 90 bytes in place takes as long as copying 100.
        let load = StepLoad { read: vec![90, 0].into(), ..StepLoad::new(2) };
        for (rows, passes) in [(0, 1.0), (1, 1.0), (128, 1.0), (129, 2.0), (1280, 10.0)] {
            let model = model(&[5.0, 3.0], rows);
            let took = model.step_seconds(&load, ring(&[], 1, true)).unwrap();
            let link = model.link_seconds(&load, ring(&[], 1, true)).unwrap();
            let kernels = 0.1 * 5.0 + 3.0;
            assert!((link - 100.0 * passes).abs() < 1e-9, "{rows} rows: {link} s of the link");
            assert!((took - link - kernels).abs() < 1e-9, "{rows} rows: {took} s");
        }
    }

    #[test]
    fn a_copy_on_demand_precedes_the_kernels() {
        let load = StepLoad { on_demand: vec![5, 7].into(), ..StepLoad::new(2) };
        let took = model(&[2.0, 3.0], 1).step_seconds(&load, ring(&[], 1, true)).unwrap();
        assert_eq!(took, 17.0);
    }

    #[test]
    fn group_seconds_must_name_every_group() {
        let options =
            PlanOptions { group_seconds: vec![1.0; 3], ..PlanOptions::new(Budget::DeviceBytes(0)) };
        let error = StepModel::new(&options, vec![1, 1]).unwrap_err();
        assert!(error.message.contains("3 entries") && error.message.contains("2 groups"));
    }
}
