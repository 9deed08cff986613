//! The adapters of this machine: which can be used, and which comes first.

use std::sync::OnceLock;

/// Bytes of immediate data that the kernels take.
pub(crate) const IMMEDIATE_BYTES: u32 = 128;

/// What every kernel needs of a device.
pub(crate) fn required_features() -> wgpu::Features {
    wgpu::Features::IMMEDIATES
}

/// The least that every kernel needs of a device.
fn required_limits() -> wgpu::Limits {
    wgpu::Limits {
        max_immediate_size: IMMEDIATE_BYTES,
        ..wgpu::Limits::downlevel_defaults()
    }
}

/// The environment variable that lets software rasterisers be taken for a GPU.
pub const ALLOW_SOFTWARE_VARIABLE: &str = "SWIGLU_ALLOW_SOFTWARE";

/// An adapter of this machine, and why it is not used where it is not.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// What wgpu knows of it.
    pub info: wgpu::AdapterInfo,
    /// Why it is passed over.
    pub rejection: Option<String>,
}

impl std::fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&describe(&self.info))?;
        match &self.rejection {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Name, kind, interface and driver, on one line.
pub(crate) fn describe(info: &wgpu::AdapterInfo) -> String {
    format!(
        "{} ({:?}, {}, {} {})",
        info.name,
        info.device_type,
        info.backend,
        info.driver.trim(),
        info.driver_info.trim()
    )
}

/// Made at the first call, once: creating an instance loads the drivers.
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::PRIMARY,
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        })
    })
}

pub(crate) fn software_allowed_by_environment() -> bool {
    std::env::var_os(ALLOW_SOFTWARE_VARIABLE).is_some_and(|v| v == "1")
}

fn rejection(adapter: &wgpu::Adapter, allow_software: bool) -> Option<String> {
    let info = adapter.get_info();
    if info.device_type == wgpu::DeviceType::Cpu && !allow_software {
        return Some(format!(
            "a software rasteriser; {ALLOW_SOFTWARE_VARIABLE}=1 allows it"
        ));
    }
    let missing = required_features() - adapter.features();
    if !missing.is_empty() {
        return Some(format!("lacks the features {missing:?}"));
    }
    let mut lacking = Vec::new();
    required_limits().check_limits_with_fail_fn(
        &adapter.limits(),
        false,
        |name, wanted, allowed| lacking.push(format!("{name} of {wanted}, has {allowed}")),
    );
    (!lacking.is_empty()).then(|| format!("lacks {}", lacking.join(", ")))
}

/// Faster kinds first.
fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// The adapters in the order of preference.
pub(crate) fn ranked(allow_software: bool) -> Vec<(wgpu::Adapter, AdapterReport)> {
    let found = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
    let mut adapters: Vec<_> = found
        .into_iter()
        .map(|adapter| {
            let report = AdapterReport {
                info: adapter.get_info(),
                rejection: rejection(&adapter, allow_software),
            };
            (adapter, report)
        })
        .collect();
    adapters.sort_by_key(|(_, report)| rank(report.info.device_type));
    adapters
}

/// The adapters of this machine, those that are used first; software rasterisers are passed over
/// unless `SWIGLU_ALLOW_SOFTWARE=1`. Empty where no driver is installed.
pub fn adapters() -> Vec<AdapterReport> {
    ranked(software_allowed_by_environment())
        .into_iter()
        .map(|(_, report)| report)
        .collect()
}

/// The adapter that [`crate::WgpuBackend::open`] takes.
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

pub(crate) fn reasons(reports: &[AdapterReport]) -> String {
    if reports.is_empty() {
        return "no driver for Vulkan, Metal or DirectX 12 offers an adapter".to_owned();
    }
    let lines: Vec<_> = reports.iter().map(ToString::to_string).collect();
    lines.join("; ")
}
