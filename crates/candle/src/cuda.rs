//! Tensors on CUDA: one backend for each of candle's streams, on that stream.
//!
//! ## Method
//! 1. A backend is found by its stream's context and handle, which it keeps alive: kernels are loaded
//!    once a stream.
//! 2. Slices are lent through cudarc, whose events order uses on other streams, where candle tracks
//!    them. What is written is new memory of candle's, on its stream.
//! 3. Matmuls use memory of the backend's and of a workspace, from one launch to the next. So passes
//!    of an MLP are enqueued one at a time. On a stream there is, that orders them; candle's usual
//!    device has the handle that stands for a stream of each host thread's own, and there each pass
//!    waits for an event behind the one before.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage as _;
use candle_core::{CudaDevice, CudaStorage, Layout, Result};
use swiglu_core::{
    ActAndMul as _, ActShape, Float, GateUp, GatedActivation, RowLayout, Tensor, TensorMut,
    with_float,
};
use swiglu_cuda::cudarc::driver::CudaEvent;
use swiglu_cuda::{CudaBackend, ReadSlice};
use swiglu_mlp::{DeepseekV4Mlp, MlpConfig, SharedExpert, Workspace};

use crate::error::{OrCandle as _, argument, float};
use crate::rows::rows;

/// The handle of each host thread's own stream: `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The backend on one of candle's streams.
struct OnStream {
    backend: Arc<CudaBackend>,
    /// Behind the last pass, on a handle of many streams.
    last: Mutex<Option<CudaEvent>>,
}

/// The backend on the stream of a device.
fn on_stream(device: &CudaDevice) -> Result<Arc<OnStream>> {
    static BACKENDS: LazyLock<Mutex<HashMap<[usize; 2], Arc<OnStream>>>> =
        LazyLock::new(Mutex::default);
    let stream = device.cuda_stream();
    let key = [
        stream.context().cu_ctx() as usize,
        stream.cu_stream() as usize,
    ];
    let mut backends = locked(&BACKENDS);
    if let Some(found) = backends.get(&key) {
        return Ok(found.clone());
    }
    let backend = CudaBackend::from_stream(stream).or_candle()?;
    let new = Arc::new(OnStream {
        backend: Arc::new(backend),
        last: Mutex::new(None),
    });
    backends.insert(key, new.clone());
    Ok(new)
}

impl OnStream {
    /// Enqueues work behind all that was enqueued so before.
    fn in_turn<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut last = locked(&self.last);
        let stream = self.backend.stream();
        let many = stream.cu_stream() as usize == PER_THREAD;
        if let Some(event) = &*last {
            stream.wait(event).or_candle()?;
        }
        let done = work();
        if many {
            // Also behind work that failed halfway.
            *last = Some(stream.record_event(None).or_candle()?);
        }
        done
    }
}

/// The whole of a tensor's memory, lent to the backend.
fn lend<'a>(
    backend: &'a CudaBackend,
    name: &'static str,
    storage: &'a CudaStorage,
) -> Result<(Float, ReadSlice<'a>)> {
    let float = float(name, storage.dtype())?;
    let slice = with_float!(float, T => backend.read_slice(storage.as_cuda_slice::<T>()?));
    Ok((float, slice.or_candle()?))
}

/// A new contiguous matrix that `write` fills.
fn filled(
    backend: &CudaBackend,
    device: &CudaDevice,
    float: Float,
    [rows, cols]: [usize; 2],
    write: impl FnOnce(TensorMut<'_, CudaBackend>) -> Result<()>,
) -> Result<CudaStorage> {
    // The driver refuses to allocate nothing.
    let len = rows.checked_mul(cols).map(|len| len.max(1));
    let len = len.ok_or_else(|| {
        let got = format!("[{rows}, {cols}]");
        argument("input", "a result that memory can hold", got)
    })?;
    with_float!(float, T => {
        // SAFETY: any bits are a float, and `write` enqueues on the same stream what fills all rows
        // before anything else can read them.
        #[allow(unsafe_code, reason = "zeros would cost a launch")]
        let mut slice = unsafe { device.alloc::<T>(len) }?;
        let mut output = backend.write_slice(&mut slice).or_candle()?;
        write(TensorMut::contiguous(output.view_mut(), float, rows, cols))?;
        drop(output);
        Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
    })
}

/// An activation of a tensor \[.., 2d\].
pub(crate) fn activate(
    op: &GatedActivation,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    let on = on_stream(&storage.device)?;
    let (float, input) = lend(&on.backend, "input", storage)?;
    let input = Tensor::new(input.view(), float, rows("input", layout)?);
    let ActShape { rows, d } = ActShape::of_input(&input.layout).or_candle()?;
    filled(&on.backend, &storage.device, float, [rows, d], |to| {
        on.backend.act_and_mul(op, input.into(), to).or_candle()
    })
}

/// An activation of gate and up, \[.., d\] each.
pub(crate) fn activate_split(
    op: &GatedActivation,
    [gate, up]: [&CudaStorage; 2],
    [gate_layout, up_layout]: [&Layout; 2],
) -> Result<CudaStorage> {
    let device = &gate.device;
    let on = on_stream(device)?;
    let (float, gate) = lend(&on.backend, "gate", gate)?;
    let (up_float, up) = lend(&on.backend, "up", up)?;
    let gate_rows: RowLayout = rows("gate", gate_layout)?;
    let input = GateUp::Split {
        gate: Tensor::new(gate.view(), float, gate_rows),
        up: Tensor::new(up.view(), up_float, rows("up", up_layout)?),
    };
    let shape = [gate_rows.rows, gate_rows.cols];
    filled(&on.backend, device, float, shape, |to| {
        on.backend.act_and_mul(op, input, to).or_candle()
    })
}

/// An MLP on one of candle's devices.
pub(crate) struct CudaMlp {
    mlp: DeepseekV4Mlp<CudaBackend>,
    on: Arc<OnStream>,
    device: CudaDevice,
    workspace: Mutex<Workspace<CudaBackend>>,
}

impl CudaMlp {
    pub(crate) fn new(
        config: &MlpConfig,
        expert: &SharedExpert<'_>,
        stages: Float,
        device: &CudaDevice,
    ) -> Result<Self> {
        let on = on_stream(device)?;
        let mlp = on.in_turn(|| {
            let mlp = DeepseekV4Mlp::load(on.backend.clone(), config, expert);
            mlp.and_then(|mlp| mlp.with_stages(stages)).or_candle()
        })?;
        Ok(Self {
            mlp,
            on,
            device: device.clone(),
            workspace: Mutex::default(),
        })
    }

    pub(crate) const fn mlp(&self) -> &DeepseekV4Mlp<CudaBackend> {
        &self.mlp
    }

    pub(crate) const fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub(crate) fn forward(&self, storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        if storage.device.id() != self.device.id() {
            let expected = format!("a tensor on {:?}, as the weights are", self.device);
            return Err(argument(
                "x",
                expected,
                format!("one on {:?}", storage.device),
            ));
        }
        let backend = &self.on.backend;
        let (float, slice) = lend(backend, "x", storage)?;
        let x = Tensor::new(slice.view(), float, rows("x", layout)?);
        let shape = [x.layout.rows, x.layout.cols];
        filled(backend, &self.device, float, shape, |y| {
            self.on.in_turn(|| {
                let mut workspace = locked(&self.workspace);
                self.mlp.forward(x, y, &mut workspace).or_candle()
            })
        })
    }
}
