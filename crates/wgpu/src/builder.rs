//! How a backend is opened: the adapter, the device, and the best kernels that work on it.
//!
//! ## Method
//! 1. Adapters are taken in the order of preference; each that is passed over leaves its reason.
//! 2. A device with cooperative matrices is tried first, where the adapter has them: a driver that
//!    fails to compile for them may take its device along, and then another is opened.
//! 3. On a device the best kernels are built and tried, and plain ones if those fail. What may be
//!    left out alone (the native silu, the gated GEMV) is tried last.
//! 4. Where requests are named, only their kernels are built and tried.
//! 5. Every step that was not the best says so in the backend's description.

use std::sync::Arc;

use swiglu_core::{Accumulation, Request};

use crate::device::{
    AdapterChoice, AdapterReport, Device, DeviceSettings, FEATURES, Facts, Needs,
    OPTIONAL_FEATURES, chosen, reasons, software_allowed_by_environment,
};
use crate::launch::Recorder;
use crate::pipelines::{
    COOPERATIVE_SUBGROUPS, CooperativeTile, Kernel, LaneSums, PipelineCache, Pipelines,
    TWO_BUFFERS, Tier, expert_buffers, self_test,
};
use crate::{Result, WgpuBackend, WgpuError, requests};

/// How a [`WgpuBackend`] is opened.
#[derive(Clone, Debug)]
pub struct Builder {
    allow_software: bool,
    choice: AdapterChoice,
    requests: Option<Vec<Request>>,
    device: DeviceSettings,
    subgroups: bool,
    accumulation: Accumulation,
    shared_buffers: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            allow_software: software_allowed_by_environment(),
            choice: AdapterChoice::default(),
            requests: None,
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

    /// Only the adapter of this number, as [`AdapterReport::number`] and [`adapters`] count; the
    /// first that can be used if there is none.
    #[must_use]
    pub const fn device(mut self, number: Option<usize>) -> Self {
        self.choice.number = number;
        self
    }

    /// Only an adapter whose name contains `name`, ignoring case; `WGPU_ADAPTER_NAME` says so if
    /// this is not called.
    #[must_use]
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.choice.name = Some(name.into());
        self
    }

    /// Builds the pipelines of these requests and of no others, which takes less time and asks less
    /// of a device. Every other call is an error that says so, and
    /// [`swiglu_core::Backend::supports`] answers no: nothing compiles on the way. By default all
    /// are built.
    #[must_use]
    pub fn for_requests(mut self, requests: &[Request]) -> Self {
        self.requests = Some(requests.to_vec());
        self
    }

    /// The features that a device must have for what is set here.
    pub const fn required_features(&self) -> wgpu::Features {
        FEATURES
    }

    /// Features that kernels use where a device has them: to be asked for as far as the adapter
    /// has them. Cooperative matrices take `EXPERIMENTAL_COOPERATIVE_MATRIX` and `SHADER_F16`
    /// besides, see [`Self::open_on_adapter`].
    pub const fn optional_features(&self) -> wgpu::Features {
        OPTIONAL_FEATURES
    }

    /// The least limits that a device must have for what is set here: 3 storage buffers for
    /// activations, 4 for matmuls, 7 for quantization (WebGPU promises 8), workgroups of 128 or 256
    /// invocations, some of their memory for all but activations, 128 bytes of immediate data.
    /// Everything else is the least that wgpu knows: an engine joins it to its own limits with
    /// [`wgpu::Limits::or_better_values_from`]. Larger bindings and workgroups are used where a
    /// device has them; with the default of all requests, one without the seventh buffer opens too
    /// and does not quantize.
    pub fn required_limits(&self) -> wgpu::Limits {
        self.needs(&Facts {
            quantizes: true,
            ..Facts::LEAST
        })
        .limits()
    }

    /// The adapters of this machine by number, those that can be used with what is set here and
    /// those that cannot, each with its reason.
    pub fn adapters(&self) -> Vec<AdapterReport> {
        let choice = AdapterChoice {
            number: None,
            name: self.choice.name.clone(),
        };
        let found = chosen(&choice, self.allow_software, self.needs(&Facts::LEAST));
        // Without a number there is none that could be missing.
        let found = found.unwrap_or_default().into_iter();
        found.map(|(_, report)| report).collect()
    }

    fn needs(&self, facts: &Facts) -> Needs {
        match &self.requests {
            // What no kernel is there for is told when the backend is opened.
            Some(of) => requests::needs(&requests::kernels(of, facts).unwrap_or_default()),
            None => requests::needs(&Kernel::all(facts)),
        }
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
        let needs = self.needs(&Facts::LEAST);
        let mut reports = Vec::new();
        for (adapter, mut report) in chosen(&self.choice, self.allow_software, needs)? {
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

    /// A backend on the caller's device, with what is set here of requests, subgroups, sums and
    /// shared buffers. The device needs [`Self::required_features`] and [`Self::required_limits`];
    /// its callbacks for errors and loss stay as they are. Cooperative matrices are not used, as
    /// only an adapter tells of them: see [`Self::open_on_adapter`].
    ///
    /// # Errors
    /// What the device lacks, or a failure to build the pipelines.
    pub fn open_on(&self, device: wgpu::Device, queue: wgpu::Queue) -> Result<WgpuBackend> {
        let needs = self.needs(&Facts::LEAST);
        self.opened(Device::callers(device, queue, (needs, false))?)
    }

    /// As [`Self::open_on`], with the adapter that the device is of: cooperative matrices are used
    /// where it has them and the device was opened with the features
    /// `EXPERIMENTAL_COOPERATIVE_MATRIX` and `SHADER_F16`.
    ///
    /// # Errors
    /// As [`Self::open_on`].
    pub fn open_on_adapter(
        &self,
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
    ) -> Result<WgpuBackend> {
        let fit = COOPERATIVE_SUBGROUPS.cooperate_on(adapter, &device);
        let needs = self.needs(&Facts::LEAST);
        self.best(fit, |cooperative| {
            Device::callers(device.clone(), queue.clone(), (needs, cooperative))
        })
    }

    fn open_adapter(&self, adapter: &wgpu::Adapter) -> Result<WgpuBackend> {
        let fit = self
            .device
            .cooperative_matrices_fit(adapter, COOPERATIVE_SUBGROUPS);
        let needs = self.needs(&Facts::LEAST);
        self.best(fit, |cooperative| {
            self.device.open(adapter, (needs, cooperative))
        })
    }

    /// A backend with cooperative matrices where they fit and work, or without.
    fn best(
        &self,
        fit: Result<(), String>,
        device: impl Fn(bool) -> Result<Device>,
    ) -> Result<WgpuBackend> {
        let refusal = match fit {
            _ if self.accumulation == Accumulation::Ordered => "sums are ordered".to_owned(),
            Err(reason) => reason,
            Ok(()) => match device(true).and_then(|device| self.opened(device)) {
                Ok(backend) => return Ok(with_note(backend, "cooperative matrices")),
                Err(error) => error.to_string(),
            },
        };
        let backend = self.opened(device(false)?)?;
        let note = format!("no cooperative matrices: {refusal}");
        Ok(with_note(backend, &note))
    }

    /// The best kernels that the device has and that compute what they should.
    fn opened(&self, device: Device) -> Result<WgpuBackend> {
        let device = Arc::new(device);
        let lanes = if self.subgroups {
            COOPERATIVE_SUBGROUPS.others(&device)
        } else {
            Err("not asked for".to_owned())
        };
        let (sums, wanted) = match lanes {
            Ok(None) => (LaneSums::Subgroup, "subgroups".to_owned()),
            Ok(Some([least, most])) => (
                LaneSums::AnySubgroup,
                format!("subgroups of {least} to {most} lanes"),
            ),
            Err(reason) => (LaneSums::Workgroup, format!("no subgroups: {reason}")),
        };
        let best = Tier {
            sums,
            e4m3_as_f16: true,
            two_buffers: device.workgroup_storage() >= TWO_BUFFERS,
            expert_buffers: expert_buffers(device.storage_buffers()),
        };
        let plain = Tier {
            sums: LaneSums::Workgroup,
            e4m3_as_f16: false,
            two_buffers: best.two_buffers,
            expert_buffers: best.expert_buffers,
        };
        let cache = Arc::new(PipelineCache::open(&device)?);
        let backend = self.best_of(&device, &cache, [best, plain], wanted)?;
        cache.keep()?;
        Ok(match cache.note() {
            Some(note) => with_note(backend, &note),
            None => backend,
        })
    }

    /// The first of the tiers that works, without kernels that fail in it.
    fn best_of(
        &self,
        device: &Arc<Device>,
        cache: &Arc<PipelineCache>,
        [best, plain]: [Tier; 2],
        wanted: String,
    ) -> Result<WgpuBackend> {
        let mut facts = Facts::of(device, self.shared_buffers);
        facts.ordered = self.accumulation == Accumulation::Ordered;
        let (mut backend, tier) = match self.tried((device, cache), best, facts, wanted) {
            Ok(backend) => (backend, best),
            Err(error) => {
                let instead = format!("plain kernels: {error}");
                let backend = self.tried((device, cache), plain, facts, instead)?;
                (backend, plain)
            }
        };
        if facts.cooperative {
            cooperates(&mut backend)?;
        }
        if let Err(error) = self_test::native(&backend) {
            facts.native = false;
            let note = format!("exp2 of our own: {error}");
            return self.without((backend, tier, facts), &note);
        }
        if let Err(error) = self_test::gated(&backend) {
            facts.gated = false;
            let note = format!("the gated half in two kernels: {error}");
            return self.without((backend, tier, facts), &note);
        }
        Ok(backend)
    }

    /// The backend without kernels that failed. Where it was opened for some requests, those that
    /// run in their place are missing: all are built again.
    fn without(
        &self,
        (mut backend, tier, facts): (WgpuBackend, Tier, Facts),
        note: &str,
    ) -> Result<WgpuBackend> {
        match Arc::get_mut(&mut backend.pipelines) {
            Some(pipelines) if pipelines.complete => {
                pipelines.facts = facts;
                Ok(with_note(backend, note))
            }
            _ => {
                let WgpuBackend {
                    recorder,
                    pipelines,
                    tier: was,
                    ..
                } = backend;
                let note = format!("{was}; {note}");
                let on = (&recorder.into_device(), &pipelines.cache);
                self.tried(on, tier, facts, note)
            }
        }
    }

    /// A backend with these kernels, if they compile and compute what they should.
    fn tried(
        &self,
        (device, cache): (&Arc<Device>, &Arc<PipelineCache>),
        tier: Tier,
        facts: Facts,
        note: String,
    ) -> Result<WgpuBackend> {
        let kernels = match &self.requests {
            Some(of) => Some(requests::kernels(of, &facts)?),
            None => None,
        };
        let pipelines = Pipelines::new(device, tier, facts, cache, kernels.as_deref())?;
        let backend = WgpuBackend {
            recorder: Recorder::new(Arc::clone(device)),
            pipelines: Arc::new(pipelines),
            tier: note,
            accumulation: self.accumulation.min(Accumulation::MatrixUnit),
        };
        self_test::run(&backend)?;
        Ok(backend)
    }
}

/// Tries every kernel on cooperative matrices.
///
/// # Errors
/// The first that does not compute what it should.
fn cooperates(backend: &mut WgpuBackend) -> Result<()> {
    let of_shape = backend.pipelines.facts.cooperative_tile;
    for tile in 0..CooperativeTile::ALL.len() {
        if let Some(pipelines) = Arc::get_mut(&mut backend.pipelines) {
            pipelines.facts.cooperative_tile = Some(tile);
        }
        self_test::cooperative(backend)?;
    }
    if let Some(pipelines) = Arc::get_mut(&mut backend.pipelines) {
        pipelines.facts.cooperative_tile = of_shape;
    }
    Ok(())
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

/// The adapters of this machine by number, those that can be used and those that cannot, each with
/// its reason. Software rasterisers are passed over unless `SWIGLU_ALLOW_SOFTWARE=1`, and so is what
/// is not called as `WGPU_ADAPTER_NAME` says; `WGPU_BACKEND` says on which interfaces to look. Empty
/// where no driver is installed.
pub fn adapters() -> Vec<AdapterReport> {
    Builder::default().adapters()
}

/// The adapter that [`WgpuBackend::open`] takes.
///
/// # Errors
/// Why there is none: every adapter with its reason.
pub fn probe() -> Result<AdapterReport, String> {
    let reports = adapters();
    match reports.iter().find(|r| r.rejection.is_none()) {
        Some(report) => Ok(report.clone()),
        None => Err(reasons(&reports)),
    }
}
