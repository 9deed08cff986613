use crate::cache;

/// Sizes at which calls change their way. Only those of a matrix unit change results, within what the
/// class of sums allows.
///
/// ```
/// let mut settings = swiglu_cpu::Settings::default();
/// settings.inline_outputs = 0; // every activation runs in the pool
/// let backend = swiglu_cpu::CpuBackend::new().with_settings(settings);
/// # drop(backend);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Outputs (T · d) up to which an activation runs on the caller's thread. Waking a pool takes some
    /// microseconds, in which one thread computes about as many as the default.
    pub inline_outputs: usize,
    /// Multiplications (T · N · K) up to which a matmul runs on the caller's thread, as above.
    pub inline_multiplications: usize,
    /// Rows of a matmul from which AMX multiplies weights of bf16, where it may. Fewer
    /// read the weights at the memory's speed without it. Dot products of bf16 take any number.
    pub matrix_unit_rows: usize,
    /// The same for FP8 weights, which have to be decoded for it.
    pub matrix_unit_rows_fp8: usize,
    /// Bytes of input and output beyond which an activation's results are stored past the caches,
    /// which spares reading their lines first. By default the size of the last-level cache.
    pub stream_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            inline_outputs: 32 * 1024,
            inline_multiplications: 64 * 1024,
            matrix_unit_rows: 3,
            matrix_unit_rows_fp8: 4,
            stream_bytes: cache::last_level(),
        }
    }
}
