//! The suite that every backend passes.

swiglu_testing::suite!(cuda, || {
    swiglu_cuda::CudaBackend::open().map_err(|e| e.to_string())
});
