//! A plan together with its device.

use crate::device::address_range::granularity;
use crate::device::device::Device;
use crate::error::Result;
use crate::os::page::page_bytes;
use crate::os::sync::Arc;
use crate::plan::parameter::Parameter;
use crate::plan::plan::{Plan, PlanOptions, Platform};
use crate::plan::{fixed, planner};

/// A plan for a device.
pub struct DevicePlan {
    /// The device.
    pub device: Arc<Device>,
    /// The plan.
    pub plan: Plan,
}

impl DevicePlan {
    /// Plans for the platform of a device.
    pub fn new(
        device: &Arc<Device>,
        parameters: Vec<Parameter>,
        mut options: PlanOptions,
    ) -> Result<Arc<Self>> {
        if options.link_bytes_per_second == 0.0 {
            options.link_bytes_per_second = device.link_bytes_per_second();
        }
        let policy = device.policy();
        let platform = Platform {
            views: policy.allows_views(policy.pin),
            views_reason: policy.views_reason.clone(),
            page_bytes: page_bytes() as u64,
        };
        let plan = match options.fixed_addresses {
            false => planner::plan(parameters, options, &platform)?,
            true => fixed::plan(parameters, options, &platform, granularity(device)?)?,
        };
        Ok(Arc::new(Self { device: device.clone(), plan }))
    }
}
