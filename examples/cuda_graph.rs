//! CUDA on the engine's own context, stream and memory: an MLP captured once, and replayed on new
//! inputs.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;

use swiglu::cuda::CudaBackend;
use swiglu::cuda::cudarc::driver::{CudaContext, CudaSlice, sys};
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{Checkpoint, DeepseekV4Mlp, ModelConfig, SharedExpert, Workspace};
use swiglu::{Float, Tensor, TensorMut, bf16};

fn main() -> Result<(), Box<dyn Error>> {
    // Says why CUDA cannot be used here, where cudarc would panic.
    swiglu::cuda::probe()?;
    print!("{}", run()?);
    Ok(())
}

/// What the program prints.
pub fn run() -> Result<String, Box<dyn Error>> {
    let (tokens, hidden) = (4, 512);
    let folder = tempfile::tempdir()?;
    let form = SyntheticConfig {
        hidden,
        intermediate: 256,
        ..SyntheticConfig::flash(1)
    };
    write_checkpoint(folder.path(), &form)?;
    let config =
        ModelConfig::from_file(&folder.path().join("config.json"))?.mlp_config(&form.prefix())?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let weights = SharedExpert::load(&checkpoint, &config)?;

    let context = CudaContext::new(0)?;
    // SAFETY: all that follows runs on one stream, whose order is all that it needs; cudarc's
    // events between streams cannot be captured.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let cuda = Arc::new(CudaBackend::from_stream(Arc::clone(&stream))?);
    let mlp = DeepseekV4Mlp::load(Arc::clone(&cuda), &config, &weights)?;

    let mut x = stream.alloc_zeros::<bf16>(tokens * hidden)?;
    let mut y = stream.alloc_zeros::<bf16>(tokens * hidden)?;
    let mut workspace = Workspace::new();
    let mut forward =
        |x: &CudaSlice<bf16>, y: &mut CudaSlice<bf16>| -> Result<(), Box<dyn Error>> {
            let (from, mut to) = (cuda.read_slice(x)?, cuda.write_slice(y)?);
            let x = Tensor::contiguous(from.view(), Float::BF16, tokens, hidden);
            let y = TensorMut::contiguous(to.view_mut(), Float::BF16, tokens, hidden);
            Ok(mlp.forward(x, y, &mut workspace)?)
        };
    // The first pass allocates the workspace and chooses kernels, which no graph can hold.
    forward(&x, &mut y)?;
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    forward(&x, &mut y)?;
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("the capture is empty")?;

    let mut text = String::new();
    for seed in 0..2 {
        stream.memcpy_htod(&synthetic_input(tokens, hidden, seed), &mut x)?;
        graph.launch()?;
        let replayed = stream.clone_dtoh(&y)?;
        forward(&x, &mut y)?;
        let same = replayed == stream.clone_dtoh(&y)?;
        text += &format!("replay {seed} gives the bits of a pass without the graph: {same}\n");
    }
    Ok(text)
}
