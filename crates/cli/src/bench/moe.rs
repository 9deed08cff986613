//! `swiglu bench --moe`: a whole layer with as many experts as are asked for.

use std::io::Write;
use std::time::{Duration, Instant};

use serde::Serialize;
use swiglu::mlp::synthetic::{
    SyntheticConfig, SyntheticMoe, synthetic_input, write_moe_checkpoint,
};
use swiglu::mlp::{Checkpoint, ExpertDtype, ModelConfig, MoeWeights};
use swiglu::{HostTokens, Report, bf16};

use super::limits::Limits;
use super::{SEED, graphs, time};
use crate::arguments::{Bench, TypeArgument};
use crate::chosen::Chosen;
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::files::TemporaryFolder;
use crate::run::touched;
use crate::timed;

/// Inputs that passes take in turn, so that they touch other experts than the pass before.
const INPUTS: usize = 8;

/// What was measured, as JSON has it.
#[derive(Debug, Serialize)]
struct MoeBenchReport {
    platform: Chosen,
    device: String,
    /// Whether passes were timed in graphs.
    graph: bool,
    limits: Limits,
    routing: String,
    hidden_size: usize,
    intermediate_size: usize,
    formats: [String; 2],
    expert_bytes: usize,
    shared_bytes: usize,
    rows: Vec<MoeRow>,
}

/// One number of tokens.
#[derive(Debug, Serialize)]
struct MoeRow {
    tokens: u32,
    /// The mean of the inputs.
    touched_experts: f64,
    /// The median, copies to and from the device included but in graphs.
    milliseconds: f64,
    /// Weights of the touched experts, the router's and the shared expert's.
    gb_per_s: f64,
    of_read: Option<f64>,
    gflop_per_s: f64,
    of_gflop: Option<f64>,
}

/// `swiglu bench --moe`.
pub fn bench(arguments: &Bench, out: &mut Console) -> Result<()> {
    let dtype = match arguments.dtype {
        None => ExpertDtype::Fp4,
        Some(TypeArgument::Fp8) => ExpertDtype::Fp8,
        Some(TypeArgument::Bf16) => ExpertDtype::Bf16,
        Some(TypeArgument::F32 | TypeArgument::F16) => {
            let message = "dtype: expected fp8 or bf16 for routed experts, or none for fp4";
            return Err(Failure::Input(message.to_owned()));
        }
    };
    let shape = arguments.shape;
    let experts = arguments.experts.unwrap_or(16);
    let config = SyntheticMoe {
        shared: SyntheticConfig {
            hidden: shape.hidden,
            intermediate: shape.intermediate,
            block: shape.block,
            ..SyntheticConfig::flash(SEED)
        },
        top_k: experts.min(6),
        dtype,
        ..SyntheticMoe::flash(experts, SEED)
    };
    let folder = TemporaryFolder::new()?;
    write_moe_checkpoint(folder.path(), &config)?;
    let model = ModelConfig::from_file(&folder.path().join("config.json"))?;
    let mut layer_config = model.moe_config(&config.prefix())?;
    layer_config.shared.activation_quant = arguments.activations.unwrap_or_default().into();
    let checkpoint = Checkpoint::open(folder.path())?;
    let weights = MoeWeights::load(&checkpoint, &layer_config)?;
    let dispatcher = arguments.device.dispatcher()?;
    let device = dispatcher.device_for(&weights.requests(&layer_config)?)?;
    let mut layer = device.load_moe(&layer_config, &weights)?;
    let chosen = device.report();
    let accumulation = device.backend().accuracy().accumulation;
    let options = dispatcher.dispatch().open.clone();
    let measure = || Limits::measure(&chosen.chosen, &options, accumulation);
    let before = measure()?;
    let in_graphs = arguments.graph.then(|| {
        let backend = timed::open_for_graphs(&chosen.chosen, &options)?;
        let layer = graphs(&*backend, &chosen.chosen)?.load_layer(&layer_config, &weights)?;
        Ok::<_, Failure>((backend, layer))
    });
    let mut in_graphs = in_graphs.transpose()?;
    let (hidden, i) = (shape.hidden, shape.intermediate);
    let gate_bytes = experts * hidden * 2;
    let mut rows = Vec::new();
    for &tokens in &arguments.tokens {
        let count = tokens as usize;
        let inputs: Vec<Vec<bf16>> = (0..INPUTS as u64)
            .map(|n| synthetic_input(count, hidden, SEED ^ (n + 1)))
            .collect();
        let mut experts_of = Vec::new();
        for x in &inputs {
            let routes = layer.stages(x, HostTokens::default())?.routes;
            experts_of.push(touched(&routes) as f64);
        }
        let touched = experts_of.iter().sum::<f64>() / experts_of.len() as f64;
        let mut y = vec![bf16::ZERO; count * hidden];
        let budget = Duration::from_secs_f64(arguments.seconds);
        let seconds = if let Some((backend, layer)) = &mut in_graphs {
            layer.write_inputs(&inputs)?;
            let beyond = Some(graphs(&**backend, &chosen.chosen)?);
            time(&**backend, beyond, budget, INPUTS, &mut || layer.enqueue())?.median
        } else {
            let start = Instant::now();
            let mut times = Vec::new();
            while times.len() < INPUTS || start.elapsed() < budget {
                let x = &inputs[times.len() % INPUTS];
                let start = Instant::now();
                layer.forward_into(x, HostTokens::default(), &mut y)?;
                times.push(start.elapsed().as_secs_f64());
            }
            times.sort_unstable_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let fixed = (layer.shared_bytes() + gate_bytes) as f64;
        let bytes = touched * layer.expert_bytes() as f64 + fixed;
        let products = (config.top_k + 1) * 3 * hidden * i + experts * hidden;
        rows.push(MoeRow {
            tokens,
            touched_experts: touched,
            milliseconds: seconds * 1e3,
            gb_per_s: bytes / seconds / 1e9,
            of_read: None,
            gflop_per_s: (count * products) as f64 / seconds / 1e9 * 2.0,
            of_gflop: None,
        });
    }
    let limits = before.or_better(measure()?);
    let peak = limits.matrix_unit.or(limits.gigaflops);
    for row in &mut rows {
        row.of_read = limits.read.map(|read| row.gb_per_s / read);
        row.of_gflop = peak.map(|most| row.gflop_per_s / most);
    }
    let most = arguments.tokens.iter().copied().max().unwrap_or(1) as usize;
    let report = MoeBenchReport {
        platform: (&Report {
            plan: layer.plan(most),
            ..chosen.clone()
        })
            .into(),
        device: device.backend().description(),
        graph: arguments.graph,
        limits,
        routing: weights.routing().to_string(),
        hidden_size: hidden,
        intermediate_size: i,
        formats: weights.formats().map(|f| f.to_string()),
        expert_bytes: layer.expert_bytes(),
        shared_bytes: layer.shared_bytes(),
        rows,
    };
    if arguments.csv {
        return report.csv(out);
    }
    report.print(out)?;
    if arguments.json {
        out.document(&report)?;
    }
    Ok(())
}

impl MoeBenchReport {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "platform {}", self.platform)?;
        writeln!(out, "device   {}", self.device)?;
        writeln!(
            out,
            "layer    {}, H={} I={} {}, {:.2} MB an expert",
            self.routing,
            self.hidden_size,
            self.intermediate_size,
            self.formats[0],
            self.expert_bytes as f64 / 1e6
        )?;
        writeln!(
            out,
            "method   {} take {INPUTS} inputs in turn, so that they touch other experts each time; medians",
            match self.graph {
                true => "CUDA graphs of passes",
                false => "passes",
            }
        )?;
        writeln!(out, "limits   {}", self.limits.describe("this platform"))?;
        writeln!(
            out,
            "{:>6} {:>8} {:>11} {:>9} {:>8} {:>9} {:>8}",
            "tokens", "touched", "time", "GB/s", "of read", "GFLOP/s", "of peak"
        )?;
        let part = |p: Option<f64>| p.map_or("-".to_owned(), |p| format!("{p:.2}"));
        for row in &self.rows {
            writeln!(
                out,
                "{:>6} {:>8.1} {:>8.3} ms {:>9.1} {:>8} {:>9.1} {:>8}",
                row.tokens,
                row.touched_experts,
                row.milliseconds,
                row.gb_per_s,
                part(row.of_read),
                row.gflop_per_s,
                part(row.of_gflop)
            )?;
        }
        Ok(())
    }

    fn csv(&self, out: &mut impl Write) -> Result<()> {
        writeln!(
            out,
            "hidden,intermediate,format,expert_bytes,tokens,touched,milliseconds,gb_per_s,of_read,gflop_per_s,of_peak"
        )?;
        let known = |part: Option<f64>| part.map_or(String::new(), |part| format!("{part:.4}"));
        for row in &self.rows {
            writeln!(
                out,
                "{},{},{},{},{},{:.1},{:.4},{:.2},{},{:.2},{}",
                self.hidden_size,
                self.intermediate_size,
                self.formats[0].split(' ').next().unwrap_or_default(),
                self.expert_bytes,
                row.tokens,
                row.touched_experts,
                row.milliseconds,
                row.gb_per_s,
                known(row.of_read),
                row.gflop_per_s,
                known(row.of_gflop)
            )?;
        }
        Ok(())
    }
}
