//! References of C's: whoever releases last, and whatever was made of an object meanwhile, it goes
//! once, after all that was done with it, and after its children.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use crate::handle::{self, Handle};
use crate::sync::Arc;

pub const MODELS: &[crate::Model] = &[
    ("handles: threads retain, look and release", 4, retain_and_release),
    ("handles: a child holds its parent", 4, a_child_holds_its_parent),
];

/// How many objects have gone.
type Gone = std::sync::Arc<AtomicUsize>;

/// What C holds. Loom sees a look at `bytes` that the end of the object does not wait for.
struct Parent {
    bytes: UnsafeCell<u32>,
    gone: Gone,
}

impl Handle for Parent {
    type Opaque = u8;
    const NAME: &'static str = "parent";
}

impl Parent {
    fn give(gone: &Gone) -> Address {
        let parent = Self { bytes: UnsafeCell::new(7), gone: gone.clone() };
        Address(handle::give(Arc::new(parent)) as usize)
    }

    fn look(&self) {
        // SAFETY: written by drop alone, which loom checks.
        assert_eq!(self.bytes.with(|bytes| unsafe { *bytes }), 7);
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // SAFETY: nobody else has a reference, which loom checks.
        self.bytes.with_mut(|bytes| unsafe { *bytes = 0 });
        assert_eq!(self.gone.fetch_add(1, SeqCst), 0, "it goes once");
    }
}

/// As a view holds its buffer.
struct Child(Arc<Parent>);

impl Handle for Child {
    type Opaque = u16;
    const NAME: &'static str = "child";
}

impl Drop for Child {
    fn drop(&mut self) {
        self.0.look();
    }
}

/// A handle on its way to another thread.
#[derive(Clone, Copy)]
struct Address(usize);

impl Address {
    fn parent(self) -> *const u8 {
        self.0 as *const u8
    }

    fn child(self) -> *const u16 {
        self.0 as *const u16
    }
}

/// A call of C's that looks at the object.
fn look(parent: Address) {
    // SAFETY: each caller here has a reference.
    unsafe { handle::borrow::<Parent>(parent.parent()) }.unwrap().look();
}

fn retain(parent: Address) {
    // SAFETY: each caller here has a reference.
    unsafe { handle::retain::<Parent>(parent.parent()) }.unwrap();
}

fn release(parent: Address) {
    // SAFETY: each caller here gives its own reference up.
    drop(unsafe { handle::take::<Parent>(parent.parent()) }.unwrap());
}

fn retain_and_release() {
    let gone = Gone::default();
    let parent = Parent::give(&gone);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            retain(parent);
            thread::spawn(move || {
                retain(parent);
                look(parent);
                release(parent);
                look(parent);
                release(parent);
            })
        })
        .collect();
    look(parent);
    release(parent);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(gone.load(Relaxed), 1);
}

fn a_child_holds_its_parent() {
    let gone = Gone::default();
    let parent = Parent::give(&gone);
    retain(parent);
    let makes_a_child = thread::spawn(move || {
        // SAFETY: this thread has a reference.
        let shared = unsafe { handle::share::<Parent>(parent.parent()) }.unwrap();
        release(parent);
        Address(handle::give(Arc::new(Child(shared))) as usize)
    });
    look(parent);
    release(parent);
    let child = makes_a_child.join().unwrap();
    assert_eq!(gone.load(Relaxed), 0);
    // SAFETY: the child's only reference.
    let (borrowed, taken) =
        unsafe { (handle::borrow::<Child>(child.child()), handle::take::<Child>(child.child())) };
    borrowed.unwrap().0.look();
    let other = thread::spawn(move || drop(taken.unwrap()));
    other.join().unwrap();
    assert_eq!(gone.load(Relaxed), 1);
}
