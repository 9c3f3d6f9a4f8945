//! Processes and forked children. A child has its parent's memory, but none of its threads and none
//! of its driver's state; a lock that another thread held at the fork stays locked in the child.

use std::process;

use once_cell::race::OnceBox;

use crate::error::{Result, fail};
use crate::status::WB_ERR_FORKED;

/// The process that made a value.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

impl Process {
    /// The current process.
    pub fn current() -> Self {
        Self(process::id())
    }

    /// Whether this is the current process; false in a forked child.
    pub fn is_current(&self) -> bool {
        self.0 == process::id()
    }

    /// Fails with `WB_ERR_FORKED` in a forked child.
    pub fn check(&self) -> Result<()> {
        if self.is_current() {
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

/// A static that each process has its own value of. A forked child makes a new one, because a lock
/// in its parent's value can be locked forever.
///
/// No thread waits for another that is making the value: if two make one at the same time, one of
/// the values is dropped. So a fork at that moment leaves nothing behind that the child would wait
/// for.
pub struct PerProcess<T: 'static>(OnceBox<Node<T>>);

struct Node<T: 'static> {
    process: Process,
    value: T,
    /// The value of a forked child.
    child: PerProcess<T>,
}

impl<T> PerProcess<T> {
    /// No process has a value yet.
    pub const fn new() -> Self {
        Self(OnceBox::new())
    }

    /// This process's value, made at the first call. `make` is given the parent's value and must
    /// not wait for a lock in it.
    pub fn get(&self, make: impl FnOnce(Option<&T>) -> T) -> &T {
        let (mut cell, mut parent) = (self, None);
        while let Some(node) = cell.0.get() {
            if node.process.is_current() {
                return &node.value;
            }
            (cell, parent) = (&node.child, Some(&node.value));
        }
        let value = make(parent);
        let node = Box::new(Node { process: Process::current(), value, child: Self::new() });
        &cell.0.get_or_init(|| node).value
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_makes_its_value_once_and_does_not_use_its_parents() {
        let counted = PerProcess::new();
        assert_eq!(*counted.get(|parent| parent.map_or(1, |count| count + 1)), 1);
        assert_eq!(*counted.get(|_| 7), 1, "made once");

        let parents = Node { process: Process(0), value: 5, child: PerProcess::new() };
        let inherited = PerProcess(OnceBox::with_value(Box::new(parents)));
        assert_eq!(*inherited.get(|parent| parent.map_or(1, |count| count + 1)), 6);
        assert_eq!(*inherited.get(|_| 7), 6);
    }
}
