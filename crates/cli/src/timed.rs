//! Backends of any type for what is timed. Their matrices stay on the device, where the facade's
//! calls take host memory and copy it there and back.

use std::sync::Arc;

use swiglu::mlp::{DeepseekV4Mlp, MlpConfig, MoeConfig, MoeWeights, SharedExpert, Workspace};
use swiglu::{
    Accuracy, ActAndMul, Float, GatedActivation, Matmul, OpenOptions, QuantOptions, Quantization,
    Quantize, QuantizedMut, Request, RowLayout, ScaleLayout, ScaleOrder, Support, Tensor,
    TensorMut, bf16, reference::Reference,
};

use crate::failure::{Failure, Result};

#[cfg(feature = "cuda")]
mod cuda;

/// Opens the backend of a platform that this program was built with: for these requests, or for all.
///
/// # Errors
/// Another platform's name, or why the device cannot be opened.
pub fn open(
    platform: &str,
    options: &OpenOptions,
    requests: Option<&[Request]>,
) -> Result<Box<dyn TimedBackend>> {
    open_for(platform, options, requests, false)
}

/// For all requests, with launches that overlap in a graph where a platform has such.
pub fn open_for_graphs(platform: &str, options: &OpenOptions) -> Result<Box<dyn TimedBackend>> {
    open_for(platform, options, None, true)
}

fn open_for(
    platform: &str,
    options: &OpenOptions,
    requests: Option<&[Request]>,
    graphs: bool,
) -> Result<Box<dyn TimedBackend>> {
    // A build may have the reference alone.
    let _ = (options, requests, graphs);
    match platform {
        #[cfg(feature = "cuda")]
        "cuda" => {
            let builder = swiglu::cuda::CudaBackend::builder().device(options.device);
            let mut builder = builder.accumulation(options.accumulation);
            if graphs {
                builder = builder.launch_options(swiglu::cuda::LaunchOptions::programmatic());
            }
            let backend = Arc::new(builder.open().map_err(|e| unopened(platform, &e))?);
            Ok(Box::new(Opened {
                beyond: Some(Box::new(cuda::Cuda(Arc::clone(&backend)))),
                backend,
            }))
        }
        #[cfg(feature = "wgpu")]
        "wgpu" => {
            let builder = swiglu::wgpu::WgpuBackend::builder().device(options.device);
            let builder = builder.accumulation(options.accumulation);
            let builder = match requests {
                Some(requests) => builder.for_requests(requests),
                None => builder,
            };
            Ok(timed(builder.open().map_err(|e| unopened(platform, &e))?))
        }
        #[cfg(feature = "cpu")]
        "cpu" => {
            let cpu = swiglu::cpu::CpuBackend::new();
            Ok(timed(cpu.with_accumulation(options.accumulation)))
        }
        "reference" => Ok(timed(Reference)),
        other => Err(unopened(other, &"it is not in this build")),
    }
}

fn unopened(platform: &str, reason: &dyn std::fmt::Display) -> Failure {
    Failure::Input(format!("{platform}: {reason}"))
}

fn timed<B: ActAndMul + Quantize + Matmul>(backend: B) -> Box<dyn TimedBackend> {
    Box::new(Opened {
        backend: Arc::new(backend),
        beyond: None,
    })
}

/// An activation to be timed: contiguous rows [T, 2d] to [T, d].
#[derive(Clone, Copy, Debug)]
pub struct TimedAct {
    pub op: GatedActivation,
    pub quant: Option<Quantization>,
    pub float: Float,
    /// T.
    pub rows: usize,
    pub d: usize,
}

impl TimedAct {
    /// Bytes of the input.
    const fn input_bytes(&self) -> usize {
        2 * self.rows * self.d * self.float.size()
    }

    /// Bytes of the output: the results, or their codes and the codes' scales.
    fn output_bytes(&self) -> [usize; 2] {
        let results = self.rows * self.d;
        match &self.quant {
            None => [results * self.float.size(), 0],
            Some(q) => [results, self.rows * q.groups(self.d) * q.format().size()],
        }
    }

    /// Bytes that a pass reads and writes.
    pub fn bytes(&self) -> usize {
        self.input_bytes() + self.output_bytes().iter().sum::<usize>()
    }
}

/// A backend whose type is forgotten.
pub trait TimedBackend {
    fn description(&self) -> String;
    fn supports(&self, request: &Request) -> Support;
    fn accuracy(&self) -> Accuracy;
    /// Brings `copies` copies of an activation's input to the device, and makes room for as many
    /// outputs. There is at least one.
    fn load_act(&self, act: &TimedAct, input: &[u8], copies: usize) -> Result<Box<dyn ActPasses>>;
    /// Brings an MLP's weights to the device.
    fn load_mlp(
        &self,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> Result<Box<dyn MlpPasses>>;
    /// Waits for what was enqueued.
    fn wait(&self) -> Result<()>;
    /// What it has that other platforms lack.
    fn beyond(&self) -> Option<&dyn Beyond>;
}

/// What one platform's backend has beyond the others.
pub trait Beyond {
    /// What `calls` enqueues, to be enqueued as one again and again.
    fn capture(&self, calls: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>>;
    /// MLPs of H and I as chains of calls to the vendor's library, with so many copies of weights of so many
    /// bytes; those that it has.
    fn chains(
        &self,
        op: &GatedActivation,
        shape: [usize; 2],
        copies: &dyn Fn(usize) -> usize,
    ) -> Result<Vec<Chain>>;
    /// Brings a whole layer to the device.
    fn load_layer(&self, config: &MoeConfig, weights: &MoeWeights<'_>) -> Result<Box<dyn Layer>>;
}

/// A layer with inputs and an output on the device.
pub trait Layer {
    /// Copies inputs x [T, H] to the device, which passes take in turn.
    fn write_inputs(&mut self, inputs: &[Vec<bf16>]) -> Result<()>;
    /// Enqueues a pass over the next input.
    fn enqueue(&mut self) -> Result<()>;
}

/// Calls that were captured.
pub trait Replay {
    /// Enqueues all of them.
    fn enqueue(&self) -> Result<()>;
}

/// An MLP by a vendor's library.
pub struct Chain {
    /// What its matmuls read.
    pub what: String,
    /// Of the weights.
    pub dtype: &'static str,
    /// Whether the matmuls run on FP8 tensor cores.
    pub fp8: bool,
    /// Of the weights, which passes take in turn.
    pub copies: usize,
    pub passes: Box<dyn MlpPasses>,
}

/// An activation with its matrices on the device.
pub trait ActPasses {
    /// Enqueues a pass over the next copy of the matrices, in turn.
    fn enqueue(&mut self) -> Result<()>;
}

/// An MLP with its input and output on the device.
pub trait MlpPasses {
    /// The bytes of weights that a pass reads.
    fn weight_bytes(&self) -> usize;
    /// Copies x [T, H] to the device, which sets T.
    fn write_input(&mut self, x: &[bf16]) -> Result<()>;
    /// Enqueues a forward pass over the input.
    fn enqueue(&mut self) -> Result<()>;
    /// Waits for what was enqueued.
    fn wait(&self) -> Result<()>;
    /// Runs a forward pass and waits for it.
    fn run(&mut self) -> Result<()> {
        self.enqueue()?;
        self.wait()
    }
    /// Waits, and reads the output of the last pass, [T, H].
    fn read_output(&self) -> Result<Vec<bf16>>;
}

struct Opened<B> {
    backend: Arc<B>,
    beyond: Option<Box<dyn Beyond>>,
}

impl<B: ActAndMul + Quantize + Matmul> TimedBackend for Opened<B> {
    fn description(&self) -> String {
        self.backend.description()
    }

    fn supports(&self, request: &Request) -> Support {
        self.backend.supports(request)
    }

    fn accuracy(&self) -> Accuracy {
        self.backend.accuracy()
    }

    fn load_act(&self, act: &TimedAct, input: &[u8], copies: usize) -> Result<Box<dyn ActPasses>> {
        let backend = &self.backend;
        let matrices = |_| {
            let [output, scales] = act.output_bytes();
            let mut matrices = ActMatrices {
                input: backend.alloc(act.input_bytes())?,
                output: backend.alloc(output)?,
                scales: backend.alloc(scales)?,
            };
            backend.upload(&mut matrices.input, input)?;
            Ok(matrices)
        };
        Ok(Box::new(LoadedAct {
            backend: Arc::clone(backend),
            act: *act,
            copies: (0..copies).map(matrices).collect::<Result<_>>()?,
            next: 0,
        }))
    }

    fn load_mlp(
        &self,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> Result<Box<dyn MlpPasses>> {
        let backend = Arc::clone(&self.backend);
        Ok(Box::new(LoadedMlp {
            mlp: DeepseekV4Mlp::load(Arc::clone(&backend), config, weights)?,
            workspace: Workspace::new(),
            x: backend.alloc(0)?,
            y: backend.alloc(0)?,
            tokens: 0,
            backend,
        }))
    }

    fn wait(&self) -> Result<()> {
        Ok(self.backend.synchronize()?)
    }

    fn beyond(&self) -> Option<&dyn Beyond> {
        self.beyond.as_deref()
    }
}

/// The memory of one pass; there are no scales where nothing is quantized.
struct ActMatrices<B: ActAndMul> {
    input: B::Buffer,
    output: B::Buffer,
    scales: B::Buffer,
}

struct LoadedAct<B: ActAndMul> {
    backend: Arc<B>,
    act: TimedAct,
    copies: Vec<ActMatrices<B>>,
    next: usize,
}

impl<B: ActAndMul + Quantize> ActPasses for LoadedAct<B> {
    fn enqueue(&mut self) -> Result<()> {
        let TimedAct { rows, d, float, .. } = self.act;
        let copies = self.copies.len();
        let copy = &mut self.copies[self.next];
        self.next = (self.next + 1) % copies;
        let input = Tensor::contiguous(B::view(&copy.input), float, rows, 2 * d);
        let output = B::view_mut(&mut copy.output);
        match &self.act.quant {
            None => {
                let output = TensorMut::contiguous(output, float, rows, d);
                self.backend
                    .act_and_mul(&self.act.op, input.into(), output)?;
            }
            Some(quant) => {
                let (format, order) = (quant.format(), ScaleOrder::RowMajor);
                let output = QuantizedMut {
                    codes: output,
                    layout: RowLayout::contiguous(rows, d),
                    scales: B::view_mut(&mut copy.scales),
                    scale_layout: ScaleLayout::contiguous(format, order, rows, quant.groups(d)),
                };
                let (op, options) = (&self.act.op, QuantOptions::default());
                self.backend
                    .act_and_mul_quant(op, quant, input.into(), output, options)?;
            }
        }
        Ok(())
    }
}

struct LoadedMlp<B: ActAndMul + Quantize + Matmul> {
    backend: Arc<B>,
    mlp: DeepseekV4Mlp<B>,
    workspace: Workspace<B>,
    x: B::Buffer,
    y: B::Buffer,
    tokens: usize,
}

impl<B: ActAndMul + Quantize + Matmul> MlpPasses for LoadedMlp<B> {
    fn weight_bytes(&self) -> usize {
        self.mlp.weight_bytes()
    }

    fn write_input(&mut self, x: &[bf16]) -> Result<()> {
        let bytes = size_of_val(x);
        if self.backend.len(&self.x) < bytes {
            self.x = self.backend.alloc(bytes)?;
            self.y = self.backend.alloc(bytes)?;
        }
        self.tokens = x.len() / self.mlp.hidden_size();
        Ok(self.backend.upload(&mut self.x, bytemuck::cast_slice(x))?)
    }

    fn enqueue(&mut self) -> Result<()> {
        let layout = RowLayout::contiguous(self.tokens, self.mlp.hidden_size());
        let x = Tensor::new(B::view(&self.x), Float::BF16, layout);
        let y = TensorMut::new(B::view_mut(&mut self.y), Float::BF16, layout);
        Ok(self.mlp.forward(x, y, &mut self.workspace)?)
    }

    fn wait(&self) -> Result<()> {
        Ok(self.backend.synchronize()?)
    }

    fn read_output(&self) -> Result<Vec<bf16>> {
        let mut y = vec![bf16::ZERO; self.tokens * self.mlp.hidden_size()];
        let bytes = bytemuck::cast_slice_mut(&mut y);
        self.backend.download(&self.y, bytes)?;
        Ok(y)
    }
}
