use crate::adapter::{ranked, reasons, software_allowed_by_environment};
use crate::device::{Device, required_features};
use crate::{Result, WgpuBackend, WgpuError};

/// How a [`WgpuBackend`] with a device of its own is made.
#[derive(Clone, Debug)]
pub struct Builder {
    allow_software: bool,
    adapter: Option<String>,
    limits: Option<wgpu::Limits>,
    features: wgpu::Features,
    subgroups: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            allow_software: software_allowed_by_environment(),
            adapter: None,
            limits: None,
            features: wgpu::Features::empty(),
            subgroups: true,
        }
    }
}

impl Builder {
    /// Whether a software rasteriser may be taken; `SWIGLU_ALLOW_SOFTWARE=1` says so if this is
    /// not called.
    #[must_use]
    pub const fn allow_software(mut self, allow: bool) -> Self {
        self.allow_software = allow;
        self
    }

    /// Only an adapter whose name contains `name`, ignoring case.
    #[must_use]
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }

    /// Limits other than the adapter's best.
    #[must_use]
    pub fn limits(mut self, limits: wgpu::Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Features beyond those that kernels use, such as timestamp queries, where the adapter has
    /// them.
    #[must_use]
    pub const fn features(mut self, features: wgpu::Features) -> Self {
        self.features = features;
        self
    }

    /// Whether kernels may use subgroups where the device has them, which is the default.
    #[must_use]
    pub const fn subgroups(mut self, subgroups: bool) -> Self {
        self.subgroups = subgroups;
        self
    }

    /// Opens the first adapter that will do and builds its pipelines.
    ///
    /// # Errors
    /// Why each adapter was passed over, or what failed on the one that was taken.
    pub fn build(self) -> Result<WgpuBackend> {
        let mut reports = Vec::new();
        for (adapter, mut report) in ranked(self.allow_software) {
            if let Some(name) = &self.adapter
                && !report
                    .info
                    .name
                    .to_lowercase()
                    .contains(&name.to_lowercase())
            {
                report
                    .rejection
                    .get_or_insert_with(|| format!("not called `{name}`"));
            }
            if report.rejection.is_none() {
                match self.open(&adapter) {
                    Ok(device) => return WgpuBackend::on(device, self.subgroups),
                    Err(error) => report.rejection = Some(error.to_string()),
                }
            }
            reports.push(report);
        }
        Err(WgpuError::NoAdapter(reasons(&reports)))
    }

    fn open(&self, adapter: &wgpu::Adapter) -> Result<Device> {
        let wanted = self.features | wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("swiglu"),
            required_features: required_features() | (wanted & adapter.features()),
            required_limits: self.limits.clone().unwrap_or_else(|| adapter.limits()),
            ..Default::default()
        };
        let requested = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = requested.map_err(|error| WgpuError::NoDevice {
            adapter: adapter.get_info().name,
            reason: error.to_string(),
        })?;
        Device::own(device, queue)
    }
}
