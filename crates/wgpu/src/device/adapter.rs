//! The adapters of this machine: which can be used, and which comes first.

use std::fmt;
use std::sync::OnceLock;

use super::needs::Needs;

/// The environment variable that lets software rasterisers be taken for a GPU.
pub const ALLOW_SOFTWARE_VARIABLE: &str = "SWIGLU_ALLOW_SOFTWARE";

/// The variable of wgpu's own that names an adapter by a part of its name, whatever the case.
const NAME_VARIABLE: &str = "WGPU_ADAPTER_NAME";

/// The variable of wgpu's own that lists the interfaces, such as `vulkan` or `metal`.
const BACKEND_VARIABLE: &str = "WGPU_BACKEND";

/// An adapter of this machine, and why it is not used where it is not.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// What [`crate::Builder::device`] takes. Adapters are numbered from 0 on: discrete GPUs first,
    /// then integrated, virtual and other ones, software rasterisers last; within a kind by
    /// interface (Vulkan, Metal, DirectX 12), PCI bus and name. What is passed over has its number
    /// too, so that numbers stay as they are while the hardware, the drivers and `WGPU_BACKEND` do.
    pub number: usize,
    /// What wgpu knows of it: name, interface (`backend`) and kind (`device_type`).
    pub info: wgpu::AdapterInfo,
    /// Why it is passed over; none where it can be used.
    pub rejection: Option<String>,
}

impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.number, describe(&self.info))?;
        match &self.rejection {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// What a kind of adapter is called.
const fn kind(kind: wgpu::DeviceType) -> &'static str {
    match kind {
        wgpu::DeviceType::DiscreteGpu => "discrete GPU",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Other => "other device",
        wgpu::DeviceType::Cpu => "software",
    }
}

/// Name, kind, interface and driver, on one line.
pub(crate) fn describe(info: &wgpu::AdapterInfo) -> String {
    format!(
        "{} ({}, {}, {} {})",
        info.name,
        kind(info.device_type),
        info.backend,
        info.driver.trim(),
        info.driver_info.trim()
    )
}

/// The names of features, as wgpu's documentation has them.
pub(super) fn feature_names(features: wgpu::Features) -> String {
    let names: Vec<_> = features.iter_names().map(|(name, _)| name).collect();
    names.join(", ")
}

/// The interfaces to look for adapters on: those of `WGPU_BACKEND` where it is set.
fn interfaces() -> wgpu::Backends {
    wgpu::Backends::from_env().unwrap_or(wgpu::Backends::PRIMARY)
}

/// Made at the first call, once: creating an instance loads the drivers.
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: interfaces(),
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        })
    })
}

pub(crate) fn software_allowed_by_environment() -> bool {
    std::env::var_os(ALLOW_SOFTWARE_VARIABLE).is_some_and(|v| v == "1")
}

fn rejection(adapter: &wgpu::Adapter, allow_software: bool, needs: Needs) -> Option<String> {
    let info = adapter.get_info();
    if info.device_type == wgpu::DeviceType::Cpu && !allow_software {
        return Some(format!(
            "a software rasteriser; {ALLOW_SOFTWARE_VARIABLE}=1 allows it"
        ));
    }
    let lacking = needs.lacking(adapter.features(), &adapter.limits())?;
    Some(format!("lacks {lacking}"))
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

/// Interfaces in the order of preference.
const fn interface_rank(interface: wgpu::Backend) -> u8 {
    match interface {
        wgpu::Backend::Vulkan => 0,
        wgpu::Backend::Metal => 1,
        wgpu::Backend::Dx12 => 2,
        wgpu::Backend::Gl => 3,
        wgpu::Backend::BrowserWebGpu => 4,
        wgpu::Backend::Noop => 5,
    }
}

/// What decides an adapter's number.
fn place(info: &wgpu::AdapterInfo) -> impl Ord + use<> {
    (
        rank(info.device_type),
        interface_rank(info.backend),
        info.device_pci_bus_id.clone(),
        info.name.clone(),
    )
}

/// Which adapters are looked for beside those that can be used.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdapterChoice {
    pub(crate) number: Option<usize>,
    /// A part of the name, whatever the case; that of `WGPU_ADAPTER_NAME` if there is none.
    pub(crate) name: Option<String>,
}

impl AdapterChoice {
    /// Why an adapter is not the one.
    fn rejection(&self, name: &str) -> Option<String> {
        let (wanted, source) = match &self.name {
            Some(wanted) => (wanted.clone(), "Builder::adapter"),
            None => (std::env::var(NAME_VARIABLE).ok()?, NAME_VARIABLE),
        };
        let found = name.to_lowercase().contains(&wanted.to_lowercase());
        (!found).then(|| format!("not called `{wanted}` ({source})"))
    }
}

/// The adapters by number, or the one of the number that is asked for.
///
/// # Errors
/// A number that no adapter has.
pub(crate) fn chosen(
    choice: &AdapterChoice,
    allow_software: bool,
    needs: Needs,
) -> swiglu_core::Result<Vec<(wgpu::Adapter, AdapterReport)>> {
    let interfaces = interfaces();
    let mut found = pollster::block_on(instance().enumerate_adapters(interfaces));
    found.sort_by_cached_key(|adapter| place(&adapter.get_info()));
    let numbered = found.into_iter().enumerate().map(|(number, adapter)| {
        let info = adapter.get_info();
        let named = || choice.rejection(&info.name);
        let rejection = rejection(&adapter, allow_software, needs).or_else(named);
        let report = AdapterReport {
            number,
            info,
            rejection,
        };
        (adapter, report)
    });
    let mut adapters: Vec<_> = numbered.collect();
    let Some(number) = choice.number else {
        return Ok(adapters);
    };
    if number >= adapters.len() {
        let reports: Vec<_> = adapters.into_iter().map(|(_, report)| report).collect();
        let expected = format!("the number of an adapter ({})", reasons(&reports));
        return Err(swiglu_core::Error::argument("device", expected, number));
    }
    Ok(vec![adapters.swap_remove(number)])
}

pub(crate) fn reasons(reports: &[AdapterReport]) -> String {
    if reports.is_empty() {
        let none = "no driver for Vulkan, Metal or DirectX 12 offers an adapter";
        return match std::env::var(BACKEND_VARIABLE) {
            Ok(only) => format!("{none}; {BACKEND_VARIABLE}={only} leaves the others out"),
            Err(_) => none.to_owned(),
        };
    }
    let lines: Vec<_> = reports.iter().map(ToString::to_string).collect();
    lines.join("; ")
}
