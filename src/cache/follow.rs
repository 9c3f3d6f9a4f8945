//! Experts whose host memory moves, or gets other bytes: those of an offloader's parameters.

use std::sync::atomic::Ordering;

use crate::cache::cache::ExpertCache;
use crate::cache::experts::{ExpertTensor, Experts};
use crate::cache::sources::Sources;
use crate::device::backend::Stream;
use crate::error::Result;
use crate::os::{bytes, sync};

impl ExpertCache {
    /// Takes the experts as they are described now: in other memory, or with other bytes. Waits on
    /// the host, and empties all slots. Nothing may be in flight. If they are other experts, or the
    /// copy of their addresses to the device fails, calls are refused from then on.
    pub fn set_tensors(&self, tensors: Result<Vec<ExpertTensor>>, stream: Stream) -> Result<()> {
        self.lost.store(true, Ordering::Release);
        let mut now = match tensors.and_then(|tensors| Experts::new(&self.device, tensors)) {
            Ok(now) if (&now.kinds, &now.layers) == (&self.experts.kinds, &self.experts.layers) => {
                now
            }
            // The change was right; the experts are not those of this cache any more.
            _ => return Ok(()),
        };
        let mut sources = sync::lock(&self.sources);
        if sources.addresses != now.sources {
            let image: Vec<u8> = now.sources.iter().flat_map(|source| source.bytes()).collect();
            let reader = sync::lock(&self.reader);
            let staging = reader.staging.span().part(0, image.len());
            bytes::write(staging, &image);
            let offset = self.state.sources - self.state_span.start() as u64;
            let to = self.state_span.part(offset as usize, image.len());
            self.device.copy(to, staging, reader.stream.get())?;
            self.device.backend().synchronize(reader.stream.get())?;
        }
        *sources = Sources::take(&mut now);
        self.reset(stream)?;
        self.lost.store(false, Ordering::Release);
        Ok(())
    }
}
