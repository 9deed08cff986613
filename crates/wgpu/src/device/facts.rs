//! What the choice of kernels knows of a device: plain values, so that plans need no device.

/// What a device allows of bindings and dispatches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BindingLimits {
    /// Bytes that one binding can have.
    pub(crate) bytes: u64,
    /// What offsets of bindings are multiples of, in bytes.
    pub(crate) alignment: u64,
    /// Workgroups in one dimension of a dispatch.
    pub(crate) workgroups: u32,
}

impl BindingLimits {
    /// Positions in a binding are counted in u32, and some signed: no binding is larger than this.
    const LARGEST: u64 = 1 << 31;

    pub(crate) fn of(limits: &wgpu::Limits) -> Self {
        let bytes = limits.max_storage_buffer_binding_size;
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        Self {
            bytes: bytes.min(limits.max_buffer_size).min(Self::LARGEST) & !15,
            alignment: alignment.max(16),
            workgroups: limits.max_compute_workgroups_per_dimension,
        }
    }
}

/// What the choice of kernels depends on beside a call's own shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) bindings: BindingLimits,
    /// Whether the device is a processor that draws.
    pub(crate) software: bool,
    /// Whether the device's own exp2 and division will do for silu of 16-bit elements.
    pub(crate) native: bool,
    /// Whether there are kernels for few tokens that also activate.
    pub(crate) gated: bool,
    /// Whether kernels that quantize can be bound.
    pub(crate) quantizes: bool,
    /// Whether kernels of a layer of routed experts can be bound.
    pub(crate) moe: bool,
    /// Whether there are kernels on cooperative matrices.
    pub(crate) cooperative: bool,
    /// Whether sums are asked to be those of other calls to the bit.
    pub(crate) ordered: bool,
    /// The only tiles that they take, where one is tried; by the shape, if none.
    pub(crate) cooperative_tile: Option<usize>,
    /// The number of large tiles from which on they pay.
    pub(crate) least_large_tiles: u32,
    /// Whether a call's matrices may lie in one buffer, at different places.
    pub(crate) shared_buffers: bool,
}

impl Facts {
    /// What every device is good for that can be opened at all.
    pub(crate) const LEAST: Self = Self {
        bindings: BindingLimits {
            bytes: 1 << 27,
            alignment: 256,
            workgroups: 65_535,
        },
        software: false,
        native: true,
        gated: false,
        quantizes: false,
        moe: false,
        cooperative: false,
        ordered: false,
        cooperative_tile: None,
        least_large_tiles: u32::MAX,
        shared_buffers: false,
    };
}

#[cfg(test)]
impl Facts {
    /// A large GPU with everything.
    pub(crate) const GPU: Self = Self {
        bindings: BindingLimits {
            bytes: (1 << 31) - 16,
            alignment: 16,
            workgroups: 65_535,
        },
        software: false,
        native: true,
        gated: true,
        quantizes: true,
        moe: true,
        cooperative: true,
        ordered: false,
        cooperative_tile: None,
        least_large_tiles: 96,
        shared_buffers: false,
    };

    /// This with bindings of so many bytes.
    pub(crate) const fn with_bindings_of(mut self, bytes: u64) -> Self {
        self.bindings.bytes = bytes;
        self
    }
}
