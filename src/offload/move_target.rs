//! The memory that a unit moves to: device memory at once, host memory on a thread of its own, since that
//! takes as long as the copy or longer.

use crate::device::address_range::{AddressRange, PhysicalMemory};
use crate::device::backend::PhysicalKind;
use crate::device::device::Device;
use crate::error::{Result, catch_panic, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::os::span::Span;
use crate::os::sync::{Arc, thread};
use crate::status::WB_ERR_INTERNAL;

/// Bytes of host memory from which on a thread is worth its start. The units of tests have fewer.
const LEAST_BESIDE: usize = if cfg!(test) { 1 } else { 8 << 20 };

/// Where a unit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Device memory of its own.
    Device,
    /// Host memory that is read in place.
    Host,
    /// A pinned buffer, with nothing behind its addresses.
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
    fn new(device: &Arc<Device>, bytes: usize, goal: Goal) -> Result<Self> {
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

/// Memory, or a thread that allocates it. A drop waits for the thread.
pub struct Preparation {
    device: Arc<Device>,
    thread: Option<thread::JoinHandle<Result<Target>>>,
    ready: Option<Target>,
}

impl Preparation {
    /// Begins to allocate memory.
    pub fn begin(device: &Arc<Device>, bytes: usize, goal: Goal) -> Result<Self> {
        let mut begun = Self { device: device.clone(), thread: None, ready: None };
        if goal != Goal::Device && bytes >= LEAST_BESIDE {
            let work = device.clone();
            let named = thread::Builder::new().name("weighbridge-host".into());
            let started = named.spawn(move || catch_panic(|| Target::new(&work, bytes, goal)));
            begun.thread = started.ok();
        }
        // If no thread can start, this one does its work.
        if begun.thread.is_none() {
            begun.ready = Some(Target::new(device, bytes, goal)?);
        }
        Ok(begun)
    }

    /// Whether a thread is at work.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The memory, for which it waits.
    pub fn finish(mut self) -> Result<Target> {
        match (self.ready.take(), self.thread.take()) {
            (Some(ready), _) => Ok(ready),
            (_, Some(thread)) => thread.join().unwrap_or_else(|_| ended()),
            _ => ended(),
        }
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        match self.device.backend().check_process() {
            Ok(()) => drop(thread.join()),
            // A forked child has no such thread.
            Err(_) => std::mem::forget(thread),
        }
    }
}

/// Panics are caught in the thread, so that this is never seen.
fn ended<T>() -> Result<T> {
    fail!(WB_ERR_INTERNAL, "the thread that allocates host memory has ended without a result");
}
