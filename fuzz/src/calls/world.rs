//! A device and all that a sequence makes on it.

use std::ffi::{CString, c_void};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use weighbridge::capi::buffer::{wb_buffer, wb_buffer_release_after};
use weighbridge::capi::device::*;
use weighbridge::capi::view::{wb_view, wb_view_release_after};

use super::held::{Caller, Content, Exported, Held};
use crate::c;
use crate::memory::MemoryFile;

/// What a sequence has made and holds.
pub struct World {
    pub device: *mut wb_device,
    device_references: usize,
    pub streams: Vec<*mut c_void>,
    pub held: Vec<Held>,
    pub tensors: Vec<(Exported, Rc<Content>)>,
    pub callers: Vec<Rc<Caller>>,
    pub device_memory: Vec<u64>,
    /// Where weights of engines lie: it stays until the end.
    pub kept_device_memory: Vec<u64>,
    pub files: Vec<MemoryFile>,
    called: Box<AtomicU32>,
    queued: u32,
}

impl World {
    /// A device of its own, that pins or does not.
    pub fn new(pin: bool) -> Self {
        let name = std::env::var("WEIGHBRIDGE_FUZZ_DEVICE").unwrap_or_else(|_| "host".into());
        let name = CString::new(name).expect("a device's name");
        Self {
            device: c::open(&name, if pin { WB_TRISTATE_AUTO } else { WB_TRISTATE_OFF }, WB_TRISTATE_AUTO),
            device_references: 1,
            streams: vec![ptr::null_mut()],
            held: Vec::new(),
            tensors: Vec::new(),
            callers: Vec::new(),
            device_memory: Vec::new(),
            kept_device_memory: Vec::new(),
            files: Vec::new(),
            called: Box::default(),
            queued: 0,
        }
    }

    /// One of the streams, the default one among them.
    pub fn a_stream(&self, u: &mut Unstructured<'_>) -> Result<*mut c_void> {
        Ok(*u.choose(&self.streams)?)
    }

    pub fn synchronize(&self, stream: *mut c_void) {
        // SAFETY: the stream is the device's.
        c::call(|error| unsafe { wb_device_stream_synchronize(self.device, stream, error) })
            .expect("the stream ends");
    }

    pub fn pick<T>(
        &self,
        u: &mut Unstructured<'_>,
        of: impl Fn(&Held) -> Option<T>,
    ) -> Result<Option<T>> {
        let all: Vec<T> = self.held.iter().filter_map(of).collect();
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
        self.pick(u, |held| match held {
            Held::Buffer(raw, content) => Some((*raw, content.clone())),
            _ => None,
        })
    }

    pub fn a_view(&self, u: &mut Unstructured<'_>) -> Result<Option<(*mut wb_view, Rc<Content>)>> {
        self.pick(u, |held| match held {
            Held::View(raw, content) => Some((*raw, content.clone())),
            _ => None,
        })
    }

    pub fn retain(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if !self.held.is_empty() {
            let index = u.choose_index(self.held.len())?;
            self.held.push(self.held[index].retain());
        }
        Ok(())
    }

    pub fn release(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if !self.held.is_empty() {
            let index = u.choose_index(self.held.len())?;
            self.held.swap_remove(index).release();
        }
        Ok(())
    }

    /// Lets a buffer or a view go behind a stream.
    pub fn release_after(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let stream = self.a_stream(u)?;
        let can = |held: &Held| matches!(held, Held::Buffer(..) | Held::View(..));
        let Some(index) = self.held.iter().position(can) else { return Ok(()) };
        let held = self.held.swap_remove(index);
        held.check();
        // SAFETY: the reference is not used again.
        c::call(|error| unsafe {
            match &held {
                Held::Buffer(raw, _) => wb_buffer_release_after(*raw, stream, error),
                Held::View(raw, _) => wb_view_release_after(*raw, stream, error),
                _ => unreachable!("see above"),
            }
        })
        .expect("the stream is alive");
        Ok(())
    }

    /// Makes a stream, or gives one back with work on it.
    pub fn stream(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.streams.len() < 4 && u.ratio(2, 3)? {
            // SAFETY: the device is alive.
            let made = c::make(|stream, error| unsafe {
                wb_device_stream_new(self.device, stream, error)
            });
            self.streams.push(made.expect("there is a thread"));
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

    /// Queues a function, which has run in the end.
    pub fn queue(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (stream, user) = (self.a_stream(u)?, ptr::from_ref(&*self.called).cast_mut().cast());
        // SAFETY: the counter lives until every stream was waited for.
        c::call(|error| unsafe {
            wb_device_stream_call(self.device, stream, Some(count), user, error)
        })
        .expect("it is queued");
        self.queued += 1;
        Ok(())
    }

    /// Takes device memory, or gives some back.
    pub fn device_memory(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if let Some(index) = (!self.device_memory.is_empty() && !u.ratio(2, 3)?).then_some(0) {
            self.free(self.device_memory[index]);
            self.device_memory.swap_remove(index);
            return Ok(());
        }
        let (bytes, mut address) = (u.int_in_range(0..=9000)?, u64::MAX);
        // SAFETY: all pointers are valid.
        let told = c::call(|error| unsafe {
            wb_device_alloc(self.device, bytes, &raw mut address, error)
        });
        assert_eq!(told.is_ok(), bytes > 0, "{told:?}");
        if bytes > 0 {
            self.device_memory.push(address);
        }
        Ok(())
    }

    fn free(&self, address: u64) {
        // SAFETY: the device is alive.
        c::call(|error| unsafe { wb_device_free(self.device, address, error) })
            .expect("it is taken");
    }

    /// Adds a reference to the device, or drops one.
    pub fn retain_device(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        // SAFETY: the device is alive, and one reference of the sequence's always stays.
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

    /// Gives everything back in some order and sees that nothing is left.
    pub fn end(mut self, u: &mut Unstructured<'_>) {
        let outlived = u.ratio(1, 8).unwrap_or(false);
        for stream in self.streams.split_off(1) {
            self.synchronize(stream);
            self.release_stream(stream);
        }
        self.synchronize(ptr::null_mut());
        // On streams that were given back, too, which nobody can wait for.
        wait_until("what is queued runs", || self.called.load(Ordering::Acquire) >= self.queued);
        if outlived {
            self.release_device();
        }
        while !self.held.is_empty() {
            let index = u.choose_index(self.held.len()).unwrap_or(0);
            self.held.swap_remove(index).release();
        }
        self.tensors.drain(..).for_each(|(tensor, _)| tensor.delete());
        if outlived {
            // Device memory goes with the device's last reference, which the children had.
            self.wait_for_callers();
            return;
        }
        self.device_memory.append(&mut self.kept_device_memory);
        self.device_memory.iter().for_each(|address| self.free(*address));
        // SAFETY: the device is alive.
        c::call(|error| unsafe { wb_device_drain(self.device, 10_000, error) }).expect("all go");
        self.wait_for_callers();
        c::check_nothing_left(self.device);
        assert_eq!(self.called.load(Ordering::Acquire), self.queued, "what is queued runs once");
        self.release_device();
    }

    fn release_device(&mut self) {
        for _ in 0..std::mem::take(&mut self.device_references) {
            // SAFETY: the sequence's references, each dropped once.
            unsafe { wb_device_release(self.device) };
        }
    }

    /// The caller's memory stays until its deleter was called, which is once.
    fn wait_for_callers(&self) {
        for caller in &self.callers {
            wait_until("deleters are called", || caller.deleted() > 0);
            assert_eq!(caller.deleted(), 1, "a deleter is called once");
        }
    }
}

unsafe extern "C" fn count(user: *mut c_void) {
    // SAFETY: the sequence's counter.
    unsafe { &*user.cast::<AtomicU32>() }.fetch_add(1, Ordering::AcqRel);
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "{what}, and did not in 10 seconds");
        std::thread::yield_now();
    }
}
