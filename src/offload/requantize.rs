//! Replacements of parameters that are kept in FP8, by full-precision sources.

use crate::device::backend::Location;
use crate::error::Result;
use crate::memory::buffer::Buffer;
use crate::offload::backing::Backing;
use crate::offload::bulk_copy;
use crate::offload::bulk_copy::CopyJob;
use crate::offload::encoded;
use crate::offload::offloader::Offloader;
use crate::offload::quantize::{COMMIT_STAGING_BYTES, no_memory, task_to};
use crate::offload::state::OffloadState;
use crate::os::bytes;
use crate::os::sync::Arc;
use crate::plan::quantization::QuantizationRule;
use crate::quant::quantizer::Quantizer;
use crate::status::WB_ERR_STAGING;
use crate::tensor::layout::Layout;

/// Bytes of staging memory that an offloader keeps for replacements, at most: of device memory, and
/// as many of pinned host memory if sources are pageable.
const REPLACE_STAGING_BYTES: u64 = 16 << 20;

impl Offloader {
    /// Quantizes a source to where a parameter and its scales are kept. On an error the old bytes
    /// are restored if the rule rejects NaN and infinities; otherwise they may be partly
    /// overwritten.
    pub(super) fn requantize(
        &self,
        rule: &QuantizationRule,
        state: &mut OffloadState,
        [at, scales]: [usize; 2],
        layout: &Layout,
        source: Location,
    ) -> Result<()> {
        // Compressed bytes are written as a whole, once the new ones are complete.
        let scratch = [self.scratch_for(state, at)?, self.scratch_for(state, scales)?];
        let places = [at, scales].into_iter().zip(&scratch).map(|(one, scratch)| match scratch {
            Some((_, _, memory)) => Some(Location::host(memory.data())),
            None => state.own_location(one),
        });
        let &[Some(numbers_at), Some(scales_at)] = &*places.collect::<Vec<_>>() else {
            return Err(no_memory(state, at));
        };
        let task = task_to(rule, [numbers_at, scales_at], layout, source);
        let quantizer = self
            .quantizer
            .get_or_try_init(|| Quantizer::new(self.device(), REPLACE_STAGING_BYTES))?;
        // Numbers are written before the last ones are checked.
        let backup = match rule.reject_nonfinite {
            true => self.back_up(state, &[at, scales])?,
            false => Vec::new(),
        };
        let done = match quantizer.run(&task, &mut None) {
            // Nothing was written: a row of this matrix needs more staging memory.
            Err(error) if error.status == WB_ERR_STAGING => {
                Quantizer::new(self.device(), COMMIT_STAGING_BYTES)?.run(&task, &mut None)
            }
            done => done,
        };
        if done.is_err() {
            self.restore(&backup)?;
        }
        done?;
        for (block, offset, memory) in scratch.into_iter().flatten() {
            self.write_block(state, block, offset, Location::host(memory.data()))?;
        }
        Ok(())
    }

    /// For a compressed parameter its block, its offset there, and memory for its bytes.
    fn scratch_for(
        &self,
        state: &OffloadState,
        at: usize,
    ) -> Result<Option<(usize, u64, Arc<Buffer>)>> {
        let parameter = &state.parameters[at];
        match (&parameter.backing, state.encoding_of(at)) {
            (Backing::Block { block, offset }, Some(_)) => {
                let bytes = parameter.layout.span_bytes() as usize;
                Ok(Some((*block, *offset, encoded::host_memory(self.device(), bytes)?)))
            }
            _ => Ok(None),
        }
    }

    /// Copies of parameters' bytes in host memory, with where they belong.
    fn back_up(
        &self,
        state: &OffloadState,
        parameters: &[usize],
    ) -> Result<Vec<(Location, Arc<Buffer>)>> {
        let copy = |location: Location| Ok((location, self.copy_to_host(location)?));
        parameters.iter().filter_map(|at| state.own_location(*at)).map(copy).collect()
    }

    fn restore(&self, backup: &[(Location, Arc<Buffer>)]) -> Result<()> {
        for (location, copy) in backup {
            let job = CopyJob { to: location.span, from: Location::host(copy.data()) };
            match location.on_device {
                true => bulk_copy::write_device(self.device(), job)?,
                false => bytes::copy(job.to, job.from.span),
            }
        }
        Ok(())
    }
}
