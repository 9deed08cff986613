use std::sync::Arc;

use swiglu_core::{OpenOptions, Registry, reference::Reference};

use crate::AnyBackend;

type Opened = Result<Arc<AnyBackend>, String>;

/// The platforms of this build in the order they are tried: cuda, wgpu, cpu, and the scalar
/// reference last. One that was not built in is listed with that as its reason.
pub fn built_in() -> Registry<AnyBackend> {
    let mut registry = Registry::new();
    registry.built_in("cuda", cuda);
    registry.built_in("wgpu", wgpu);
    registry.built_in("cpu", cpu);
    registry.built_in("reference", |options| {
        the_only_device(options)?;
        Ok(Arc::new(AnyBackend::new(Reference)))
    });
    registry
}

#[cfg(feature = "cuda")]
fn cuda(options: &OpenOptions) -> Opened {
    let builder = swiglu_cuda::CudaBackend::builder().accumulation(options.accumulation);
    match builder.device(options.device).open() {
        Ok(backend) => Ok(Arc::new(AnyBackend::new(backend))),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &OpenOptions) -> Opened {
    Err(without("cuda"))
}

#[cfg(feature = "wgpu")]
fn wgpu(options: &OpenOptions) -> Opened {
    let builder = swiglu_wgpu::WgpuBackend::builder()
        .accumulation(options.accumulation)
        .device(options.device);
    match builder.open() {
        Ok(backend) => Ok(Arc::new(AnyBackend::new(backend))),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: &OpenOptions) -> Opened {
    Err(without("wgpu"))
}

#[cfg(feature = "cpu")]
fn cpu(options: &OpenOptions) -> Opened {
    the_only_device(options)?;
    let cpu = swiglu_cpu::CpuBackend::new().with_accumulation(options.accumulation);
    Ok(Arc::new(AnyBackend::new(cpu)))
}

#[cfg(not(feature = "cpu"))]
fn cpu(_: &OpenOptions) -> Opened {
    Err(without("cpu"))
}

#[cfg(not(all(feature = "cpu", feature = "cuda", feature = "wgpu")))]
fn without(feature: &str) -> String {
    format!("built without the feature `{feature}`")
}

/// Refuses every number of a device but 0.
fn the_only_device(options: &OpenOptions) -> Result<(), String> {
    match options.device {
        None | Some(0) => Ok(()),
        Some(other) => Err(format!(
            "device: expected 0, the only one there is, got {other}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_with_one_device_refuses_every_other_number() {
        let open = |device| {
            let options = OpenOptions::default().with_device(device);
            let registry = built_in();
            let opened = registry.probe(&options, |platform| platform == "reference");
            opened.first().map(|(_, device)| device.is_ok())
        };
        assert_eq!(open(None), Some(true));
        assert_eq!(open(Some(0)), Some(true));
        assert_eq!(open(Some(1)), Some(false));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn the_number_of_a_device_reaches_cuda() {
        let options = OpenOptions::default().with_device(Some(4711));
        let registry = built_in();
        let opened = registry.probe(&options, |platform| platform == "cuda");
        let reason = opened
            .into_iter()
            .next()
            .and_then(|(_, device)| device.err());
        let reason = reason.unwrap_or_default();
        match swiglu_cuda::devices() {
            Ok(_) => assert!(reason.starts_with("device: expected"), "{reason}"),
            Err(why_not) => assert_eq!(reason, why_not.to_string()),
        }
    }
}
