//! Threads for ThreadSanitizer, in place of the standard library's: the end of a scope's is told by a
//! counter of that one's, which the sanitizer does not see. It sees the C library begin and join them.
//! A panic that leaves a thread ends the process.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::{io, mem, ptr};

pub use std::thread::available_parallelism;

use crate::sync::{Arc, Mutex};

type Run<'a> = Box<dyn FnOnce() + Send + 'a>;

/// As `std::thread::Builder`.
pub struct Builder {
    name: CString,
}

impl Builder {
    pub fn new() -> Self {
        Self { name: CString::default() }
    }

    pub fn name(self, name: String) -> Self {
        Self { name: CString::new(name).expect("a name without NUL") }
    }

    /// Nobody joins the thread.
    pub fn spawn(self, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = self.begin(Box::new(run))?;
        unsafe { libc::pthread_detach(thread) };
        Ok(())
    }

    pub fn spawn_scoped<'scope, T: Send + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        run: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, T>> {
        let result = Arc::new(Mutex::new(None));
        let theirs = result.clone();
        let run: Run<'scope> = Box::new(move || {
            let made = run();
            *theirs.lock().expect("never poisoned") = Some(made);
        });
        // The scope does not end before the thread.
        let thread = self.begin(unsafe { mem::transmute::<Run<'scope>, Run<'static>>(run) })?;
        scope.started.0.borrow_mut().push(thread);
        Ok(ScopedJoinHandle { started: &scope.started, thread, result })
    }

    fn begin(self, run: Run<'static>) -> io::Result<libc::pthread_t> {
        extern "C" fn main(data: *mut c_void) -> *mut c_void {
            let (name, run) = *unsafe { Box::from_raw(data.cast::<(CString, Run<'static>)>()) };
            unsafe { libc::pthread_setname_np(libc::pthread_self(), name.as_ptr()) };
            run();
            ptr::null_mut()
        }

        let data = Box::into_raw(Box::new((self.name, run)));
        let mut thread = 0;
        match unsafe { libc::pthread_create(&mut thread, ptr::null(), main, data.cast()) } {
            0 => Ok(thread),
            error => {
                drop(unsafe { Box::from_raw(data) });
                Err(io::Error::from_raw_os_error(error))
            }
        }
    }
}

/// Threads that are still to be joined.
#[derive(Default)]
struct Started(RefCell<Vec<libc::pthread_t>>);

impl Drop for Started {
    fn drop(&mut self) {
        for thread in self.0.get_mut().drain(..) {
            unsafe { libc::pthread_join(thread, ptr::null_mut()) };
        }
    }
}

/// As `std::thread::Scope`; for the thread that made it alone.
pub struct Scope<'scope, 'env: 'scope> {
    started: Started,
    scope: PhantomData<&'scope mut &'scope ()>,
    environment: PhantomData<&'env mut &'env ()>,
}

/// As `std::thread::scope`.
pub fn scope<'env, T>(body: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T) -> T {
    let scope = Scope { started: Started::default(), scope: PhantomData, environment: PhantomData };
    body(&scope)
}

/// As `std::thread::ScopedJoinHandle`.
pub struct ScopedJoinHandle<'scope, T> {
    started: &'scope Started,
    thread: libc::pthread_t,
    result: Arc<Mutex<Option<T>>>,
}

impl<T> ScopedJoinHandle<'_, T> {
    pub fn join(self) -> std::thread::Result<T> {
        self.started.0.borrow_mut().retain(|thread| *thread != self.thread);
        unsafe { libc::pthread_join(self.thread, ptr::null_mut()) };
        let made = self.result.lock().expect("never poisoned").take();
        Ok(made.expect("a thread that ended has made it"))
    }
}
