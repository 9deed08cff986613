//! The wgpu backend made wrong on purpose: the suite catches every fault.

use swiglu_testing::Expectations;
use swiglu_wgpu::WgpuBackend;

fn open() -> Result<WgpuBackend, String> {
    let builder = WgpuBackend::builder().allow_software(true);
    builder.build().map_err(|error| error.to_string())
}

swiglu_testing::mutants!(wgpu, open, Expectations::shader());
