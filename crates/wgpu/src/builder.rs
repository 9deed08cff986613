//! How a backend is opened: the adapter, the device, and the best kernels that work on it.
//!
//! ## Method
//! 1. Adapters are taken in the order of preference; each that is passed over leaves its reason.
//! 2. A device with cooperative matrices is tried first, where the adapter has them: a driver that
//!    fails to compile for them may take its device along, and then another is opened.
//! 3. On a device the best kernels are built and tried, and plain ones if those fail. What may be
//!    left out alone (the native silu, the gated GEMV) is tried last.
//! 4. Every step that was not the best says so in the backend's description.

use swiglu_core::Accumulation;

use crate::device::{Device, DeviceSettings, ranked, reasons, software_allowed_by_environment};
use crate::launch::Recorder;
use crate::pipelines::{COOPERATIVE_SUBGROUPS, Pipelines, TWO_BUFFERS, Tier, self_test};
use crate::{Result, WgpuBackend, WgpuError};

/// How a [`WgpuBackend`] is opened.
#[derive(Clone, Debug)]
pub struct Builder {
    allow_software: bool,
    adapter: Option<String>,
    device: DeviceSettings,
    subgroups: bool,
    accumulation: Accumulation,
    shared_buffers: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            allow_software: software_allowed_by_environment(),
            adapter: None,
            device: DeviceSettings::default(),
            subgroups: true,
            accumulation: Accumulation::default(),
            shared_buffers: false,
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
        self.device.limits = Some(limits);
        self
    }

    /// Features beyond those that kernels use, such as timestamp queries, where the adapter has
    /// them.
    #[must_use]
    pub const fn features(mut self, features: wgpu::Features) -> Self {
        self.device.features = features;
        self
    }

    /// Whether kernels may use subgroups where the device has them, which is the default.
    #[must_use]
    pub const fn subgroups(mut self, subgroups: bool) -> Self {
        self.subgroups = subgroups;
        self
    }

    /// The least exact class of sums that matmuls may use. With [`Accumulation::MatrixUnit`], the
    /// default, and beyond, f16 is multiplied on cooperative matrices where the adapter has them,
    /// which wgpu calls experimental; with [`Accumulation::Ordered`] it is not. There is no kernel
    /// for [`Accumulation::Fp8TensorCore`].
    #[must_use]
    pub const fn accumulation(mut self, accumulation: Accumulation) -> Self {
        self.accumulation = accumulation;
        self
    }

    /// Whether the matrices of one call may lie in one [`wgpu::Buffer`], at places that do not
    /// overlap, as they do in an engine's pool. It is not the default: wgpu takes a buffer that is
    /// read and written in one dispatch only where its inputs are declared to be written too, which
    /// may keep a driver from caching what it reads.
    #[must_use]
    pub const fn shared_buffers(mut self, shared: bool) -> Self {
        self.shared_buffers = shared;
        self
    }

    /// Opens the first adapter that will do and builds its pipelines.
    ///
    /// # Errors
    /// Why each adapter was passed over, or what failed on the one that was taken.
    pub fn open(self) -> Result<WgpuBackend> {
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
                match self.open_adapter(&adapter) {
                    Ok(backend) => return Ok(backend),
                    Err(error) => report.rejection = Some(error.to_string()),
                }
            }
            reports.push(report);
        }
        Err(WgpuError::NoAdapter(reasons(&reports)))
    }

    /// A backend on the caller's device, with what is set here of subgroups, sums and shared
    /// buffers. The device needs the feature `IMMEDIATES` with 128 bytes; its callbacks for errors
    /// and loss stay as they are. Cooperative matrices are not used, as only an adapter tells of
    /// them.
    ///
    /// # Errors
    /// What the device lacks, or a failure to build the pipelines.
    pub fn open_on(&self, device: wgpu::Device, queue: wgpu::Queue) -> Result<WgpuBackend> {
        self.opened(Device::callers(device, queue)?)
    }

    fn open_adapter(&self, adapter: &wgpu::Adapter) -> Result<WgpuBackend> {
        let fit = self
            .device
            .cooperative_matrices_fit(adapter, COOPERATIVE_SUBGROUPS);
        let refusal = match fit {
            _ if self.accumulation == Accumulation::Ordered => "sums are ordered".to_owned(),
            Err(reason) => reason,
            Ok(()) => {
                let device = self.device.open(adapter, true)?;
                match self.opened(device) {
                    Ok(backend) => return Ok(with_note(backend, "cooperative matrices")),
                    Err(error) => error.to_string(),
                }
            }
        };
        let backend = self.opened(self.device.open(adapter, false)?)?;
        let note = format!("no cooperative matrices: {refusal}");
        Ok(with_note(backend, &note))
    }

    /// The best kernels that the device has and that compute what they should.
    fn opened(&self, device: Device) -> Result<WgpuBackend> {
        let refusal = if self.subgroups {
            COOPERATIVE_SUBGROUPS.fit(&device).err()
        } else {
            Some("not asked for".to_owned())
        };
        let best = Tier {
            subgroups: refusal.is_none(),
            e4m3_as_f16: true,
            two_buffers: device.workgroup_storage() >= TWO_BUFFERS,
        };
        let plain = Tier {
            subgroups: false,
            e4m3_as_f16: false,
            two_buffers: best.two_buffers,
        };
        let wanted = match refusal {
            None => "subgroups".to_owned(),
            Some(reason) => format!("no subgroups: {reason}"),
        };
        let mut backend = match self.tried(device, best, wanted) {
            Ok(backend) => backend,
            Err(failed) => {
                let (device, error) = *failed;
                let instead = format!("plain kernels: {error}");
                self.tried(device, plain, instead)
                    .map_err(|failed| failed.1)?
            }
        };
        if backend.pipelines.facts.cooperative {
            self_test::cooperative(&backend)?;
        }
        if let Err(error) = self_test::native(&backend) {
            backend.pipelines.facts.native = false;
            return Ok(with_note(backend, &format!("exp2 of our own: {error}")));
        }
        if let Err(error) = self_test::gated(&backend) {
            backend.pipelines.facts.gated = false;
            let note = format!("the gated half in two kernels: {error}");
            return Ok(with_note(backend, &note));
        }
        Ok(backend)
    }

    /// A backend with these kernels, if they compile and compute what they should; or the device, to
    /// try others on.
    fn tried(
        &self,
        device: Device,
        kernels: Tier,
        tier: String,
    ) -> Result<WgpuBackend, Box<(Device, WgpuError)>> {
        let pipelines = match Pipelines::new(&device, kernels, self.shared_buffers) {
            Ok(pipelines) => pipelines,
            Err(error) => return Err(Box::new((device, error))),
        };
        let backend = WgpuBackend {
            recorder: Recorder::new(device),
            pipelines,
            tier,
            accumulation: self.accumulation.min(Accumulation::MatrixUnit),
        };
        match self_test::run(&backend) {
            Ok(()) => Ok(backend),
            Err(error) => Err(Box::new((backend.recorder.into_device(), error))),
        }
    }
}

/// With more said of what was taken.
fn with_note(mut backend: WgpuBackend, note: &str) -> WgpuBackend {
    backend.tier = format!("{}; {note}", backend.tier);
    backend
}

impl WgpuBackend {
    /// A backend on the best adapter of this machine; see [`crate::probe`].
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open() -> Result<Self> {
        Self::builder().open()
    }

    /// Settings other than the defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A backend on the caller's device: [`Builder::open_on`] with the defaults.
    ///
    /// # Errors
    /// As [`Builder::open_on`].
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Self::builder().open_on(device, queue)
    }
}
