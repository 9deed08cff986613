use crate::adapter::{ranked, reasons, software_allowed_by_environment};
use crate::device::{Device, required_features};
use crate::shaders::{COOPERATIVE_STORAGE, LANES};
use crate::{Result, WgpuBackend, WgpuError};

/// How a [`WgpuBackend`] with a device of its own is made.
#[derive(Clone, Debug)]
pub struct Builder {
    allow_software: bool,
    adapter: Option<String>,
    limits: Option<wgpu::Limits>,
    features: wgpu::Features,
    subgroups: bool,
    cooperative: bool,
}

const COOPERATIVE_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Whether the tiles on cooperative matrices can be tried.
///
/// # Errors
/// Why not.
fn cooperative_matrices_fit(
    adapter: &wgpu::Adapter,
    limits: &wgpu::Limits,
) -> std::result::Result<(), String> {
    if !adapter.features().contains(COOPERATIVE_FEATURES) {
        return Err("the adapter has none".to_owned());
    }
    let fits = |p: &wgpu::CooperativeMatrixProperties| {
        let types = (p.ab_type, p.cr_type);
        (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
            && types
                == (
                    wgpu::CooperativeScalarType::F16,
                    wgpu::CooperativeScalarType::F32,
                )
    };
    if !adapter.cooperative_matrix_properties().iter().any(fits) {
        return Err("none of 16 by 16 by 16 from f16 to f32".to_owned());
    }
    let info = adapter.get_info();
    let (least, most) = (info.subgroup_min_size, info.subgroup_max_size);
    if (least, most) != (LANES, LANES) {
        return Err(format!(
            "subgroups have {least} to {most} lanes, not {LANES}"
        ));
    }
    let storage = limits.max_compute_workgroup_storage_size;
    if storage < COOPERATIVE_STORAGE {
        return Err(format!(
            "workgroups have {storage} bytes, not {COOPERATIVE_STORAGE}"
        ));
    }
    Ok(())
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            allow_software: software_allowed_by_environment(),
            adapter: None,
            limits: None,
            features: wgpu::Features::empty(),
            subgroups: true,
            cooperative: true,
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

    /// Whether f16 may be multiplied on cooperative matrices where the adapter has them, which is
    /// the default. wgpu calls them experimental.
    #[must_use]
    pub const fn cooperative_matrices(mut self, cooperative: bool) -> Self {
        self.cooperative = cooperative;
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
                    Ok(backend) => return Ok(backend),
                    Err(error) => report.rejection = Some(error.to_string()),
                }
            }
            reports.push(report);
        }
        Err(WgpuError::NoAdapter(reasons(&reports)))
    }

    /// With cooperative matrices, if they work: a driver that fails to compile for them may take
    /// its device along, and then another is opened.
    fn open(&self, adapter: &wgpu::Adapter) -> Result<WgpuBackend> {
        let limits = self.limits.clone().unwrap_or_else(|| adapter.limits());
        let refusal = match cooperative_matrices_fit(adapter, &limits) {
            _ if !self.cooperative => "not asked for".to_owned(),
            Err(reason) => reason,
            Ok(()) => {
                let device = self.device(adapter, limits.clone(), true)?;
                match WgpuBackend::on(device, self.subgroups) {
                    Ok(backend) => return Ok(backend.with_note("cooperative matrices")),
                    Err(error) => error.to_string(),
                }
            }
        };
        let device = self.device(adapter, limits, false)?;
        let backend = WgpuBackend::on(device, self.subgroups)?;
        Ok(backend.with_note(&format!("no cooperative matrices: {refusal}")))
    }

    fn device(
        &self,
        adapter: &wgpu::Adapter,
        limits: wgpu::Limits,
        cooperative: bool,
    ) -> Result<Device> {
        let mut wanted = self.features | wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE;
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if cooperative {
            wanted |= COOPERATIVE_FEATURES;
            // SAFETY: wgpu asks to be told of bugs in what it calls experimental, and so it will
            // be. One shader uses it, which no caller chooses, and its results are tested.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("swiglu"),
            required_features: required_features() | (wanted & adapter.features()),
            required_limits: limits,
            experimental_features: experimental,
            ..Default::default()
        };
        let requested = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = requested.map_err(|error| WgpuError::NoDevice {
            adapter: adapter.get_info().name,
            reason: error.to_string(),
        })?;
        Device::own(device, queue, cooperative)
    }
}
