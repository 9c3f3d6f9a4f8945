//! The memory that a unit moves to: device memory at once, host memory on a thread of its own, since that
//! takes as long as the copy or longer.

use crate::device::address_range::{AddressRange, PhysicalMemory};
use crate::device::backend::PhysicalKind;
use crate::device::device::Device;
use crate::error::Result;
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::beside::Beside;
use crate::os::span::Span;
use crate::os::sync::Arc;

/// Bytes of host memory from which on a thread is worth its start. The units of tests have fewer.
pub const LEAST_BESIDE: usize = if cfg!(test) { 1 } else { 8 << 20 };

/// Where a unit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Device memory of its own.
    Device,
    /// Host memory that is read in place.
    Host,
    /// A buffer, with nothing behind its addresses.
    Buffer,
}

/// The memory of a goal.
pub enum Target {
    /// Is put behind the unit's addresses, and has its own meanwhile.
    Mapped {
        /// The memory.
        memory: Arc<PhysicalMemory>,
        /// Its addresses meanwhile.
        window: AddressRange,
    },
    /// Keeps the bytes.
    Buffer(Arc<Buffer>),
}

impl Target {
    /// The memory; a buffer is as the policy says.
    pub fn new(device: &Arc<Device>, bytes: usize, goal: Goal) -> Result<Self> {
        let kind = match goal {
            Goal::Device => PhysicalKind::Device,
            Goal::Host => PhysicalKind::Host,
            Goal::Buffer => {
                let buffer = Buffer::alloc(device, bytes, &BufferOptions::default(), &mut None)?;
                return Ok(Self::Buffer(buffer));
            }
        };
        let memory = PhysicalMemory::create(device, bytes, kind)?;
        let window = AddressRange::reserve(device, bytes)?;
        window.map(std::slice::from_ref(&memory))?;
        Ok(Self::Mapped { memory, window })
    }

    /// The memory, as the copy addresses it.
    pub fn span(&self) -> Span {
        match self {
            Self::Mapped { window, .. } => window.span(),
            Self::Buffer(buffer) => buffer.data(),
        }
    }
}

/// Memory, or a thread that allocates it.
pub type Preparation = Beside<Target>;

/// Begins to allocate memory.
pub fn prepare(device: &Arc<Device>, bytes: usize, goal: Goal) -> Preparation {
    let device = device.clone();
    let work = move || Target::new(&device, bytes, goal);
    match goal == Goal::Host && bytes >= LEAST_BESIDE {
        true => Beside::begin("weighbridge-host", work),
        false => Beside::here(work),
    }
}
