//! Plans: the placement of every parameter, before anything is allocated.

use std::ffi::CString;

use once_cell::race::OnceBox;

use crate::capi::call::{call, release, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::error::wb_error;
use crate::capi::handle::opaque;
use crate::capi::offloader::source::source_of;
use crate::capi::parameter::{GivenParameters, wb_parameter};
use crate::capi::plan::options::wb_plan_options;
use crate::device::device::Device;
use crate::error::Result;
use crate::memory::buffer::Buffer;
use crate::offload::device_plan::DevicePlan;
use crate::offload::{encoded, encoded_source};
use crate::os::sync::Arc;
use crate::plan::compression::Compression;
use crate::plan::json;
use crate::plan::parameter::Parameter;
use crate::plan::plan::{Plan, PlanOptions};
use crate::status::wb_status;

/// The placement of every parameter and the reason for it.
pub struct wb_plan {
    _opaque: [u8; 0],
}

opaque!(wb_plan, CPlan);

/// A plan, and its texts as C reads them, each made when it is first read. Making one takes no
/// lock, which in a forked child might be held forever.
pub struct CPlan {
    pub(in crate::capi) plan: Arc<DevicePlan>,
    parameters: OnceBox<Vec<(CString, CString)>>,
    groups: OnceBox<Vec<CString>>,
    warnings: OnceBox<Vec<CString>>,
    json: OnceBox<CString>,
    /// Indexes of the parameters, by name.
    by_name: OnceBox<Vec<u32>>,
    /// Sources are in these. They are dropped with the last reference of C, which an offloader does
    /// not have.
    pub(in crate::capi) buffers: Vec<Arc<Buffer>>,
}

impl CPlan {
    fn new(plan: Arc<DevicePlan>, buffers: Vec<Arc<Buffer>>) -> Arc<Self> {
        let (parameters, groups) = (OnceBox::new(), OnceBox::new());
        let (warnings, json, by_name) = (OnceBox::new(), OnceBox::new(), OnceBox::new());
        Arc::new(Self { plan, parameters, groups, warnings, json, by_name, buffers })
    }

    pub(in crate::capi) fn plan(&self) -> &Plan {
        &self.plan.plan
    }

    /// The name of every parameter, and the reason for its placement.
    pub fn parameters(&self) -> &[(CString, CString)] {
        texts(&self.parameters, &self.plan().parameters, |planned| {
            (c_text(planned.parameter.name.as_str()), c_text(self.plan().reason(planned)))
        })
    }

    /// The name of every group.
    pub fn groups(&self) -> &[CString] {
        texts(&self.groups, &self.plan().groups, |group| c_text(group.name.as_str()))
    }

    /// Every warning.
    pub fn warnings(&self) -> &[CString] {
        texts(&self.warnings, &self.plan().warnings, |warning| c_text(warning.as_str()))
    }

    /// The index of the parameter with a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        let parameters = &self.plan().parameters;
        let name_at = |index: &u32| parameters[*index as usize].parameter.name.as_str();
        let by_name = self.by_name.get_or_init(|| {
            let mut indexes: Vec<u32> = (0..parameters.len() as u32).collect();
            indexes.sort_unstable_by(|one, other| name_at(one).cmp(name_at(other)));
            Box::new(indexes)
        });
        let found = by_name.binary_search_by(|index| name_at(index).cmp(name)).ok()?;
        Some(by_name[found] as usize)
    }

    /// The plan as JSON.
    pub fn json(&self) -> &CString {
        self.json.get_or_init(|| Box::new(c_text(json::to_json(self.plan()))))
    }
}

fn texts<'a, F, T>(made: &'a OnceBox<Vec<T>>, from: &[F], text: impl Fn(&F) -> T) -> &'a [T] {
    made.get_or_init(|| Box::new(from.iter().map(text).collect()))
}

/// A text for C. Names come from C, and have no NUL.
fn c_text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap_or_default()
}

/// Plans which of `count` parameters leave the device under the budget, and how they are
/// transferred. Nothing is allocated, and of sources only samples are read, with `compress`, and
/// the headers of compressed ones; the plan keeps copies of `parameters` and `options` and
/// references to the parameters' buffers, and the sources are read by wb_offloader_new. `options`
/// must give a budget.
///
/// Fails with WB_ERR_NOTHING_OFFLOADED, WB_ERR_SELECTOR or WB_ERR_EVERYTHING_FITS unless `allow`
/// says otherwise, with WB_ERR_DAMAGED for a compressed source that is not what its parameter says,
/// and with WB_ERR_BUDGET, WB_ERR_SLOTS_BUDGET or WB_ERR_OVERFLOW; with
/// WB_ERR_NOT_MAPPED if a parameter asks for zero-copy and the device's policy has no views.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_new(
    device: *const wb_device,
    parameters: *const wb_parameter,
    count: u64,
    options: *const wb_plan_options,
    plan: *mut *mut wb_plan,
    error: *mut wb_error,
) -> wb_status {
    let parameters = (parameters, count);
    call!(error, |device: Arc<Device>, parameters: GivenParameters, options: PlanOptions| -> plan {
        let GivenParameters { mut parameters, buffers } = parameters;
        let is_encoded = |one: &Parameter| one.encoded_source().is_some();
        if options.compress != Compression::Off || parameters.iter().any(is_encoded) {
            let sources = parameters.iter().map(|parameter| source_of(&device, parameter));
            let sources = sources.collect::<Result<Vec<_>>>()?;
            for (parameter, source) in parameters.iter().zip(&sources) {
                source
                    .iter()
                    .try_for_each(|source| encoded_source::check_header(parameter, *source))?;
            }
            encoded::measure(&device, &options.compress, &mut parameters, &sources)?;
        }
        DevicePlan::new(&device, parameters, options).map(|plan| CPlan::new(plan, buffers))
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_retain(plan: *const wb_plan) {
    retain!(plan)
}

/// Drops a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_plan_release(plan: *mut wb_plan) {
    release!(plan)
}
