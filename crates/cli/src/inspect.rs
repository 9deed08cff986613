use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use swiglu::mlp::inspect::{ScaleSummary, WeightSummary, printable};
use swiglu::mlp::{Checkpoint, MlpConfig, ModelConfig, SharedExpert};
use swiglu::{HostWeight, Limit, Report};

use crate::arguments::Inspect;
use crate::failure::{Failure, Result};
use crate::run::config_path;

mod moe;

use moe::InspectedLayer;

/// The numbers of tokens for which an MLP is planned.
const TOKENS: [usize; 2] = [1, 256];

/// `swiglu inspect`: the MLPs of a checkpoint, or one of them with its numbers and what would run.
pub fn inspect(arguments: &Inspect, out: &mut impl Write) -> Result<()> {
    let checkpoint = Checkpoint::open_with(&arguments.checkpoint, arguments.mapping.mode())?;
    let model = model(arguments);
    let Some(prefix) = &arguments.prefix else {
        return list(&checkpoint, model.as_ref(), arguments, out);
    };
    if checkpoint.has_gate(prefix) {
        return inspect_layer(&checkpoint, model.as_ref(), arguments, prefix, out);
    }
    let mut mlp = InspectedMlp::new(&checkpoint, model.as_ref(), arguments, prefix);
    if mlp.refused.is_none()
        && let Err(failure) = mlp.look(&checkpoint, model.as_ref(), arguments)
    {
        mlp.refused = Some(failure.to_string());
    }
    if arguments.json {
        let mlps = [&mlp];
        writeln!(
            out,
            "{:#}",
            document(&checkpoint, model.as_ref(), &mlps, &[])
        )?;
    } else {
        mlp.print(out)?;
    }
    match mlp.refused {
        None => Ok(()),
        Some(reason) => Err(Failure::Check(format!("{prefix} does not run: {reason}"))),
    }
}

/// A whole layer.
fn inspect_layer(
    checkpoint: &Checkpoint,
    model: std::result::Result<&ModelConfig, &String>,
    arguments: &Inspect,
    prefix: &str,
    out: &mut impl Write,
) -> Result<()> {
    let layer = InspectedLayer::new(checkpoint, model, arguments, prefix, true);
    if arguments.json {
        let mlps: [&InspectedMlp; 0] = [];
        let layers = std::slice::from_ref(&layer);
        writeln!(out, "{:#}", document(checkpoint, model, &mlps, layers))?;
    } else {
        layer.print(out)?;
    }
    match layer.refused {
        None => Ok(()),
        Some(reason) => Err(Failure::Check(format!("{prefix} does not run: {reason}"))),
    }
}

/// The model's configuration, or why there is none.
fn model(arguments: &Inspect) -> std::result::Result<ModelConfig, String> {
    let path = config_path(&arguments.checkpoint, arguments.config.as_deref());
    let path = path.map_err(|e| e.to_string())?;
    ModelConfig::from_file(&path).map_err(|e| e.to_string())
}

/// The MLP under a prefix as `swiglu run` would have it.
fn mlp_config(
    checkpoint: &Checkpoint,
    model: &ModelConfig,
    arguments: &Inspect,
    prefix: &str,
) -> Result<MlpConfig> {
    let config = match arguments.limit {
        Some(given) => model.mlp_config_with_limit(prefix, given.0.map(Limit::new).transpose()?),
        None => model.mlp_config(prefix)?,
    };
    let config = MlpConfig {
        activation_quant: arguments.activations.into(),
        ..config
    };
    let mut config = config.with_tensors(checkpoint)?;
    if let Some(intermediate) = arguments.intermediate {
        config.intermediate_size = intermediate;
    }
    config.activation()?;
    Ok(config)
}

/// Lists all that look like MLPs. Only headers are read.
fn list(
    checkpoint: &Checkpoint,
    model: std::result::Result<&ModelConfig, &String>,
    arguments: &Inspect,
    out: &mut impl Write,
) -> Result<()> {
    let prefixes = checkpoint.mlp_prefixes();
    let mlps = prefixes
        .iter()
        .map(|prefix| InspectedMlp::new(checkpoint, model, arguments, prefix));
    let mlps: Vec<_> = mlps.collect();
    let gates = checkpoint.moe_prefixes().into_iter();
    let layers = gates.map(|p| InspectedLayer::new(checkpoint, model, arguments, p, false));
    let layers: Vec<_> = layers.collect();
    if arguments.json {
        writeln!(out, "{:#}", document(checkpoint, model, &mlps, &layers))?;
        return Ok(());
    }
    writeln!(
        out,
        "{} tensors, {} MLPs",
        checkpoint.names().count(),
        mlps.len()
    )?;
    if let Err(reason) = model {
        writeln!(out, "without a configuration: {reason}")?;
    }
    for layer in &layers {
        writeln!(out, "{}: {}", printable(&layer.prefix), layer.line())?;
    }
    // Experts that are numbered and alike take one line.
    let mut rest = &mlps[..];
    while let Some(first) = rest.first() {
        let same = |other: &&InspectedMlp| {
            numbered(&other.prefix).is_some_and(|(parent, _)| {
                numbered(&first.prefix).is_some_and(|(of, _)| of == parent)
            }) && other.line() == first.line()
        };
        let count = 1 + rest[1..].iter().take_while(same).count();
        match count {
            1 => writeln!(out, "{}: {}", printable(&first.prefix), first.line())?,
            n => {
                let name = printable(&first.prefix);
                writeln!(out, "{name} and {} alike: {}", n - 1, first.line())?;
            }
        }
        rest = &rest[count..];
    }
    Ok(())
}

/// What comes before a number at a prefix's end.
fn numbered(prefix: &str) -> Option<(&str, usize)> {
    let (parent, number) = prefix.rsplit_once('.')?;
    Some((parent, number.parse().ok()?))
}

fn document(
    checkpoint: &Checkpoint,
    model: std::result::Result<&ModelConfig, &String>,
    mlps: &(impl Serialize + ?Sized),
    layers: &[InspectedLayer],
) -> serde_json::Value {
    let config = model.ok().map(|model| {
        json!({
            "model_type": model.model_type,
            "hidden_size": model.hidden_size,
            "intermediate_size": model.intermediate_size,
            "block": model.block,
            "ue8m0": model.ue8m0,
        })
    });
    json!({
        "checkpoint": checkpoint.path(),
        "tensors": checkpoint.names().count(),
        "config": config,
        "config_refused": model.err(),
        "mlps": mlps,
        "layers": layers,
    })
}

/// An MLP, and what there is to say of it.
#[derive(Debug, Serialize)]
struct InspectedMlp {
    prefix: String,
    tensors: Vec<InspectedTensor>,
    /// How gate, up and down are stored, once loaded.
    formats: Option<[String; 3]>,
    hidden: Option<usize>,
    intermediate: Option<usize>,
    /// Why it does not run.
    refused: Option<String>,
    #[serde(flatten)]
    details: Option<Details>,
}

#[derive(Debug, Serialize)]
struct InspectedTensor {
    name: String,
    #[serde(rename = "type")]
    dtype: String,
    shape: Vec<usize>,
    file: String,
}

/// What takes more than headers.
#[derive(Debug, Serialize)]
struct Details {
    weights: [InspectedWeight; 3],
    activation: String,
    matmuls_of: String,
    platform: String,
    support: String,
    rejected: Vec<serde_json::Value>,
    plan: Vec<String>,
    #[serde(skip)]
    report: String,
}

#[derive(Debug, Serialize)]
struct InspectedWeight {
    name: &'static str,
    elements: usize,
    nan: usize,
    infinite: usize,
    scales: Option<InspectedScales>,
}

#[derive(Debug, Serialize)]
struct InspectedScales {
    count: usize,
    least: f32,
    greatest: f32,
    nan: usize,
    infinite: usize,
    zero: usize,
    negative: usize,
}

impl InspectedMlp {
    /// What headers say.
    fn new(
        checkpoint: &Checkpoint,
        model: std::result::Result<&ModelConfig, &String>,
        arguments: &Inspect,
        prefix: &str,
    ) -> Self {
        let mut mlp = Self {
            prefix: prefix.to_owned(),
            tensors: Vec::new(),
            formats: None,
            hidden: None,
            intermediate: None,
            refused: None,
            details: None,
        };
        if let Err(failure) = mlp.read_headers(checkpoint, model, arguments) {
            mlp.refused = Some(failure.to_string());
        }
        mlp
    }

    fn read_headers(
        &mut self,
        checkpoint: &Checkpoint,
        model: std::result::Result<&ModelConfig, &String>,
        arguments: &Inspect,
    ) -> Result<()> {
        let file = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let tensors = checkpoint.describe(&self.prefix)?.into_iter();
        let tensors = tensors.map(|t| InspectedTensor {
            file: file(&t.path),
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
        });
        self.tensors = tensors.collect();
        let model = model.map_err(|reason| Failure::Input(reason.clone()))?;
        let config = mlp_config(checkpoint, model, arguments, &self.prefix)?;
        let formats = SharedExpert::stored_formats(checkpoint, &config)?;
        self.formats = Some(formats.map(|f| f.to_string()));
        self.hidden = Some(config.hidden_size);
        self.intermediate = Some(config.intermediate_size);
        Ok(())
    }

    /// Looks at the numbers, and asks what would run.
    fn look(
        &mut self,
        checkpoint: &Checkpoint,
        model: std::result::Result<&ModelConfig, &String>,
        arguments: &Inspect,
    ) -> Result<()> {
        let model = model.map_err(|reason| Failure::Input(reason.clone()))?;
        let config = mlp_config(checkpoint, model, arguments, &self.prefix)?;
        let expert = SharedExpert::load(checkpoint, &config)?;
        let weights = [
            ("gate", expert.gate()),
            ("up", expert.up()),
            ("down", expert.down()),
        ];
        self.formats = Some(weights.map(|(_, w)| w.format().to_string()));
        let requests = expert.requests(&config)?;
        let device = arguments.device.dispatcher()?.device_for(&requests)?;
        let backend = device.backend();
        let mut plan = Vec::new();
        for rows in TOKENS {
            plan.extend(expert.plan(&config, rows, |request, shape| backend.plan(request, shape))?);
        }
        let report = device.report();
        let rejected = report.rejected.iter();
        let rejected = rejected.map(|r| json!({ "platform": r.platform, "reason": r.reason }));
        let quant = config.quantization()?;
        self.details = Some(Details {
            weights: weights.map(|(name, weight)| InspectedWeight::of(name, weight)),
            activation: config.activation()?.to_string(),
            matmuls_of: quant.map_or_else(|| "bf16".to_owned(), |quant| quant.to_string()),
            platform: report.chosen.clone(),
            support: report.support.to_string(),
            rejected: rejected.collect(),
            report: Report {
                plan: plan.clone(),
                ..report.clone()
            }
            .to_string(),
            plan,
        });
        Ok(())
    }

    /// All in one line, without names.
    fn line(&self) -> String {
        if let Some(reason) = &self.refused {
            return format!("does not run: {reason}");
        }
        let size = |n: Option<usize>| n.unwrap_or_default();
        let (h, i) = (size(self.hidden), size(self.intermediate));
        match &self.formats {
            Some([gate, up, down]) if gate == up && up == down => format!("H={h} I={i} {gate}"),
            Some([gate, up, down]) => format!("H={h} I={i} gate {gate}, up {up}, down {down}"),
            None => format!("H={h} I={i}"),
        }
    }

    fn print(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{}", printable(&self.prefix))?;
        for InspectedTensor {
            name,
            dtype,
            shape,
            file,
        } in &self.tensors
        {
            let (name, file) = (printable(name), printable(file));
            let shape = printable(&format!("{shape:?}"));
            writeln!(out, "tensor   {name} {dtype} {shape} in {file}")?;
        }
        writeln!(out, "weights  {}", self.line())?;
        let Some(details) = &self.details else {
            return Ok(());
        };
        for weight in &details.weights {
            writeln!(out, "{:<8} {}", weight.name, weight.line())?;
        }
        writeln!(out, "act      {}", details.activation)?;
        writeln!(out, "matmuls  of {}", details.matmuls_of)?;
        writeln!(out, "platform {}", details.report)?;
        Ok(())
    }
}

impl InspectedWeight {
    fn of(name: &'static str, weight: &HostWeight<'_>) -> Self {
        let WeightSummary {
            elements,
            nan,
            infinite,
            scales,
        } = WeightSummary::of(weight);
        Self {
            name,
            elements,
            nan,
            infinite,
            scales: scales.map(InspectedScales::from),
        }
    }

    fn line(&self) -> String {
        let mut line = format!("{} elements, {} NaN", self.elements, self.nan);
        if self.infinite > 0 {
            line += &format!(", {} infinite", self.infinite);
        }
        let Some(scales) = &self.scales else {
            return line;
        };
        line += &format!(
            "; {} scales from {:e} to {:e}",
            scales.count, scales.least, scales.greatest
        );
        for (count, what) in [
            (scales.nan, "NaN"),
            (scales.infinite, "infinite"),
            (scales.zero, "zero"),
            (scales.negative, "negative"),
        ] {
            if count > 0 {
                line += &format!(", {count} {what}");
            }
        }
        line
    }
}

impl From<ScaleSummary> for InspectedScales {
    fn from(scales: ScaleSummary) -> Self {
        let ScaleSummary {
            count,
            least,
            greatest,
            nan,
            infinite,
            zero,
            negative,
        } = scales;
        Self {
            count,
            least,
            greatest,
            nan,
            infinite,
            zero,
            negative,
        }
    }
}
