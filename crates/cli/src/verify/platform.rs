use std::sync::Arc;

use swiglu::{
    ActAndMul, AnyBackend, Backend, DType, GatedActivation, HostBuffer, Operator, Result, Support,
    Tensor, TensorMut,
};

/// A platform of the registry as the suite's checks want it, with host memory for its own: every
/// call copies to the device and back.
pub struct Platform {
    backend: Arc<dyn AnyBackend>,
    /// The one operator that is asked for.
    only: Option<Operator>,
}

impl Platform {
    pub const fn new(backend: Arc<dyn AnyBackend>, only: Option<Operator>) -> Self {
        Self { backend, only }
    }
}

impl Backend for Platform {
    type Device = ();
    type Buffer = HostBuffer;

    fn platform(&self) -> &'static str {
        self.backend.platform()
    }

    fn description(&self) -> String {
        self.backend.description()
    }

    fn device(&self) -> &() {
        &()
    }

    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        if self.only.is_some_and(|only| only != op.operator()) {
            return Support::No("not asked for".to_owned());
        }
        self.backend.supports(op, dtype)
    }

    fn alloc(&self, bytes: usize) -> Result<HostBuffer> {
        HostBuffer::zeroed(bytes)
    }

    fn len(&self, buffer: &HostBuffer) -> usize {
        buffer.len()
    }

    fn upload(&self, buffer: &mut HostBuffer, data: &[u8]) -> Result<()> {
        buffer.write(data)
    }

    fn download(&self, buffer: &HostBuffer, data: &mut [u8]) -> Result<()> {
        buffer.read(data)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl ActAndMul for Platform {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        let shape = self.check_act(&input, &output)?;
        let size = input.dtype.size();
        let bytes = |elements: std::ops::Range<usize>| elements.start * size..elements.end * size;
        let mut rows = Vec::with_capacity(shape.rows * 2 * shape.d * size);
        for t in 0..shape.rows {
            rows.extend_from_slice(&input.buffer.bytes()[bytes(input.layout.row(t))]);
        }
        let mut y = vec![0; shape.rows * shape.d * size];
        self.backend
            .act_and_mul(op, input.dtype, shape, &rows, &mut y)?;
        for (t, row) in y.chunks_exact(shape.d * size).enumerate() {
            output.buffer.bytes_mut()[bytes(output.layout.row(t))].copy_from_slice(row);
        }
        Ok(())
    }
}
