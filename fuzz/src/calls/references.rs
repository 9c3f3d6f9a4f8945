//! What a sequence owns: references to handles, each with a model of the bytes that it shows.

use std::cell::RefCell;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use weighbridge::capi::buffer::*;
use weighbridge::capi::offloader::*;
use weighbridge::capi::plan::*;
use weighbridge::capi::safetensors::*;
use weighbridge::capi::view::*;
use weighbridge::tensor::dlpack::{DLManagedTensor, DLManagedTensorVersioned};

use super::engine::Engine;
use crate::memory::Guarded;

/// Bytes in memory, and the values that they must have.
pub struct Content {
    pub start: *mut c_void,
    /// `None` if the model does not know all writes.
    pub expected: Option<RefCell<Vec<u8>>>,
    pub read_only: bool,
}

impl Content {
    pub fn known(start: *mut c_void, bytes: Vec<u8>, read_only: bool) -> Rc<Self> {
        Rc::new(Self { start, expected: Some(RefCell::new(bytes)), read_only })
    }

    pub fn unknown() -> Rc<Self> {
        Rc::new(Self { start: std::ptr::null_mut(), expected: None, read_only: true })
    }

    /// Checks that memory holds the expected bytes.
    pub fn check(&self) {
        let Some(expected) = &self.expected else { return };
        let expected = expected.borrow();
        assert!(read(self.start, expected.len()) == **expected, "memory holds other bytes");
    }
}

/// Whether memory that is alive holds these bytes.
pub fn holds(start: *const c_void, bytes: &[u8]) -> bool {
    // SAFETY: the caller knows that the bytes are alive, and that no stream writes them now.
    bytes.is_empty()
        || unsafe { std::slice::from_raw_parts(start.cast::<u8>(), bytes.len()) } == bytes
}

/// Copies bytes that a live handle shows.
pub fn read(start: *const c_void, bytes: usize) -> Vec<u8> {
    if bytes == 0 {
        return Vec::new();
    }
    // SAFETY: a live handle has returned the address, and it has at least `bytes` bytes.
    unsafe { std::slice::from_raw_parts(start.cast::<u8>(), bytes) }.to_vec()
}

/// One reference to a handle, owned by the sequence.
pub enum Reference {
    Buffer(*mut wb_buffer, Rc<Content>),
    View(*mut wb_view, Rc<Content>),
    File(*mut wb_safetensors, Rc<Content>),
    Plan(*mut wb_plan, Rc<Engine>),
    Offloader(*mut wb_offloader, Rc<Engine>),
}

impl Reference {
    /// Adds a reference.
    pub fn retain(&self) -> Self {
        // SAFETY: this reference keeps the handle alive.
        unsafe {
            match self {
                Self::Buffer(raw, content) => {
                    wb_buffer_retain(*raw);
                    Self::Buffer(*raw, content.clone())
                }
                Self::View(raw, content) => {
                    wb_view_retain(*raw);
                    Self::View(*raw, content.clone())
                }
                Self::File(raw, content) => {
                    wb_safetensors_retain(*raw);
                    Self::File(*raw, content.clone())
                }
                Self::Plan(raw, engine) => {
                    wb_plan_retain(*raw);
                    Self::Plan(*raw, engine.clone())
                }
                Self::Offloader(raw, engine) => {
                    wb_offloader_retain(*raw);
                    Self::Offloader(*raw, engine.clone())
                }
            }
        }
    }

    /// Checks the bytes a last time and drops the reference.
    pub fn release(self) {
        self.check();
        // SAFETY: the handle is alive, and this reference is not used again.
        unsafe {
            match self {
                Self::Buffer(raw, _) => wb_buffer_release(raw),
                Self::View(raw, _) => wb_view_release(raw),
                Self::File(raw, _) => wb_safetensors_release(raw),
                Self::Plan(raw, _) => wb_plan_release(raw),
                Self::Offloader(raw, _) => wb_offloader_release(raw),
            }
        }
    }

    /// Checks that the handle shows the bytes of the model.
    pub fn check(&self) {
        match self {
            Self::Buffer(_, content) | Self::View(_, content) | Self::File(_, content) => {
                content.check();
            }
            Self::Plan(..) | Self::Offloader(..) => {}
        }
    }
}

/// A tensor that was exported and not yet imported.
pub enum Exported {
    Unversioned(*mut DLManagedTensor),
    Versioned(*mut DLManagedTensorVersioned),
}

impl Exported {
    /// Calls the deleter, as a consumer does.
    pub fn delete(self) {
        // SAFETY: the tensor is alive, and is not used again.
        unsafe {
            match self {
                Self::Unversioned(tensor) => ((*tensor).deleter.expect("it has one"))(tensor),
                Self::Versioned(tensor) => ((*tensor).deleter.expect("it has one"))(tensor),
            }
        }
    }
}

/// Memory of the caller that was registered; it stays mapped until its deleter is called. It shares no
/// page with other memory, because pinning covers whole pages.
pub struct CallerMemory {
    pub memory: Guarded,
    deleted: AtomicU32,
}

impl CallerMemory {
    pub fn new(value: u8) -> Rc<Self> {
        let mut memory = Guarded::new(3 * 4096);
        memory.fill(&[value]);
        Rc::new(Self { memory, deleted: AtomicU32::new(0) })
    }

    /// How often the deleter was called.
    pub fn deleted(&self) -> u32 {
        self.deleted.load(Ordering::Acquire)
    }

    /// The deleter for `wb_buffer_register`.
    pub unsafe extern "C" fn deleter(owner: *mut c_void) {
        // SAFETY: the owner is a CallerMemory, which the sequence keeps until this was called.
        unsafe { &*owner.cast::<CallerMemory>() }.deleted.fetch_add(1, Ordering::AcqRel);
    }
}
