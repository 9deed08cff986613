//! `swiglu run` where the prefix has a gate: the whole layer.

use std::io::Write;
use std::time::Instant;

use serde::Serialize;
use swiglu::mlp::{Checkpoint, ModelConfig, MoeConfig, MoeWeights};
use swiglu::{Float, HostBuffer, HostRoutes, HostTokens, Limit, MoeOutput, Report, Routing, bf16};

use super::{config_path, output, rounded, rows, tensor};
use crate::act::InputTensor;
use crate::arguments::Run;
use crate::chosen::Chosen;
use crate::console::Console;
use crate::escape;
use crate::failure::{Failure, Result};
use crate::files::Inputs;
use crate::tensor_file::{self, HostTensor, LayerInput, StoredType, WrittenTensor};

/// The configuration of the layer under a prefix, as the flags have it.
pub fn layer_config(
    model: &ModelConfig,
    checkpoint: &Checkpoint,
    prefix: &str,
    limit: Option<crate::arguments::NumberOrNone>,
    activations: crate::arguments::ActivationsArgument,
) -> Result<MoeConfig> {
    let mut config = match limit {
        Some(given) => {
            let limit = given.0.map(Limit::new).transpose()?;
            model.moe_config_with_limit(prefix, limit)?
        }
        None => model.moe_config(prefix)?,
    };
    config.shared.activation_quant = activations.into();
    Ok(config.with_tensors(checkpoint)?)
}

/// Runs a whole layer.
pub fn run(arguments: &Run, out: &mut Console) -> Result<()> {
    if arguments.ranks.ranks.is_some_and(|n| n > 1) {
        let got = arguments.ranks.ranks.unwrap_or_default();
        return Err(Failure::Input(format!(
            "ranks: expected 1 for a whole layer, got {got}"
        )));
    }
    if arguments.ranks.communicator.is_some() {
        return Err(Failure::Input(
            "communicator: expected none for a whole layer, which runs on one rank, got one"
                .to_owned(),
        ));
    }
    if let Some(intermediate) = arguments.intermediate {
        return Err(Failure::Input(format!(
            "intermediate: expected none for a whole layer, whose experts have the configuration's, \
             got {intermediate}"
        )));
    }
    let config_path = config_path(&arguments.checkpoint, arguments.config.as_deref())?;
    let model = ModelConfig::from_file(&config_path)?;
    let checkpoint = Checkpoint::open_with(&arguments.checkpoint, arguments.mapping.mode())?;
    let prefix = &arguments.prefix;
    let mut config = layer_config(
        &model,
        &checkpoint,
        prefix,
        arguments.limit,
        arguments.activations,
    )?;
    config.shared.rounding = arguments.rounding.into();
    let (op, quant) = (config.activation()?, config.quantization()?);
    let mut inputs = Inputs::of_checkpoint(&arguments.checkpoint, &config_path);
    let input = tensor_file::read_layer(&arguments.input, &mut inputs)?;
    let tokens = rows(&input.x, config.shared.hidden_size)?;
    let to = output(arguments, &inputs, out)?;

    let start = Instant::now();
    let weights = MoeWeights::load(&checkpoint, &config)?;
    let dispatcher = arguments.device.dispatcher()?;
    let device = dispatcher.device_for(&weights.requests(&config)?)?;
    let mut layer = device.load_moe(&config, &weights)?;
    let loading = start.elapsed();

    let x = rounded(&input.x);
    let marks = HostTokens {
        ids: input.token_ids.as_deref(),
        // A model without images has no use for the mask, and a file may have it all the same.
        image: input.image.as_deref().filter(|image| {
            weights.gate().bias_vl().is_some() || image.iter().any(|&marked| marked != 0)
        }),
        padding: input.padding.as_deref(),
    };
    let start = Instant::now();
    let y = layer.forward(&x, marks)?;
    let forward = start.elapsed();
    let stages = match arguments.stages {
        true => Some(layer.stages(&x, marks)?),
        false => None,
    };

    let routing = *weights.routing();
    let written = Written::new(&input, &y, stages.as_ref(), &routing)?;
    let tensors = written.tensors();
    tensor_file::write(&to, &tensors)?;
    let [gate_up, down] = weights.formats();
    let report = MoeReport {
        operation: op.to_string(),
        routing: routing.to_string(),
        matmuls: quant.map_or("bf16".to_owned(), |quant| quant.to_string()),
        platform: (&Report {
            plan: layer.plan(tokens),
            ..device.report().clone()
        })
            .into(),
        sums: device.backend().accuracy().accumulation.name(),
        weights: LayerWeights {
            hidden_size: config.shared.hidden_size,
            intermediate_size: config.intermediate_size,
            experts: routing.experts(),
            gate_up: gate_up.to_string(),
            down: down.to_string(),
            expert_bytes: layer.expert_bytes(),
            shared_bytes: layer.shared_bytes(),
            load_milliseconds: loading.as_secs_f64() * 1e3,
        },
        touched_experts: stages.as_ref().map(|s| touched(&s.routes)),
        input: (&input.x).into(),
        output: to.name().display().to_string(),
        tensors: WrittenTensor::all(&tensors),
        milliseconds: forward.as_secs_f64() * 1e3,
    };
    report.print(out)?;
    if arguments.json {
        out.document(&report)?;
    }
    Ok(())
}

/// How many experts have rows.
pub fn touched(routes: &HostRoutes) -> usize {
    routes.offsets.windows(2).filter(|w| w[0] != w[1]).count()
}

/// What goes into the output's file.
struct Written {
    y: HostTensor,
    stages: Option<[HostTensor; 4]>,
}

impl Written {
    fn new(
        input: &LayerInput,
        y: &[bf16],
        stages: Option<&MoeOutput>,
        routing: &Routing,
    ) -> Result<Self> {
        let (hidden, leading) = match input.x.shape.split_last() {
            Some((&hidden, leading)) => (hidden, leading),
            None => (0, &[][..]),
        };
        let words = |stored: StoredType, cols: usize, bytes: &[u8]| {
            let mut data = HostBuffer::zeroed(bytes.len())?;
            data.write(bytes)?;
            Ok::<_, Failure>(HostTensor {
                stored,
                shape: [leading, &[cols]].concat(),
                data,
            })
        };
        let stages = match stages {
            None => None,
            Some(s) => {
                let (k, f32s) = (routing.top_k(), StoredType::Float(Float::F32));
                Some([
                    words(StoredType::I32, k, bytemuck::cast_slice(&s.routes.ids))?,
                    words(f32s, k, bytemuck::cast_slice(&s.routes.weights))?,
                    words(f32s, hidden, bytemuck::cast_slice(&s.routed))?,
                    tensor(&s.shared, leading, hidden)?,
                ])
            }
        };
        Ok(Self {
            y: tensor(y, leading, hidden)?,
            stages,
        })
    }

    fn tensors(&self) -> Vec<(&str, &HostTensor)> {
        let mut tensors = vec![("y", &self.y)];
        let names = ["ids", "weights", "routed", "shared"];
        tensors.extend(names.into_iter().zip(self.stages.iter().flatten()));
        tensors
    }
}

/// What `swiglu run` did with a whole layer, as JSON has it.
#[derive(Debug, Serialize)]
struct MoeReport {
    operation: String,
    routing: String,
    /// What the matmuls read: bf16, or a quantization.
    matmuls: String,
    platform: Chosen,
    /// The class of the matmuls' sums.
    sums: &'static str,
    weights: LayerWeights,
    /// How many experts had tokens, where the stages were asked for.
    touched_experts: Option<usize>,
    input: InputTensor,
    /// As it was named.
    output: String,
    tensors: Vec<WrittenTensor>,
    /// Copies to and from the device included.
    milliseconds: f64,
}

#[derive(Debug, Serialize)]
struct LayerWeights {
    hidden_size: usize,
    intermediate_size: usize,
    experts: usize,
    gate_up: String,
    down: String,
    expert_bytes: usize,
    shared_bytes: usize,
    load_milliseconds: f64,
}

impl MoeReport {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{}", self.operation)?;
        writeln!(out, "routing  {}", self.routing)?;
        writeln!(out, "platform {}", self.platform)?;
        writeln!(out, "sums     {}", self.sums)?;
        let w = &self.weights;
        let formats = match w.gate_up == w.down {
            true => w.gate_up.clone(),
            false => format!("{} and {}", w.gate_up, w.down),
        };
        writeln!(
            out,
            "weights  H={} I={} E={} {formats}, {:.1} MB an expert, loaded in {:.0} ms",
            w.hidden_size,
            w.intermediate_size,
            w.experts,
            w.expert_bytes as f64 / 1e6,
            w.load_milliseconds,
        )?;
        writeln!(out, "matmuls  of {}", self.matmuls)?;
        if let Some(touched) = self.touched_experts {
            writeln!(out, "touched  {touched} experts")?;
        }
        for t in &self.tensors {
            writeln!(out, "{:<8} {}", t.name, escape::shape(&t.shape))?;
        }
        writeln!(out, "forward  {:.3} ms, copies included", self.milliseconds)?;
        Ok(())
    }
}
