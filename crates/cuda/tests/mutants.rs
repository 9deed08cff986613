//! The CUDA backend made wrong on purpose: the suite catches every fault.

swiglu_conformance::mutants!(cuda, || {
    swiglu_cuda::CudaBackend::open().map_err(|e| e.to_string())
});
