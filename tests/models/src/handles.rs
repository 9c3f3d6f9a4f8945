//! References that a C caller holds: an object is destroyed once, after every use of it and after
//! its children, whichever thread releases last.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use weighbridge::capi::handle::{self, Opaque};
use weighbridge::os::sync::Arc;

pub const MODELS: &[crate::Model] = &[
    ("handles: threads retain, use and release", 4, retain_and_release),
    ("handles: a child holds its parent", 4, a_child_holds_its_parent),
];

/// Number of objects destroyed.
type Destroyed = std::sync::Arc<AtomicUsize>;

/// An object behind a handle. Loom finds a read of `bytes` that the destructor does not wait for.
struct Parent {
    bytes: UnsafeCell<u32>,
    destroyed: Destroyed,
}

/// The opaque type of a [`Parent`].
struct OpaqueParent;

impl Opaque for OpaqueParent {
    type Object = Parent;
    const NAME: &'static str = "parent";
}

impl Parent {
    fn give(destroyed: &Destroyed) -> Address {
        let parent = Self { bytes: UnsafeCell::new(7), destroyed: destroyed.clone() };
        Address(handle::give::<OpaqueParent>(Arc::new(parent)) as usize)
    }

    fn read(&self) {
        // SAFETY: only drop writes, which loom checks.
        assert_eq!(self.bytes.with(|bytes| unsafe { *bytes }), 7);
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // SAFETY: no other reference is left, which loom checks.
        self.bytes.with_mut(|bytes| unsafe { *bytes = 0 });
        assert_eq!(self.destroyed.fetch_add(1, SeqCst), 0, "destroyed twice");
    }
}

/// An object that holds another, as a view holds its buffer.
struct Child(Arc<Parent>);

/// The opaque type of a [`Child`].
struct OpaqueChild;

impl Opaque for OpaqueChild {
    type Object = Child;
    const NAME: &'static str = "child";
}

impl Drop for Child {
    fn drop(&mut self) {
        self.0.read();
    }
}

/// A handle that crosses threads.
#[derive(Clone, Copy)]
struct Address(usize);

impl Address {
    fn parent(self) -> *const OpaqueParent {
        self.0 as *const OpaqueParent
    }

    fn child(self) -> *const OpaqueChild {
        self.0 as *const OpaqueChild
    }
}

/// A C call that uses the object.
fn read(parent: Address) {
    // SAFETY: each caller here has a reference.
    unsafe { handle::borrow(parent.parent()) }.unwrap().read();
}

fn retain(parent: Address) {
    // SAFETY: each caller here has a reference.
    unsafe { handle::retain(parent.parent()) }.unwrap();
}

fn release(parent: Address) {
    // SAFETY: each caller here gives up its own reference.
    drop(unsafe { handle::take(parent.parent()) }.unwrap());
}

fn retain_and_release() {
    let destroyed = Destroyed::default();
    let parent = Parent::give(&destroyed);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            retain(parent);
            thread::spawn(move || {
                retain(parent);
                read(parent);
                release(parent);
                read(parent);
                release(parent);
            })
        })
        .collect();
    read(parent);
    release(parent);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(destroyed.load(Relaxed), 1);
}

fn a_child_holds_its_parent() {
    let destroyed = Destroyed::default();
    let parent = Parent::give(&destroyed);
    retain(parent);
    let makes_a_child = thread::spawn(move || {
        // SAFETY: this thread has a reference.
        let shared = unsafe { handle::share(parent.parent()) }.unwrap();
        release(parent);
        Address(handle::give::<OpaqueChild>(Arc::new(Child(shared))) as usize)
    });
    read(parent);
    release(parent);
    let child = makes_a_child.join().unwrap();
    assert_eq!(destroyed.load(Relaxed), 0);
    // SAFETY: the child's only reference.
    let (borrowed, taken) = unsafe { (handle::borrow(child.child()), handle::take(child.child())) };
    borrowed.unwrap().0.read();
    let other = thread::spawn(move || drop(taken.unwrap()));
    other.join().unwrap();
    assert_eq!(destroyed.load(Relaxed), 1);
}
