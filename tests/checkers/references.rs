//! Shared references for ThreadSanitizer, in place of the standard library's: with those an object's end
//! comes after its uses by a fence, which the sanitizer does not know. Here it does by a load; all else
//! is ordered as there, and no more.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::alloc::{Layout, alloc, handle_alloc_error};
use std::fmt;
use std::marker::Unsize;
use std::mem::{self, ManuallyDrop};
use std::ops::{CoerceUnsized, Deref};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

#[repr(C)]
struct Counted<T: ?Sized> {
    references: AtomicUsize,
    value: T,
}

/// As `std::sync::Arc`.
pub struct Arc<T: ?Sized>(NonNull<Counted<T>>);

unsafe impl<T: ?Sized + Send + Sync> Send for Arc<T> {}
unsafe impl<T: ?Sized + Send + Sync> Sync for Arc<T> {}
impl<T: ?Sized + Unsize<U>, U: ?Sized> CoerceUnsized<Arc<U>> for Arc<T> {}

impl<T> Arc<T> {
    pub fn new(value: T) -> Self {
        let counted = Box::new(Counted { references: AtomicUsize::new(1), value });
        Self(NonNull::from(Box::leak(counted)))
    }

    pub fn into_raw(this: Self) -> *const T {
        Self::as_ptr(&ManuallyDrop::new(this))
    }

    pub unsafe fn from_raw(value: *const T) -> Self {
        let counted = unsafe { value.byte_sub(mem::offset_of!(Counted<T>, value)) };
        Self(unsafe { NonNull::new_unchecked(counted.cast_mut().cast()) })
    }

    pub unsafe fn increment_strong_count(value: *const T) {
        mem::forget(ManuallyDrop::new(unsafe { Self::from_raw(value) }).clone());
    }
}

impl<T: ?Sized> Arc<T> {
    fn references(&self) -> &AtomicUsize {
        unsafe { &(*self.0.as_ptr()).references }
    }

    pub fn as_ptr(this: &Self) -> *const T {
        unsafe { &raw const (*this.0.as_ptr()).value }
    }

    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        ptr::addr_eq(this.0.as_ptr(), other.0.as_ptr())
    }

    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        let only = this.references().load(Ordering::Acquire) == 1;
        only.then(|| unsafe { &mut (*this.0.as_ptr()).value })
    }
}

impl<T: ?Sized> Deref for Arc<T> {
    type Target = T;
    fn deref(&self) -> &T {
        unsafe { &(*self.0.as_ptr()).value }
    }
}

impl<T: ?Sized> Clone for Arc<T> {
    fn clone(&self) -> Self {
        self.references().fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<T: ?Sized> Drop for Arc<T> {
    fn drop(&mut self) {
        if self.references().fetch_sub(1, Ordering::Release) == 1 {
            self.references().load(Ordering::Acquire);
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
    }
}

impl<T> From<Vec<T>> for Arc<[T]> {
    fn from(mut items: Vec<T>) -> Self {
        let start = Layout::new::<AtomicUsize>();
        let (layout, offset) = start.extend(Layout::for_value(&*items)).expect("it fits as a Vec");
        let layout = layout.pad_to_align();
        unsafe {
            let memory = alloc(layout);
            if memory.is_null() {
                handle_alloc_error(layout);
            }
            memory.cast::<AtomicUsize>().write(AtomicUsize::new(1));
            ptr::copy_nonoverlapping(items.as_ptr(), memory.add(offset).cast(), items.len());
            let counted = ptr::slice_from_raw_parts_mut(memory.cast::<T>(), items.len());
            items.set_len(0);
            Self(NonNull::new_unchecked(counted as *mut Counted<[T]>))
        }
    }
}

impl From<&str> for Arc<str> {
    fn from(text: &str) -> Self {
        let bytes = ManuallyDrop::new(Arc::from(text.as_bytes().to_vec()));
        Self(unsafe { NonNull::new_unchecked(bytes.0.as_ptr() as *mut Counted<str>) })
    }
}

impl<T: ?Sized + PartialEq> PartialEq for Arc<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: ?Sized + Eq> Eq for Arc<T> {}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Arc<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

impl<T> FromIterator<T> for Arc<[T]> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        items.into_iter().collect::<Vec<T>>().into()
    }
}
