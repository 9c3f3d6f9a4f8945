//! Processes and their forked children. A child has the memory of its parent, but none of its threads
//! and nothing of its driver; and a lock that another thread held at the fork stays locked in it.

use std::process;

use once_cell::race::OnceBox;

use crate::error::{Result, fail};
use crate::status::WB_ERR_FORKED;

/// Remembers the process that made it.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

impl Process {
    /// This process.
    pub fn this() -> Self {
        Self(process::id())
    }

    /// Whether this is still the process that made it, and no forked child.
    pub fn is_this(&self) -> bool {
        self.0 == process::id()
    }

    /// `WB_ERR_FORKED` in a forked child.
    pub fn check(&self) -> Result<()> {
        if self.is_this() {
            return Ok(());
        }
        fail!(
            WB_ERR_FORKED,
            "the device was opened by process {} and this is its child {}: open devices after \
             fork, or start workers with spawn",
            self.0,
            process::id()
        )
    }
}

/// What a process has one of. A forked child gets one of its own, because a lock in its parent's may
/// be held for ever. Nor does it wait for a thread that was just making one: of two that are made at
/// once, one is kept. What any thread may make first, and a child ask for, is kept so everywhere.
pub struct PerProcess<T: 'static>(OnceBox<Node<T>>);

struct Node<T: 'static> {
    process: Process,
    value: T,
    /// That of a forked child.
    next: PerProcess<T>,
}

impl<T> PerProcess<T> {
    /// No process has one yet.
    pub const fn new() -> Self {
        Self(OnceBox::new())
    }

    /// This process's, made at its first use. `make` is given the parent's and must not wait for
    /// a lock in it.
    pub fn get(&self, make: impl FnOnce(Option<&T>) -> T) -> &T {
        let (mut place, mut parent) = (self, None);
        while let Some(node) = place.0.get() {
            if node.process.is_this() {
                return &node.value;
            }
            (place, parent) = (&node.next, Some(&node.value));
        }
        let value = make(parent);
        let made = Box::new(Node { process: Process::this(), value, next: Self::new() });
        &place.0.get_or_init(|| made).value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_and_what_it_inherited_gives_way() {
        let counted = PerProcess::new();
        assert_eq!(*counted.get(|parent| parent.map_or(1, |count| count + 1)), 1);
        assert_eq!(*counted.get(|_| 7), 1, "made once");

        let parents = Node { process: Process(0), value: 5, next: PerProcess::new() };
        let inherited = PerProcess(OnceBox::with_value(Box::new(parents)));
        assert_eq!(*inherited.get(|parent| parent.map_or(1, |count| count + 1)), 6);
        assert_eq!(*inherited.get(|_| 7), 6);
    }
}
