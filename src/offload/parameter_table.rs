//! All parameters of an offloader, with what changes need to find about them without a look at
//! each: names, sums, and which resident ones share bytes.

use std::collections::HashMap;
use std::ops::Deref;

use crate::error::{Error, Result, fail};
use crate::offload::backing::{Backing, ParameterState};
use crate::offload::intervals::{Intervals, Rows, covered_bytes};
use crate::os::span::Span;
use crate::plan::plan::ALIGNMENT;
use crate::status::WB_ERR_OVERFLOW;
use crate::tensor::layout::Layout;

/// The parameters, read by index as a slice. Changes keep the rest in step.
#[derive(Default)]
pub struct ParameterTable {
    all: Vec<ParameterState>,
    index_of: HashMap<String, usize>,
    /// The sum of all sizes, each rounded up.
    sum: u128,
    /// The bytes of resident parameters, with their indexes.
    resident: Intervals,
    /// Device memory of the offloader: first address, end, and the index of a parameter in it.
    owned: Rows,
    /// Those without bytes that have a storage of the plan: storage, rounded bytes, index.
    missing: Rows,
    /// Device memory that resident parameters take.
    device_bytes: u64,
}

impl Deref for ParameterTable {
    type Target = [ParameterState];

    fn deref(&self) -> &[ParameterState] {
        &self.all
    }
}

impl ParameterTable {
    pub fn new(all: Vec<ParameterState>) -> Self {
        let mut table = Self { all: Vec::with_capacity(all.len()), ..Self::default() };
        all.into_iter().for_each(|parameter| {
            table.add(parameter);
        });
        table
    }

    /// The index of a parameter by its name.
    pub fn find(&self, name: &str) -> Result<usize> {
        match self.index_of.get(name) {
            Some(index) => Ok(*index),
            None => Err(Error::not_found("parameter", name, self.all.len(), "wb_plan_to_json")),
        }
    }

    /// As [`ParameterTable::find`], where the name may be new.
    pub fn get_index(&self, name: &str) -> Option<usize> {
        self.index_of.get(name).copied()
    }

    /// Adds a parameter. Returns its index.
    pub fn add(&mut self, parameter: ParameterState) -> usize {
        let at = self.all.len();
        self.index_of.insert(parameter.name().to_owned(), at);
        self.all.push(parameter);
        self.count(at);
        at
    }

    /// Removes a parameter. The last one gets its index.
    pub fn remove(&mut self, at: usize) {
        let last = self.all.len() - 1;
        self.uncount(at);
        if at != last {
            self.uncount(last);
        }
        let removed = self.all.swap_remove(at);
        self.index_of.remove(removed.name());
        if at != last {
            self.index_of.insert(self.all[at].name().to_owned(), at);
            self.count(at);
        }
    }

    pub fn set_layout(&mut self, at: usize, layout: Layout) {
        self.uncount(at);
        self.all[at].layout = layout;
        self.count(at);
    }

    pub fn set_backing(&mut self, at: usize, backing: Backing) {
        self.uncount(at);
        self.all[at].backing = backing;
        self.count(at);
    }

    pub fn set_incomplete(&mut self, at: usize, incomplete: bool) {
        self.all[at].incomplete = incomplete;
    }

    fn count(&mut self, at: usize) {
        let parameter = &self.all[at];
        self.sum += rounded(parameter.layout.span_bytes());
        if let Some(range) = range_of(parameter) {
            self.resident.insert(range, at);
        }
        if let Backing::Owned { memory, .. } = &parameter.backing {
            let (start, end) = addresses(memory.span());
            self.owned.insert([start, end, at as u64, 0]);
        }
        self.missing.extend(missing_row(at, parameter));
        self.device_bytes += self.bytes_alone(at);
    }

    fn uncount(&mut self, at: usize) {
        self.device_bytes -= self.bytes_alone(at);
        let parameter = &self.all[at];
        self.sum -= rounded(parameter.layout.span_bytes());
        if let Some(range) = range_of(parameter) {
            self.resident.remove(range, at);
        }
        if let Backing::Owned { memory, .. } = &parameter.backing {
            let (start, end) = addresses(memory.span());
            self.owned.remove(&[start, end, at as u64, 0]);
        }
        if let Some(row) = missing_row(at, parameter) {
            self.missing.remove(&row);
        }
    }

    /// Device memory that resident parameters take, or will take once they have a source: whole
    /// allocations of the offloader, and the bytes in memory of the engine. Without the parameter
    /// `without`.
    pub fn resident_memory_bytes(&self, without: Option<usize>) -> u64 {
        self.device_bytes - without.map_or(0, |at| self.bytes_alone(at))
    }

    /// Those of that memory that no other parameter takes.
    fn bytes_alone(&self, at: usize) -> u64 {
        let parameter = &self.all[at];
        let others_in = |rows: &Rows, first: u64, second: u64| {
            let mut found = rows.range([first, second, 0, 0]..=[first, second, u64::MAX, u64::MAX]);
            found.any(|[_, _, other, _]| *other != at as u64)
        };
        match &parameter.backing {
            Backing::Owned { memory, .. } => {
                let (start, end) = addresses(memory.span());
                if others_in(&self.owned, start, end) { 0 } else { end - start }
            }
            Backing::Borrowed(_) => {
                let Some((start, end)) = range_of(parameter) else { return 0 };
                let tied =
                    self.resident_ties(at).into_iter().filter_map(|at| self.resident_range(at));
                let within = |(from, to): (u64, u64)| (from.max(start), to.min(end));
                end - start - covered_bytes(tied.map(within).collect())
            }
            Backing::Missing => {
                let bytes = rounded(parameter.layout.span_bytes()) as u64;
                // Once for each storage, since tied parameters get their bytes together.
                let Some([storage, ..]) = missing_row(at, parameter) else { return bytes };
                let of_storage =
                    self.missing.range([storage, 0, 0, 0]..=[storage, u64::MAX, u64::MAX, 0]);
                let mut others = of_storage.rev().filter(|[_, _, other, _]| *other != at as u64);
                bytes.saturating_sub(others.next().map_or(0, |[_, bytes, _, _]| *bytes))
            }
            Backing::Block { .. } | Backing::Unbacked(_) => 0,
        }
    }

    /// First address and end of a resident parameter's bytes.
    pub fn resident_range(&self, at: usize) -> Option<(u64, u64)> {
        range_of(&self.all[at])
    }

    /// The other parameters whose bytes overlap those of a resident one.
    pub fn resident_ties(&self, at: usize) -> Vec<usize> {
        let Some(range) = self.resident_range(at) else { return Vec::new() };
        let mut found = self.resident.overlapping(range);
        found.retain(|other| *other != at);
        found
    }

    /// Whether the span is, in part, device memory of the offloader that holds parameters.
    pub fn owns(&self, span: Span) -> bool {
        let (start, end) = addresses(span);
        // Allocations do not overlap.
        let before = self.owned.range(..[end, 0, 0, 0]).next_back();
        before.is_some_and(|[_, owned_end, _, _]| *owned_end > start)
    }

    /// Fails with `WB_ERR_OVERFLOW` if the sizes of all parameters, except `without`, and `bytes`
    /// overflow.
    pub fn check_sum(&self, without: Option<usize>, bytes: u64) -> Result<()> {
        let left_out = without.map_or(0, |at| rounded(self.all[at].layout.span_bytes()));
        let sum = self.sum - left_out;
        // Once for the parameters and once for the slots.
        if 2 * (sum + rounded(bytes)) > i64::MAX as u128 {
            fail!(
                WB_ERR_OVERFLOW,
                "{bytes} bytes beside the {sum} of the other parameters are more than can be counted: check \
                 the shape"
            );
        }
        Ok(())
    }
}

fn rounded(bytes: u64) -> u128 {
    u128::from(bytes.next_multiple_of(ALIGNMENT))
}

fn addresses(span: Span) -> (u64, u64) {
    (span.start() as u64, span.end() as u64)
}

/// The entry of a resident parameter without bytes whose storage may be that of others.
fn missing_row(at: usize, parameter: &ParameterState) -> Option<[u64; 4]> {
    let bytes = rounded(parameter.layout.span_bytes()) as u64;
    let storage = parameter.storage.filter(|_| matches!(parameter.backing, Backing::Missing))?;
    Some([storage as u64, bytes, at as u64, 0])
}

fn range_of(parameter: &ParameterState) -> Option<(u64, u64)> {
    let start = match &parameter.backing {
        Backing::Borrowed(span) => span.start() as u64,
        Backing::Owned { memory, offset } => memory.span().start() as u64 + offset,
        Backing::Block { .. } | Backing::Missing | Backing::Unbacked(_) => return None,
    };
    Some((start, start + parameter.layout.span_bytes()))
}
