//! Bytes of each group.

/// Bytes of each group. Most lists of a try have none, and a search makes many of them: only as much is
/// filled, and summed, as is used.
#[derive(Debug, Clone, Default)]
pub struct GroupBytes(Vec<u64>);

impl GroupBytes {
    /// None, of this many groups.
    pub fn new(groups: usize) -> Self {
        Self(Vec::with_capacity(groups))
    }

    /// The bytes of a group, to count others.
    pub fn of(&mut self, group: usize) -> &mut u64 {
        if group >= self.0.len() {
            self.extend_to(group);
        }
        &mut self.0[group]
    }

    #[cold]
    fn extend_to(&mut self, group: usize) {
        self.0.resize(self.0.capacity().max(group + 1), 0);
    }

    /// The bytes of a group.
    pub fn at(&self, group: usize) -> u64 {
        self.0.get(group).copied().unwrap_or(0)
    }

    /// The bytes of all groups.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The groups that have some, ascending, and their bytes.
    pub fn used(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().copied().enumerate().filter(|(_, bytes)| *bytes > 0)
    }
}

impl From<Vec<u64>> for GroupBytes {
    fn from(bytes: Vec<u64>) -> Self {
        Self(bytes)
    }
}
