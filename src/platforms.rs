use std::sync::Arc;

use swiglu_core::{Registry, reference::Reference};

use crate::AnyBackend;

type Opened = Result<Arc<dyn AnyBackend>, String>;

/// The platforms of this build in the order they are tried: cuda, wgpu, cpu, and the scalar
/// reference last. One that was not built in is listed with that as its reason.
pub fn built_in() -> Registry<dyn AnyBackend> {
    let mut registry = Registry::<dyn AnyBackend>::new();
    registry.built_in("cuda", cuda);
    registry.built_in("wgpu", wgpu);
    registry.built_in("cpu", cpu);
    registry.built_in("reference", || Ok(Arc::new(Reference)));
    registry
}

#[cfg(feature = "cuda")]
fn cuda() -> Opened {
    match swiglu_cuda::CudaBackend::open() {
        Ok(backend) => Ok(Arc::new(backend)),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Opened {
    Err(without("cuda"))
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Opened {
    match swiglu_wgpu::WgpuBackend::new() {
        Ok(backend) => Ok(Arc::new(backend)),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Opened {
    Err(without("wgpu"))
}

#[cfg(feature = "cpu")]
fn cpu() -> Opened {
    Ok(Arc::new(swiglu_cpu::CpuBackend::new()))
}

#[cfg(not(feature = "cpu"))]
fn cpu() -> Opened {
    Err(without("cpu"))
}

#[cfg(not(all(feature = "cpu", feature = "cuda", feature = "wgpu")))]
fn without(feature: &str) -> String {
    format!("built without the feature `{feature}`")
}
