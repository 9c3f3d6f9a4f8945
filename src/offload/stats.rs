//! Statistics of an offloader.

use crate::error::Result;
use crate::offload::offloader::Offloader;
use crate::offload::schedule::stats::GroupStats;
use crate::offload::state::{EncodedBy, HeldBytes};
use crate::plan::parameter::TransferMode;

/// Bytes by their use, which add up, and the copies so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct OffloaderStats {
    /// The number of parameters.
    pub parameters: u64,
    /// Bytes of offloaded parameters, with those of `unfilled_bytes`; tied ones count once.
    pub offloaded_bytes: u64,
    /// Bytes of offloaded parameters that were given no source yet.
    pub unfilled_bytes: u64,
    /// Bytes of host memory that were requested for them, including padding and free space.
    pub asked_bytes: u64,
    /// Bytes of its address space.
    pub mapped_bytes: u64,
    /// Bytes of it that are pinned.
    pub pinned_bytes: u64,
    /// Bytes of resident parameters, in any device memory; tied ones count once.
    pub resident_bytes: u64,
    /// Bytes of device memory for slots, and for windows.
    pub slot_bytes: u64,
    /// Bytes of zero-copy parameters.
    pub view_bytes: u64,
    /// Bytes of offloaded parameters that are compressed in host memory, and what they are there.
    pub decoded_bytes: u64,
    pub encoded_bytes: u64,
    /// Device memory for those that the device keeps compressed, and those of the bytes that it decodes from
    /// there.
    pub device_encoded_bytes: u64,
    pub device_decoded_bytes: u64,
    /// Bytes that the commit has compressed, by what compressed them.
    pub encoded_by: EncodedBy,
    /// Bytes of staging memory: the pinned buffer for copies from pageable memory, and what the
    /// quantizer for replacements keeps in pinned host memory and in device memory.
    pub staging_bytes: u64,
    /// Bytes of device memory of expert caches that are made for it.
    pub expert_bytes: u64,
    /// Bytes of parameters that are on the device in memory of their own, or of the engine, now.
    pub device_parameter_bytes: u64,
    /// Peaks of the bytes held.
    pub peak: HeldBytes,
    /// Copies into slots.
    pub transfers: GroupStats,
    /// Incremented whenever an address has changed.
    pub generation: u64,
}

impl Offloader {
    /// Incremented whenever an address has changed.
    pub fn generation(&self) -> Result<u64> {
        Ok(self.state()?.generation)
    }

    /// Statistics at this moment.
    pub fn stats(&self) -> Result<OffloaderStats> {
        let state = self.state()?;
        let held = state.held_bytes();
        let windows = self.schedule().window_bytes();
        let held_windows = match &state.addresses {
            Some(addresses) => addresses.held_window_bytes(),
            None => windows,
        };
        let quantizer_bytes = self.quantizer.get().map_or(0, |quantizer| quantizer.held_bytes());
        let mut stats = OffloaderStats {
            parameters: state.parameters.len() as u64,
            mapped_bytes: held.mapped_bytes,
            resident_bytes: state.resident_bytes(),
            slot_bytes: held.slot_bytes + held_windows,
            device_encoded_bytes: state.kept_bytes(),
            encoded_by: state.encoded_by,
            expert_bytes: state.expert_caches.device_bytes(),
            device_parameter_bytes: state.bytes_on_device(),
            staging_bytes: self.schedule().staging_bytes() + quantizer_bytes,
            peak: HeldBytes { slot_bytes: state.peak.slot_bytes + windows, ..state.peak },
            transfers: self.schedule().stats()?,
            generation: state.generation,
            ..OffloaderStats::default()
        };
        let used = state.host.blocks().iter().filter(|block| !block.parameters.is_empty());
        for block in used {
            stats.offloaded_bytes += block.bytes;
            stats.unfilled_bytes += if block.filled { 0 } else { block.bytes };
            if let Some(encoding) = block.encoding {
                // A tied parameter that had more of them may have left.
                let decoded_bytes = encoding.decoded_bytes.min(block.bytes);
                stats.decoded_bytes += decoded_bytes;
                stats.encoded_bytes += encoding.encoded_bytes;
                if block.device_encoded_bytes() > 0 {
                    stats.device_decoded_bytes += decoded_bytes;
                }
            }
            if state.host.units()[block.unit].transfer_mode == TransferMode::ZeroCopy {
                stats.view_bytes += block.bytes;
            }
        }
        let (in_place, unfilled) = state.bytes_in_pieces();
        stats.resident_bytes -= in_place;
        stats.offloaded_bytes += in_place;
        stats.view_bytes += in_place;
        stats.unfilled_bytes += unfilled;
        for buffer in state.host.buffers().iter() {
            stats.asked_bytes += buffer.data().bytes() as u64;
            stats.pinned_bytes += buffer.pinned_bytes();
        }
        Ok(stats)
    }
}
