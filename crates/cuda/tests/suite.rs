//! The suite that every backend passes, with matmuls on matrix units and with ordered ones; and
//! that nothing of the library is missing.

use swiglu_core::Accumulation;
use swiglu_cuda::CudaBackend;

fn open(accumulation: Accumulation) -> Result<CudaBackend, String> {
    let builder = CudaBackend::builder().accumulation(accumulation);
    builder.open().map_err(|error| error.to_string())
}

swiglu_conformance::suite!(cuda, || open(Accumulation::MatrixUnit));

mod ordered {
    use super::*;

    swiglu_conformance::suite!(cuda, || open(Accumulation::Ordered));
}

mod complete {
    use super::*;

    swiglu_conformance::complete!(cuda, || open(Accumulation::MatrixUnit));
}
