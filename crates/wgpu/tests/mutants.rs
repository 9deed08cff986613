//! The wgpu backend made wrong on purpose: the suite catches every fault.

use swiglu_wgpu::WgpuBackend;

fn open() -> Result<WgpuBackend, String> {
    let builder = WgpuBackend::builder().allow_software(true);
    builder.open().map_err(|error| error.to_string())
}

swiglu_conformance::mutants!(wgpu, open);
