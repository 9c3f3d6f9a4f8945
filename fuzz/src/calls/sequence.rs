//! A device and the objects that a sequence of calls has made on it.

use std::ffi::{CString, c_void};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use weighbridge::capi::buffer::{wb_buffer, wb_buffer_release_after};
use weighbridge::capi::device::*;
use weighbridge::capi::view::{wb_view, wb_view_release_after};

use super::references::{CallerMemory, Content, Exported, Reference};
use crate::c;
use crate::memory::MemoryFile;

/// What a sequence has made and still owns.
pub struct Sequence {
    pub device: *mut wb_device,
    device_references: usize,
    /// The default stream first.
    pub streams: Vec<*mut c_void>,
    pub references: Vec<Reference>,
    pub tensors: Vec<(Exported, Rc<Content>)>,
    pub registered: Vec<Rc<CallerMemory>>,
    pub device_memory: Vec<*mut c_void>,
    /// Sources of engines' weights, which stay allocated until the end.
    pub sources: Vec<*mut c_void>,
    pub files: Vec<MemoryFile>,
    called: Box<AtomicU32>,
    queued: u32,
}

impl Sequence {
    /// Opens a device, which pins host memory or does not.
    pub fn new(pin: bool) -> Self {
        let name = std::env::var("WEIGHBRIDGE_FUZZ_DEVICE").unwrap_or_else(|_| "host".into());
        let name = CString::new(name).expect("a device's name");
        let pin = if pin { WB_TRISTATE_AUTO } else { WB_TRISTATE_OFF };
        Self {
            device: c::open(&name, pin, WB_TRISTATE_AUTO),
            device_references: 1,
            streams: vec![ptr::null_mut()],
            references: Vec::new(),
            tensors: Vec::new(),
            registered: Vec::new(),
            device_memory: Vec::new(),
            sources: Vec::new(),
            files: Vec::new(),
            called: Box::default(),
            queued: 0,
        }
    }

    pub fn a_stream(&self, u: &mut Unstructured<'_>) -> Result<*mut c_void> {
        Ok(*u.choose(&self.streams)?)
    }

    pub fn synchronize(&self, stream: *mut c_void) {
        // SAFETY: the stream belongs to the device.
        c::call(|error| unsafe { wb_device_stream_synchronize(self.device, stream, error) })
            .expect("the stream completes");
    }

    /// Chooses one of the references for which `of` returns a value.
    pub fn pick<T>(
        &self,
        u: &mut Unstructured<'_>,
        of: impl Fn(&Reference) -> Option<T>,
    ) -> Result<Option<T>> {
        let all: Vec<T> = self.references.iter().filter_map(of).collect();
        if all.is_empty() {
            return Ok(None);
        }
        let index = u.choose_index(all.len())?;
        Ok(all.into_iter().nth(index))
    }

    pub fn a_buffer(
        &self,
        u: &mut Unstructured<'_>,
    ) -> Result<Option<(*mut wb_buffer, Rc<Content>)>> {
        self.pick(u, |reference| match reference {
            Reference::Buffer(raw, content) => Some((*raw, content.clone())),
            _ => None,
        })
    }

    pub fn a_view(&self, u: &mut Unstructured<'_>) -> Result<Option<(*mut wb_view, Rc<Content>)>> {
        self.pick(u, |reference| match reference {
            Reference::View(raw, content) => Some((*raw, content.clone())),
            _ => None,
        })
    }

    pub fn retain(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if !self.references.is_empty() {
            let index = u.choose_index(self.references.len())?;
            self.references.push(self.references[index].retain());
        }
        Ok(())
    }

    pub fn release(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if !self.references.is_empty() {
            let index = u.choose_index(self.references.len())?;
            self.references.swap_remove(index).release();
        }
        Ok(())
    }

    /// Releases a buffer or a view after the work queued on a stream.
    pub fn release_after(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let stream = self.a_stream(u)?;
        let can = |one: &Reference| matches!(one, Reference::Buffer(..) | Reference::View(..));
        let Some(index) = self.references.iter().position(can) else { return Ok(()) };
        let reference = self.references.swap_remove(index);
        reference.check();
        // SAFETY: the reference is not used again.
        c::call(|error| unsafe {
            match &reference {
                Reference::Buffer(raw, _) => wb_buffer_release_after(*raw, stream, error),
                Reference::View(raw, _) => wb_view_release_after(*raw, stream, error),
                _ => unreachable!("chosen above"),
            }
        })
        .expect("the stream is alive");
        Ok(())
    }

    /// Creates a stream, or releases one that may have queued work.
    pub fn stream(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.streams.len() < 4 && u.ratio(2, 3)? {
            // SAFETY: the device is alive.
            let made = c::make(|stream, error| unsafe {
                wb_device_stream_new(self.device, stream, error)
            });
            self.streams.push(made.expect("a thread is available"));
        } else if self.streams.len() > 1 {
            let index = 1 + u.choose_index(self.streams.len() - 1)?;
            let stream = self.streams.swap_remove(index);
            self.release_stream(stream);
        }
        Ok(())
    }

    fn release_stream(&self, stream: *mut c_void) {
        // SAFETY: the stream is not used again.
        c::call(|error| unsafe { wb_device_stream_release(self.device, stream, error) })
            .expect("the stream is alive");
    }

    /// Queues a function, which must have run by the end.
    pub fn queue(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (stream, user) = (self.a_stream(u)?, ptr::from_ref(&*self.called).cast_mut().cast());
        // SAFETY: the counter lives until every stream has completed.
        c::call(|error| unsafe {
            wb_device_stream_call(self.device, stream, Some(count), user, error)
        })
        .expect("it is queued");
        self.queued += 1;
        Ok(())
    }

    /// Allocates device memory, or frees some.
    pub fn device_memory(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if let Some(index) = (!self.device_memory.is_empty() && !u.ratio(2, 3)?).then_some(0) {
            self.free(self.device_memory[index]);
            self.device_memory.swap_remove(index);
            return Ok(());
        }
        let bytes = u.int_in_range(0..=9000)?;
        // SAFETY: all pointers are valid.
        let made = c::make(|address, error| unsafe {
            wb_device_alloc(self.device, bytes, address, error)
        });
        assert_eq!(made.is_ok(), bytes > 0, "{made:?}");
        self.device_memory.extend(made);
        Ok(())
    }

    fn free(&self, address: *mut c_void) {
        // SAFETY: the device is alive.
        c::call(|error| unsafe { wb_device_free(self.device, address, error) })
            .expect("it is allocated");
    }

    /// Adds a reference to the device, or drops one.
    pub fn retain_device(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        // SAFETY: the device is alive, and the sequence keeps at least one reference.
        unsafe {
            if self.device_references > 1 && u.arbitrary()? {
                self.device_references -= 1;
                wb_device_release(self.device);
            } else {
                self.device_references += 1;
                wb_device_retain(self.device);
            }
        }
        Ok(())
    }

    /// Releases everything in some order and checks that nothing is left.
    pub fn end(mut self, u: &mut Unstructured<'_>) {
        let outlived = u.ratio(1, 8).unwrap_or(false);
        for stream in self.streams.split_off(1) {
            self.synchronize(stream);
            self.release_stream(stream);
        }
        self.synchronize(ptr::null_mut());
        // Streams that were released earlier cannot be synchronized with.
        wait_until("queued functions run", || self.called.load(Ordering::Acquire) >= self.queued);
        if outlived {
            self.release_device();
        }
        while !self.references.is_empty() {
            let index = u.choose_index(self.references.len()).unwrap_or(0);
            self.references.swap_remove(index).release();
        }
        self.tensors.drain(..).for_each(|(tensor, _)| tensor.delete());
        if outlived {
            // Device memory is freed with the last reference to the device, which the children had.
            self.wait_for_deleters();
            return;
        }
        self.device_memory.append(&mut self.sources);
        self.device_memory.iter().for_each(|address| self.free(*address));
        // SAFETY: the device is alive.
        c::call(|error| unsafe { wb_device_drain(self.device, 10_000, error) })
            .expect("deferred releases complete");
        self.wait_for_deleters();
        c::check_nothing_left(self.device);
        assert_eq!(self.called.load(Ordering::Acquire), self.queued, "a function runs once");
        self.release_device();
    }

    fn release_device(&mut self) {
        for _ in 0..std::mem::take(&mut self.device_references) {
            // SAFETY: the references belong to the sequence, and each is dropped once.
            unsafe { wb_device_release(self.device) };
        }
    }

    /// The memory of the caller is in use until its deleter is called, which happens once.
    fn wait_for_deleters(&self) {
        for memory in &self.registered {
            wait_until("deleters are called", || memory.deleted() > 0);
            assert_eq!(memory.deleted(), 1, "a deleter is called once");
        }
    }
}

unsafe extern "C" fn count(user: *mut c_void) {
    // SAFETY: `user` is the sequence's counter.
    unsafe { &*user.cast::<AtomicU32>() }.fetch_add(1, Ordering::AcqRel);
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "{what}, but did not within 10 seconds");
        std::thread::yield_now();
    }
}
