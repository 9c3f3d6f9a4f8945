//! Streams of a context, and the host functions that they call.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::CUstream;

use crate::device::backend::{HostWork, Stream};
use crate::device::cuda::context::Entered;
use crate::error::Result;
use crate::os::log;
use crate::os::sync::Arc;

/// A stream that does not synchronize with the default stream. Source: `CUstream_flags`.
const NON_BLOCKING: u32 = 1;

/// Creates a stream.
pub fn create(entered: &Entered<'_>) -> Result<Stream> {
    let mut stream = ptr::null_mut();
    // SAFETY: the pointer receives the stream.
    unsafe { entered.driver.stream_create(&mut stream, NON_BLOCKING) }?;
    Ok(Stream(stream as usize))
}

/// Releases a stream of [`create`].
pub fn release(entered: &Entered<'_>, stream: Stream) -> Result<()> {
    // SAFETY: the caller releases a stream of create(), once.
    unsafe { entered.driver.stream_destroy(stream.0 as CUstream) }
}

/// Blocks until the queued work is done.
pub fn synchronize(entered: &Entered<'_>, stream: Stream) -> Result<()> {
    // SAFETY: the caller's stream is alive.
    unsafe { entered.driver.stream_synchronize(stream.0 as CUstream) }
}

/// The number of a stream that is not in a capture.
pub fn id(entered: &Entered<'_>, stream: Stream) -> Result<u64> {
    let mut id = 0;
    // SAFETY: the pointer is to a live number; the caller's stream is alive.
    unsafe { entered.driver.stream_id(stream.0 as CUstream, &mut id) }?;
    Ok(id)
}

/// The id of the capture that the stream is in, if any.
pub fn capture(entered: &Entered<'_>, stream: Stream) -> Result<Option<u64>> {
    let (mut status, mut id) = (0, 0);
    let none = ptr::null_mut();
    // SAFETY: the pointers are to live numbers, or NULL where the driver permits it; the caller's
    // stream is alive.
    unsafe {
        let stream = stream.0 as CUstream;
        entered.driver.stream_capture(stream, &mut status, &mut id, none, none, none)
    }?;
    Ok((status != 0).then_some(id))
}

/// Queues a host function that runs once.
pub fn call(entered: &Entered<'_>, stream: Stream, work: Box<dyn FnOnce() + Send>) -> Result<()> {
    let data = Box::into_raw(Box::new(work));
    // SAFETY: run_once takes the box back, once, when the stream reaches it.
    let queued =
        unsafe { entered.driver.launch_host_function(stream.0 as CUstream, run_once, data.cast()) };
    queued.inspect_err(|_| {
        // SAFETY: the driver queued nothing, so run_once will not be called.
        drop(unsafe { Box::from_raw(data) });
    })
}

/// Queues a host function that its owner keeps.
pub fn call_shared(entered: &Entered<'_>, stream: Stream, work: &Arc<HostWork>) -> Result<()> {
    let data = Arc::as_ptr(work).cast_mut().cast();
    // SAFETY: the owner keeps the work until nothing can run it any more.
    unsafe { entered.driver.launch_host_function(stream.0 as CUstream, run_shared, data) }
}

/// Called by the driver for [`call`].
unsafe extern "C" fn run_once(data: *mut c_void) {
    // SAFETY: call() gave this pointer to the driver for one call.
    let work = unsafe { Box::from_raw(data.cast::<Box<dyn FnOnce() + Send>>()) };
    run(work);
}

/// Called by the driver for [`call_shared`].
unsafe extern "C" fn run_shared(data: *mut c_void) {
    // SAFETY: call_shared() gave this pointer to the driver, and the work's owner keeps it.
    let work = unsafe { &*data.cast::<HostWork>() };
    run(&work.0);
}

/// Runs a host function. A panic must not unwind into the driver.
fn run(work: impl FnOnce()) {
    log::best_effort(|| {
        work();
        Ok(())
    });
}
