//! Reconciles an offloader with the list of all parameters that an engine has now.

use std::collections::HashSet;

use crate::device::backend::{Location, Stream};
use crate::error::Result;
use crate::offload::alias::Snapshot;
use crate::offload::offloader::Offloader;
use crate::plan::parameter::Parameter;

/// What [`Offloader::reconcile`] did: numbers of parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReconcileResult {
    /// Replaced, since their bytes were elsewhere or their layouts differed.
    pub replaced: u64,
    /// Added, since their names were new.
    pub added: u64,
    /// Removed, since their names were missing.
    pub removed: u64,
    /// Unchanged.
    pub kept: u64,
}

/// What the engine's parameter differs in.
enum Difference {
    None,
    /// It has other bytes, or without a snapshot another layout of the same bytes.
    Replaced(Option<Snapshot>),
    /// It has a new name.
    Added(Option<Snapshot>),
}

impl Offloader {
    /// Makes this hold exactly the parameters of `now`: replaces those whose bytes or layouts
    /// differ, adds new names, removes those that are missing, and compacts. After an error, what
    /// was done stays done.
    pub fn reconcile(
        &self,
        now: Vec<(Parameter, Option<Location>)>,
        stream: Stream,
    ) -> Result<ReconcileResult> {
        let mut result = ReconcileResult::default();
        let names: HashSet<&str> =
            now.iter().map(|(parameter, _)| parameter.name.as_str()).collect();
        let is_missing = |name: &&String| !names.contains(name.as_str());
        let missing: Vec<String> =
            self.state()?.index_of.keys().filter(is_missing).cloned().collect();
        let differences = self.compare(&now, stream)?;
        for name in missing {
            self.remove(&name, stream)?;
            result.removed += 1;
        }
        for ((parameter, _), difference) in now.into_iter().zip(differences) {
            let count = match difference {
                Difference::None => &mut result.kept,
                Difference::Replaced(snapshot) => {
                    let source = snapshot.as_ref().map(|snapshot| snapshot.source);
                    self.update(&parameter.name, parameter.layout, source, stream)?;
                    &mut result.replaced
                }
                Difference::Added(snapshot) => {
                    let source = snapshot.as_ref().map(|snapshot| snapshot.source);
                    self.add(parameter, source, stream)?;
                    &mut result.added
                }
            };
            *count += 1;
        }
        if result.replaced + result.removed > 0 {
            self.compact(stream)?;
        }
        Ok(result)
    }

    /// Compares all parameters before anything is changed, since changes move what addresses refer
    /// to. Takes snapshots of sources that changes would overwrite or free.
    fn compare(
        &self,
        now: &[(Parameter, Option<Location>)],
        stream: Stream,
    ) -> Result<Vec<Difference>> {
        let state = self.state()?;
        // Held from the first snapshot on, so that no source is read while it is written.
        let mut change = None;
        let mut snapshot = |group: Option<usize>, source: Location| -> Result<Snapshot> {
            if change.is_none() && state.resolve_alias(group, source)?.is_some() {
                change = Some(self.schedule().change(&[], stream)?);
            }
            self.snapshot(&state, group, source)
        };
        let mut differences = Vec::with_capacity(now.len());
        for (Parameter { name, group, layout, .. }, source) in now {
            differences.push(match (state.index_of.get(name).copied(), *source) {
                (Some(at), Some(source)) if state.is_in_place(at, source, layout) => {
                    match state.parameters[at].layout == *layout {
                        true => Difference::None,
                        false => Difference::Replaced(None),
                    }
                }
                (Some(at), Some(source)) => {
                    let group = state.parameters[at].group;
                    Difference::Replaced(Some(snapshot(Some(group), source)?))
                }
                // An empty tensor has no address.
                (Some(at), None)
                    if layout.span_bytes() == 0 && state.parameters[at].layout != *layout =>
                {
                    Difference::Replaced(Some(Snapshot::empty()))
                }
                (Some(_), None) => Difference::None,
                (None, source) => {
                    let group = state.groups.iter().position(|known| **known == **group);
                    let source = source.map(|source| snapshot(group, source)).transpose()?;
                    Difference::Added(source)
                }
            });
        }
        Ok(differences)
    }
}
