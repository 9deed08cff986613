//! The suite that every backend passes, on the best adapter of this machine or a software
//! rasteriser.

use swiglu_wgpu::WgpuBackend;

fn open() -> Result<WgpuBackend, String> {
    let builder = WgpuBackend::builder().allow_software(true);
    builder.open().map_err(|error| error.to_string())
}

swiglu_conformance::suite!(wgpu, open);
swiglu_conformance::complete!(wgpu_complete, open);
