//! What is timed on CUDA beyond what every platform has: graphs of calls, and the chains of kernels that an
//! engine makes of NVIDIA's cublasLt.

use std::sync::Arc;

use swiglu::cuda::cudarc::driver::{CudaGraph, sys};
use swiglu::cuda::{CudaBackend, CudaBuffer, CudaWeight, Route};
use swiglu::mlp::{DeepseekV4Moe, MoeConfig, MoeWeights, MoeWorkspace};
use swiglu::{
    Accumulation, ActAndMul, Backend, E4M3, Float, GatedActivation, HostWeight, Matmul,
    QuantOptions, Quantization, Quantize, Quantized, QuantizedMut, RowLayout, ScaleFormat,
    ScaleLayout, ScaleOrder, Tensor, TensorMut, Tokens, WeightFormat, bf16,
};

use super::{Beyond, Chain, Layer, MlpPasses, Replay};
use crate::failure::{Failure, Result};

type In<'a> = Tensor<'a, CudaBackend>;
type Out<'a> = TensorMut<'a, CudaBackend>;

const BF16: Float = Float::BF16;

/// Rows of numbers that are made; a weight repeats them.
const FEW: usize = 64;

pub struct Cuda(pub Arc<CudaBackend>);

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Input(format!("cuda: {error}"))
}

struct Graph(CudaGraph);

impl Replay for Graph {
    fn enqueue(&self) -> Result<()> {
        self.0.launch().map_err(failed)
    }
}

impl Beyond for Cuda {
    fn capture(&self, calls: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        let stream = self.0.stream();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(failed)?;
        let captured = calls();
        // A stream is taken out of capture whatever happened meanwhile.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        captured?;
        let graph = graph.map_err(failed)?;
        let graph = graph.ok_or_else(|| failed("nothing was captured"))?;
        Ok(Box::new(Graph(graph)))
    }

    fn chains(
        &self,
        op: &GatedActivation,
        shape: [usize; 2],
        copies: &dyn Fn(usize) -> usize,
    ) -> Result<Vec<Chain>> {
        let mut chains = Vec::new();
        if self.0.has_cublaslt() {
            let chain = CublasLt::new(Arc::clone(&self.0), op, shape, None, copies)?;
            chains.push(chain.named("bf16"));
        }
        let stream = self.0.stream().clone();
        let codes = self.0.on(stream).map_err(failed)?;
        let codes = Arc::new(codes.with_accumulation(Accumulation::Fp8TensorCore));
        if codes.multiplies_codes() {
            let quant = Quantization::new(128, ScaleFormat::F32)?;
            let chain = CublasLt::new(codes, op, shape, Some(quant), copies)?;
            chains.push(chain.named("fp8"));
        }
        Ok(chains)
    }

    fn load_layer(&self, config: &MoeConfig, weights: &MoeWeights<'_>) -> Result<Box<dyn Layer>> {
        let backend = Arc::clone(&self.0);
        Ok(Box::new(LoadedLayer {
            moe: DeepseekV4Moe::load(Arc::clone(&backend), config, weights)?,
            workspace: MoeWorkspace::new(),
            inputs: Vec::new(),
            next: 0,
            rows: 0,
            y: backend.alloc(0)?,
            backend,
        }))
    }
}

struct LoadedLayer {
    backend: Arc<CudaBackend>,
    moe: DeepseekV4Moe<CudaBackend>,
    workspace: MoeWorkspace<CudaBackend>,
    inputs: Vec<CudaBuffer>,
    next: usize,
    /// Of each input.
    rows: usize,
    y: CudaBuffer,
}

impl Layer for LoadedLayer {
    fn write_inputs(&mut self, inputs: &[Vec<bf16>]) -> Result<()> {
        let backend = &self.backend;
        let input = |x: &Vec<bf16>| {
            let mut buffer = backend.alloc(size_of_val(x.as_slice()))?;
            backend.upload(&mut buffer, bytemuck::cast_slice(x))?;
            Ok(buffer)
        };
        self.inputs = inputs.iter().map(input).collect::<Result<_>>()?;
        let elements = inputs.first().map_or(0, Vec::len);
        self.rows = elements / self.moe.hidden_size();
        (self.next, self.y) = (0, backend.alloc(2 * elements)?);
        Ok(())
    }

    fn enqueue(&mut self) -> Result<()> {
        let h = self.moe.hidden_size();
        let x = In::contiguous((&self.inputs[self.next]).into(), BF16, self.rows, h);
        let y = Out::contiguous((&mut self.y).into(), BF16, self.rows, h);
        self.next = (self.next + 1) % self.inputs.len();
        Ok(self
            .moe
            .forward(x, Tokens::default(), y, &mut self.workspace)?)
    }
}

/// Both matmuls through cublasLt, and our activation between them: in bf16, or with everything that a matmul
/// reads in FP8, x quantized and the activation quantizing. Copies of the weights are taken in turn.
struct CublasLt {
    backend: Arc<CudaBackend>,
    op: GatedActivation,
    /// H and I.
    shape: [usize; 2],
    quant: Option<Quantization>,
    /// Gate and up in one, and down.
    weights: Vec<[CudaWeight; 2]>,
    next: usize,
    rows: usize,
    x: CudaBuffer,
    wide: CudaBuffer,
    act: CudaBuffer,
    y: CudaBuffer,
    codes: [Codes; 2],
    room: CudaBuffer,
}

/// The codes of a matmul's input and their scales, in the order in which cublasLt reads them.
struct Codes {
    codes: CudaBuffer,
    scales: CudaBuffer,
}

impl Codes {
    const fn scale_layout(quant: &Quantization, rows: usize, cols: usize) -> ScaleLayout {
        let order = ScaleOrder::ColumnMajor;
        ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(cols))
    }

    fn new(backend: &CudaBackend, rows: usize, cols: usize) -> Result<Self> {
        Ok(Self {
            codes: backend.alloc(rows * cols)?,
            scales: backend.alloc(4 * rows * cols.div_ceil(128))?,
        })
    }

    fn read(&self, quant: &Quantization, rows: usize, cols: usize) -> Quantized<'_, CudaBackend> {
        Quantized {
            codes: (&self.codes).into(),
            layout: RowLayout::contiguous(rows, cols),
            scales: (&self.scales).into(),
            scale_layout: Self::scale_layout(quant, rows, cols),
        }
    }

    fn write(
        &mut self,
        quant: &Quantization,
        rows: usize,
        cols: usize,
    ) -> QuantizedMut<'_, CudaBackend> {
        QuantizedMut {
            codes: (&mut self.codes).into(),
            layout: RowLayout::contiguous(rows, cols),
            scales: (&mut self.scales).into(),
            scale_layout: Self::scale_layout(quant, rows, cols),
        }
    }
}

/// A weight of numbers around 0, in bf16 or in codes with scales of 1.
fn weight(shape: [usize; 2], fp8: bool) -> Result<HostWeight<'static>> {
    let [rows, cols] = shape;
    let few = crate::bench::inputs(FEW.min(rows), cols);
    let few: Vec<u8> = match fp8 {
        false => bytemuck::cast_slice(&few).to_vec(),
        true => few
            .iter()
            .map(|x| E4M3::from_f32_saturating(x.to_f32()).0)
            .collect(),
    };
    let format = match fp8 {
        false => WeightFormat::Float(BF16),
        true => WeightFormat::DEEPSEEK_V4,
    };
    let bytes = rows * format.row_bytes(cols);
    let data = few.into_iter().cycle().take(bytes).collect();
    let [rows, cols] = format.scale_grid(shape)?;
    let scales = format.scaling().map_or(0, |_| rows * cols);
    // The byte of 2⁰.
    Ok(HostWeight::owned(shape, format, data, vec![127; scales])?)
}

impl CublasLt {
    fn new(
        backend: Arc<CudaBackend>,
        op: &GatedActivation,
        [h, i]: [usize; 2],
        quant: Option<Quantization>,
        copies: &dyn Fn(usize) -> usize,
    ) -> Result<Self> {
        let half = weight([i, h], quant.is_some())?;
        let down = weight([h, i], quant.is_some())?;
        let bytes = 3 * h * half.format().row_bytes(i);
        let load = |_| {
            let gate_up = backend.load_weight(&[half.clone(), half.clone()])?;
            Ok([gate_up, backend.load_weight(std::slice::from_ref(&down))?])
        };
        let empty = || backend.alloc(0);
        let codes = [Codes::new(&backend, 0, 0)?, Codes::new(&backend, 0, 0)?];
        Ok(Self {
            op: *op,
            shape: [h, i],
            quant,
            weights: (0..copies(bytes)).map(load).collect::<Result<_>>()?,
            next: 0,
            rows: 0,
            x: empty()?,
            wide: empty()?,
            act: empty()?,
            y: empty()?,
            codes,
            room: empty()?,
            backend,
        })
    }

    fn named(self, dtype: &'static str) -> Chain {
        Chain {
            what: match &self.quant {
                None => "matmuls of bf16".to_owned(),
                Some(quant) => format!("matmuls of {quant}, T a multiple of 4"),
            },
            dtype,
            fp8: self.quant.is_some(),
            copies: self.weights.len(),
            passes: Box::new(self),
        }
    }
}

impl MlpPasses for CublasLt {
    fn weight_bytes(&self) -> usize {
        let [h, i] = self.shape;
        3 * h * i * if self.quant.is_some() { 1 } else { 2 }
    }

    fn write_input(&mut self, x: &[bf16]) -> Result<()> {
        let ([h, i], backend) = (self.shape, &self.backend);
        // FP8 matmuls of cublasLt take whole fours of tokens.
        let fours = if self.quant.is_some() { 4 } else { 1 };
        let rows = (x.len() / h).next_multiple_of(fours);
        let alloc = |cols: usize| backend.alloc(2 * rows * cols);
        (self.x, self.wide) = (alloc(h)?, alloc(2 * i)?);
        (self.act, self.y, self.room) = (alloc(i)?, alloc(h)?, alloc(h.max(i))?);
        self.codes = [Codes::new(backend, rows, h)?, Codes::new(backend, rows, i)?];
        let mut whole = x.to_vec();
        whole.resize(rows * h, bf16::ZERO);
        self.rows = rows;
        Ok(backend.upload(&mut self.x, bytemuck::cast_slice(&whole))?)
    }

    fn enqueue(&mut self) -> Result<()> {
        let (b, [h, i], t) = (&*self.backend, self.shape, self.rows);
        let [gate_up, down] = &self.weights[self.next];
        self.next = (self.next + 1) % self.weights.len();
        let x = In::contiguous((&self.x).into(), BF16, t, h);
        let mut wide = Out::contiguous((&mut self.wide).into(), BF16, t, 2 * i);
        let y = Out::contiguous((&mut self.y).into(), BF16, t, h);
        let Some(quant) = &self.quant else {
            let by_library = Some(Route::Library);
            b.matmul_by(by_library, &x, gate_up, &wide)?;
            let mut act = Out::contiguous((&mut self.act).into(), BF16, t, i);
            b.act_and_mul(&self.op, wide.as_tensor().into(), act.reborrow())?;
            return Ok(b.matmul_by(by_library, &act.as_tensor(), down, &y)?);
        };
        let [of_x, of_act] = &mut self.codes;
        b.quantize(quant, x, of_x.write(quant, t, h))?;
        let room = (&mut self.room).into();
        b.matmul_quantized(
            quant,
            of_x.read(quant, t, h),
            gate_up,
            room,
            wide.reborrow(),
        )?;
        let (codes, options) = (of_act.write(quant, t, i), QuantOptions::default());
        b.act_and_mul_quant(&self.op, quant, wide.as_tensor().into(), codes, options)?;
        let room = (&mut self.room).into();
        Ok(b.matmul_quantized(quant, of_act.read(quant, t, i), down, room, y)?)
    }

    fn wait(&self) -> Result<()> {
        Ok(self.backend.synchronize()?)
    }

    fn read_output(&self) -> Result<Vec<bf16>> {
        let mut y = vec![bf16::ZERO; self.rows * self.shape[0]];
        self.backend
            .download(&self.y, bytemuck::cast_slice_mut(&mut y))?;
        Ok(y)
    }
}
