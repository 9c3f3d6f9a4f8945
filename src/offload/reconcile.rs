//! Reconciles an offloader with the list of all parameters that an engine has now.

use std::collections::HashSet;

use crate::device::backend::{Location, Stream};
use crate::error::{Result, fail};
use crate::offload::alias::Snapshot;
use crate::offload::backing::ParameterState;
use crate::offload::edit::Edit;
use crate::offload::encoded_source;
use crate::offload::offloader::Offloader;
use crate::plan::parameter::{Origin, Parameter};
use crate::status::WB_ERR_INVALID_ARGUMENT;
use crate::tensor::fp8::SourceType;
use crate::tensor::layout::Layout;

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
    /// differ, adds new names, removes those that are missing, and compacts. No other change comes
    /// between. After an error, what was done stays done.
    pub fn reconcile(
        &self,
        now: Vec<(Parameter, Option<Location>)>,
        stream: Stream,
    ) -> Result<ReconcileResult> {
        for (parameter, source) in &now {
            source.map_or(Ok(()), |source| encoded_source::check_header(parameter, source))?;
        }
        let mut edit = self.edit(stream)?;
        let done = edit.reconcile(now);
        edit.end(done)
    }
}

impl Edit<'_> {
    fn reconcile(&mut self, now: Vec<(Parameter, Option<Location>)>) -> Result<ReconcileResult> {
        let mut result = ReconcileResult::default();
        let missing = self.missing_from(&now)?;
        let differences = self.compare(&now)?;
        #[cfg(test)]
        tests::after_comparing();
        for name in missing {
            self.remove(&name)?;
            result.removed += 1;
        }
        for ((mut parameter, _), difference) in now.into_iter().zip(differences) {
            let device = self.offloader.device();
            let decode = |snapshot: Option<&Snapshot>| -> Result<_> {
                let source = snapshot.map(|snapshot| snapshot.source);
                let decoded = encoded_source::decoded(device, &parameter, source)?;
                Ok((
                    decoded.as_ref().map(|values| Location::host(values.data())).or(source),
                    decoded,
                ))
            };
            let count = match difference {
                Difference::None => &mut result.kept,
                Difference::Replaced(snapshot) => {
                    let (source, _decoded) = decode(snapshot.as_ref())?;
                    self.update(&parameter.name, parameter.layout, source)?;
                    &mut result.replaced
                }
                Difference::Added(snapshot) => {
                    let (source, _decoded) = decode(snapshot.as_ref())?;
                    parameter.origin = Origin::Given;
                    self.add(parameter, source)?;
                    &mut result.added
                }
            };
            *count += 1;
        }
        if result.replaced + result.removed > 0 {
            self.compact()?;
        }
        Ok(result)
    }

    /// The names that `now` lacks. Fails if it has one twice.
    fn missing_from(&self, now: &[(Parameter, Option<Location>)]) -> Result<Vec<String>> {
        let mut names = HashSet::with_capacity(now.len());
        for (Parameter { name, .. }, _) in now {
            if !names.insert(name.as_str()) {
                fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "parameter {name:?} is given twice: give every parameter once; nothing was changed"
                );
            }
        }
        let known = self.state.parameters.iter().map(|parameter| parameter.name());
        Ok(known.filter(|name| !names.contains(name)).map(str::to_owned).collect())
    }

    /// Compares all parameters before anything is changed, since changes move what addresses refer
    /// to. Takes snapshots of sources that changes would overwrite or free.
    fn compare(&mut self, now: &[(Parameter, Option<Location>)]) -> Result<Vec<Difference>> {
        let compared = now.iter().map(|(parameter, source)| {
            let name = &parameter.name;
            match (self.state.parameters.get_index(name), *source) {
                (Some(at), Some(source)) => self.compare_source(at, parameter, source),
                (Some(at), None) => self.compare_layout(at, &parameter.layout),
                (None, source) => {
                    let group = self.state.group_of_added(parameter)?;
                    let source = source.map(|source| self.snapshot(Some(group), source));
                    Ok(Difference::Added(source.transpose()?))
                }
            }
        });
        compared.collect()
    }

    fn compare_source(
        &mut self,
        at: usize,
        Parameter { layout, origin, .. }: &Parameter,
        source: Location,
    ) -> Result<Difference> {
        let parameter = &self.state.parameters[at];
        let is_in_place = match origin {
            Origin::Encoded(_) => self.state.is_encoded_at(at, source),
            _ => self.state.is_in_place(at, source, layout),
        };
        if !is_in_place {
            let group = parameter.group;
            return Ok(Difference::Replaced(Some(self.snapshot(Some(group), source)?)));
        }
        match parameter.layout == *layout {
            true => Ok(Difference::None),
            false => Ok(Difference::Replaced(None)),
        }
    }

    /// Compares a parameter that is given without a source.
    fn compare_layout(&self, at: usize, layout: &Layout) -> Result<Difference> {
        let parameter = &self.state.parameters[at];
        let bytes = parameter.layout.span_bytes();
        let unquantized = parameter.quantized.as_ref().map(|quantized| &quantized.layout);
        if parameter.layout == *layout || unquantized == Some(layout) {
            Ok(Difference::None)
        } else if layout.span_bytes() == 0 {
            // An empty tensor has no address.
            Ok(Difference::Replaced(Some(Snapshot::empty())))
        } else if layout.span_bytes() == bytes && !is_full_precision(parameter, layout) {
            Ok(Difference::Replaced(None))
        } else {
            fail!(
                WB_ERR_INVALID_ARGUMENT,
                "parameter {:?} is given without a source, as {} bytes of {} where it has {bytes} of {}: \
                 give the address of its bytes, or a layout of those that it has; nothing was changed",
                parameter.name(),
                layout.span_bytes(),
                layout.dtype().name(),
                parameter.layout.dtype().name()
            )
        }
    }

    /// As [`Offloader::snapshot`], once no use of copied memory is in flight.
    fn snapshot(&mut self, group: Option<usize>, source: Location) -> Result<Snapshot> {
        if self.state.resolve_alias(group, source)?.is_some() {
            self.schedule.make_idle(&[])?;
        }
        self.offloader.snapshot(&self.state, group, source)
    }
}

/// Whether a layout is that of numbers that would be quantized to the parameter.
fn is_full_precision(parameter: &ParameterState, layout: &Layout) -> bool {
    parameter.quantized.is_some() && SourceType::of(layout.dtype()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::device::device::{Device, DeviceOptions};
    use crate::memory::view::Accessor;
    use crate::offload::tests::{DEFAULT, matrix, numbers, offloader, parameter};
    use crate::os::bytes;

    thread_local! {
        /// Called once, when a reconcile of this thread has compared and changed nothing yet.
        static THEN: RefCell<Option<Box<dyn FnOnce()>>> = RefCell::default();
    }

    pub fn after_comparing() {
        if let Some(then) = THEN.take() {
            then();
        }
    }

    /// A comparison holds when its result is applied: a replacement by another thread comes after
    /// it, so that no layout is set on fewer bytes than it has, over those of a neighbour.
    #[test]
    fn no_other_change_comes_between_comparing_and_applying() {
        let device = Device::open("host", DeviceOptions::default()).unwrap();
        let (large, flat, small) = ([32, 32], [1, 1024], [8, 8]);
        let parameters = vec![parameter("a", large), parameter("b", large)];
        let offloader = offloader(&device, parameters.clone(), None);
        let of_b = numbers(&device, large, 2.0);
        let replace = |name: &str, shape, value| {
            let source = numbers(&device, shape, value);
            offloader.replace(name, matrix(shape), Location::host(source.data()), DEFAULT)
        };
        replace("b", large, 2.0).unwrap();
        // The bytes of `a` in another shape, in place.
        let now = parameters.into_iter().zip([flat, large]).map(|(mut parameter, shape)| {
            parameter.layout = matrix(shape);
            let state = offloader.state().unwrap();
            let source = state.own_location(state.find(&parameter.name).unwrap());
            (parameter, source)
        });
        let now: Vec<_> = now.collect();
        let (done, wait) = mpsc::channel();
        let (other, fewer) = (offloader.clone(), numbers(&device, small, 1.0));
        THEN.set(Some(Box::new(move || {
            let (replaced, was_replaced) = mpsc::channel();
            let replace = move || {
                let source = Location::host(fewer.data());
                let result = other.replace("a", matrix(small), source, DEFAULT);
                let _ = replaced.send(());
                result
            };
            done.send(thread::spawn(replace)).unwrap();
            // It must not end before this thread has: a lock keeps it, not this time.
            let _ = was_replaced.recv_timeout(Duration::from_millis(200));
        })));
        let result = offloader.reconcile(now, DEFAULT).unwrap();
        assert_eq!(result, ReconcileResult { replaced: 1, kept: 1, ..ReconcileResult::default() });
        wait.recv().unwrap().join().unwrap().unwrap();
        let info = offloader.parameter_info(offloader.find_parameter("a").unwrap()).unwrap();
        assert_eq!(info.layout.shape(), small, "the replacement was last");
        replace("a", large, 3.0).unwrap();
        let at = offloader.find_parameter("b").unwrap();
        let view = offloader.host_view(at, Accessor::Host).unwrap();
        let buffer = view.buffer().unwrap().data();
        let bytes = bytes::read(buffer.part(view.address() - buffer.start(), of_b.data().bytes()));
        assert!(bytes == bytes::read(of_b.data()), "another parameter was overwritten");
    }
}
