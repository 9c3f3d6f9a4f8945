//! What a sequence holds: handles of every kind with the bytes that they show, as the model knows them.

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

/// Bytes in memory, and what they must be.
pub struct Content {
    pub start: u64,
    /// `None` where others write, too.
    pub expected: Option<RefCell<Vec<u8>>>,
    pub read_only: bool,
}

impl Content {
    /// Bytes that are known now.
    pub fn known(start: u64, bytes: Vec<u8>, read_only: bool) -> Rc<Self> {
        Rc::new(Self { start, expected: Some(RefCell::new(bytes)), read_only })
    }

    /// Bytes of which nothing is known.
    pub fn unknown() -> Rc<Self> {
        Rc::new(Self { start: 0, expected: None, read_only: true })
    }

    /// Memory holds what it must.
    pub fn check(&self) {
        let Some(expected) = &self.expected else { return };
        let expected = expected.borrow();
        assert!(read(self.start, expected.len()) == **expected, "memory holds other bytes");
    }
}

/// Bytes of memory that a live handle shows.
pub fn read(start: u64, bytes: usize) -> Vec<u8> {
    if bytes == 0 {
        return Vec::new();
    }
    // SAFETY: a live handle gave the address, for so many bytes.
    unsafe { std::slice::from_raw_parts(start as *const u8, bytes) }.to_vec()
}

/// One reference of the sequence's.
pub enum Held {
    Buffer(*mut wb_buffer, Rc<Content>),
    View(*mut wb_view, Rc<Content>),
    File(*mut wb_safetensors, Rc<Content>),
    Plan(*mut wb_plan, Rc<Engine>),
    Offloader(*mut wb_offloader, Rc<Engine>),
}

impl Held {
    /// Adds a reference.
    pub fn retain(&self) -> Self {
        // SAFETY: the handle is alive: this struct is a reference.
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

    /// Drops the reference; what it shows is looked at for the last time.
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

    /// What it shows is what the model says.
    pub fn check(&self) {
        match self {
            Self::Buffer(_, content) | Self::View(_, content) | Self::File(_, content) => {
                content.check();
            }
            Self::Plan(..) | Self::Offloader(..) => {}
        }
    }
}

/// A tensor that was exported and that nobody has taken.
pub enum Exported {
    Old(*mut DLManagedTensor),
    New(*mut DLManagedTensorVersioned),
}

impl Exported {
    /// Does what its consumer does in the end.
    pub fn delete(self) {
        // SAFETY: the tensor is alive, and is not used again.
        unsafe {
            match self {
                Self::Old(tensor) => ((*tensor).deleter.expect("it has one"))(tensor),
                Self::New(tensor) => ((*tensor).deleter.expect("it has one"))(tensor),
            }
        }
    }
}

/// Memory of the caller that was registered; it stays until its deleter was called. Its pages are its
/// own: pinning touches all of each.
pub struct Caller {
    pub memory: Guarded,
    deleted: AtomicU32,
}

impl Caller {
    pub fn new(value: u8) -> Rc<Self> {
        let mut memory = Guarded::new(3 * 4096);
        memory.fill(&[value]);
        Rc::new(Self { memory, deleted: AtomicU32::new(0) })
    }

    pub fn deleted(&self) -> u32 {
        self.deleted.load(Ordering::Acquire)
    }

    /// What `wb_buffer_register` is given.
    pub unsafe extern "C" fn deleter(owner: *mut c_void) {
        // SAFETY: the owner is a Caller, which is there until this was called.
        unsafe { &*owner.cast::<Caller>() }.deleted.fetch_add(1, Ordering::AcqRel);
    }
}
