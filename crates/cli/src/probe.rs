use std::io::Write;

use serde::Serialize;
use swiglu::mlp::synthetic::SyntheticConfig;
use swiglu::mlp::{MlpConfig, ModelConfig};
use swiglu::{Accuracy, AnyBackend, Float, GatedActivation, Request, Shape, Support, WeightFormat};

use crate::arguments::{PlatformSettings, Probe};
use crate::chosen::Chosen;
use crate::console::Console;
use crate::failure::Result;

mod devices;
use devices::NumberedDevice;

/// The numbers of tokens for which V4-Flash's MLP is planned.
const TOKENS: [usize; 3] = [1, 16, 256];

/// `swiglu probe`: every platform with its device or the reason that there is none, then what a
/// DeepSeek-V4 activation in bf16 would run on.
pub fn probe(arguments: &Probe, out: &mut Console) -> Result<()> {
    let dispatcher = PlatformSettings::default().dispatcher()?;
    let number = dispatcher.dispatch().open.device.unwrap_or(0);
    let op = GatedActivation::deepseek_v4();
    let chosen = dispatcher.device(&op, Float::BF16)?;
    let flash = flash()?;
    let mut platforms = Vec::new();
    for (platform, opened) in dispatcher.probe(|_| true) {
        platforms.push(match opened {
            Ok(backend) => Probed::here(platform, number, &backend, &flash)?,
            Err(reason) => Probed::absent(platform, number, reason),
        });
    }
    let report = chosen.report();
    if arguments.json {
        let chosen = report.into();
        return out.document(&ProbeReport { platforms, chosen });
    }
    for platform in &platforms {
        platform.print(out)?;
    }
    writeln!(out, "chosen     {report}")?;
    Ok(())
}

/// The MLP of DeepSeek-V4-Flash, of bf16 by FP8 weights.
fn flash() -> Result<MlpConfig> {
    let shape = SyntheticConfig::flash(0);
    let model = ModelConfig::from_json(&shape.config_json())?;
    Ok(model.mlp_config(&shape.prefix())?)
}

/// The name of a stage of this MLP and its sizes in a pass over so many tokens; none of a stage that
/// an MLP of bf16 activations does not have.
const fn stage(mlp: &MlpConfig, request: &Request, tokens: usize) -> Option<(&'static str, Shape)> {
    let (h, i) = (mlp.hidden_size, mlp.intermediate_size);
    let (name, cols, depth) = match request {
        Request::GatedMatmul { .. } => ("gate_up", 2 * i, h),
        Request::Matmul { .. } => ("down", h, i),
        _ => return None,
    };
    let shape = Shape {
        rows: tokens,
        cols,
        depth,
    };
    Some((name, shape))
}

/// What `swiglu probe` found, as JSON has it.
#[derive(Debug, Serialize)]
struct ProbeReport {
    platforms: Vec<Probed>,
    #[serde(flatten)]
    chosen: Chosen,
}

/// A platform, and what there is to say of it.
#[derive(Debug, Serialize)]
struct Probed {
    platform: String,
    available: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Those that it lists, by the numbers that `--device` takes.
    devices: Vec<NumberedDevice>,
    #[serde(flatten)]
    device: Option<ProbedDevice>,
}

/// What a device is and does.
#[derive(Debug, Serialize)]
struct ProbedDevice {
    device: String,
    accuracy: ProbedAccuracy,
    /// V4-Flash's MLP, for each of [`TOKENS`]; empty where it does not run.
    mlp: Vec<MlpPlan>,
    /// Why that does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_mlp: Option<String>,
}

#[derive(Debug, Serialize)]
struct ProbedAccuracy {
    f32_ulps: u32,
    flushes_subnormals: bool,
    accumulation: &'static str,
}

/// The kernels of a forward pass over so many tokens.
#[derive(Debug, Serialize)]
struct MlpPlan {
    tokens: usize,
    /// A line each.
    kernels: Vec<String>,
}

impl From<Accuracy> for ProbedAccuracy {
    fn from(accuracy: Accuracy) -> Self {
        Self {
            f32_ulps: accuracy.f32_ulps,
            flushes_subnormals: accuracy.flushes_subnormals,
            accumulation: accuracy.accumulation.name(),
        }
    }
}

impl Probed {
    fn absent(platform: &str, number: usize, reason: String) -> Self {
        Self {
            platform: platform.to_owned(),
            available: false,
            reason: Some(reason),
            devices: devices::listed(platform, number, None),
            device: None,
        }
    }

    fn here(
        platform: &str,
        number: usize,
        backend: &AnyBackend,
        flash: &MlpConfig,
    ) -> Result<Self> {
        let weight = WeightFormat::DEEPSEEK_V4;
        let requests = flash.requests(weight, weight)?;
        let answers = requests.iter().map(|r| backend.supports(r));
        let no_mlp = match answers.fold(Support::Native, Support::and) {
            Support::Native | Support::Emulated(_) => None,
            Support::No(reason) => Some(reason),
        };
        let stage = |request: &Request, tokens: usize| {
            let (name, shape) = stage(flash, request, tokens)?;
            let plan = backend.plan(request, &shape)?;
            Some(format!("{name} {shape}: {plan}"))
        };
        let plan = |tokens| MlpPlan {
            tokens,
            kernels: requests.iter().filter_map(|r| stage(r, tokens)).collect(),
        };
        let mlp = match no_mlp {
            None => TOKENS.map(plan).into(),
            Some(_) => Vec::new(),
        };
        Ok(Self {
            platform: platform.to_owned(),
            available: true,
            reason: None,
            devices: devices::listed(platform, number, Some(&backend.description())),
            device: Some(ProbedDevice {
                device: backend.description(),
                accuracy: backend.accuracy().into(),
                mlp,
                no_mlp,
            }),
        })
    }

    fn print(&self, out: &mut impl Write) -> Result<()> {
        if let Some(reason) = &self.reason {
            writeln!(out, "{:<10} not available: {reason}", self.platform)?;
        }
        match (&self.device, self.devices.as_slice()) {
            // Of a single device its number says all.
            (Some(device), [only]) if only.description == device.device => {
                writeln!(out, "{:<10} {only}", self.platform)?;
            }
            (device, listed) => {
                if let Some(device) = device {
                    writeln!(out, "{:<10} {}", self.platform, device.device)?;
                }
                for device in listed {
                    writeln!(out, "  {device}")?;
                }
            }
        }
        let Some(device) = &self.device else {
            return Ok(());
        };
        let ProbedAccuracy {
            f32_ulps,
            flushes_subnormals,
            accumulation,
        } = device.accuracy;
        let subnormals = match flushes_subnormals {
            true => "may be taken for zero",
            false => "survive",
        };
        writeln!(
            out,
            "  accuracy: f32 within {f32_ulps} ulp, subnormals {subnormals}, {accumulation} sums"
        )?;
        if let Some(reason) = &device.no_mlp {
            writeln!(out, "  V4-Flash's MLP does not run: {reason}")?;
        }
        if !device.mlp.is_empty() && device.mlp.iter().all(|plan| plan.kernels.is_empty()) {
            writeln!(out, "  V4-Flash's MLP runs, with no choice of kernels")?;
            return Ok(());
        }
        for plan in &device.mlp {
            writeln!(out, "  V4-Flash's MLP at T = {}:", plan.tokens)?;
            for line in &plan.kernels {
                writeln!(out, "    {line}")?;
            }
        }
        Ok(())
    }
}
