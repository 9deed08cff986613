//! Layers with routed experts, as `swiglu inspect` shows them.

use std::io::Write;

use serde::Serialize;
use swiglu::Report;
use swiglu::mlp::inspect::printable;
use swiglu::mlp::{Checkpoint, ModelConfig, MoeWeights};

use super::TOKENS;
use crate::arguments::Inspect;
use crate::failure::{Failure, Result};
use crate::run::layer_config;

/// A layer, and what there is to say of it.
#[derive(Debug, Serialize)]
pub struct InspectedLayer {
    pub prefix: String,
    #[serde(flatten)]
    about: Option<About>,
    /// Why it does not run.
    pub refused: Option<String>,
    #[serde(flatten)]
    details: Option<Details>,
}

/// What tensors and configuration say.
#[derive(Debug, Serialize)]
struct About {
    hidden: usize,
    intermediate: usize,
    experts: usize,
    top_k: usize,
    routing: String,
    /// How the routed experts' gate and up, and down are stored.
    formats: [String; 2],
    /// Whether tokens of images have a bias of their own.
    bias_vl: bool,
}

/// What would run.
#[derive(Debug, Serialize)]
struct Details {
    activation: String,
    matmuls_of: String,
    platform: String,
    support: String,
    plan: Vec<String>,
    #[serde(skip)]
    report: String,
}

impl InspectedLayer {
    /// What headers and the router's tensors say.
    pub fn new(
        checkpoint: &Checkpoint,
        model: std::result::Result<&ModelConfig, &String>,
        arguments: &Inspect,
        prefix: &str,
        look: bool,
    ) -> Self {
        let mut layer = Self {
            prefix: prefix.to_owned(),
            about: None,
            refused: None,
            details: None,
        };
        if let Err(failure) = layer.read(checkpoint, model, arguments, look) {
            layer.refused = Some(failure.to_string());
        }
        layer
    }

    fn read(
        &mut self,
        checkpoint: &Checkpoint,
        model: std::result::Result<&ModelConfig, &String>,
        arguments: &Inspect,
        look: bool,
    ) -> Result<()> {
        let model = model.map_err(|reason| Failure::Input(reason.clone()))?;
        let (limit, activations) = (arguments.limit, arguments.activations);
        let config = layer_config(model, checkpoint, &self.prefix, limit, activations)?;
        let weights = MoeWeights::load(checkpoint, &config)?;
        let routing = weights.routing();
        self.about = Some(About {
            hidden: config.shared.hidden_size,
            intermediate: config.intermediate_size,
            experts: routing.experts(),
            top_k: routing.top_k(),
            routing: routing.to_string(),
            formats: weights.formats().map(|f| f.to_string()),
            bias_vl: weights.gate().bias_vl().is_some(),
        });
        if !look {
            return Ok(());
        }
        let requests = weights.requests(&config)?;
        let device = arguments.device.dispatcher()?.device_for(&requests)?;
        let mut plan = Vec::new();
        for rows in TOKENS {
            plan.extend(config.plan(&weights, rows, |request, shape| {
                device.backend().plan(request, shape)
            })?);
        }
        let report = device.report();
        let quant = config.quantization()?;
        self.details = Some(Details {
            activation: config.activation()?.to_string(),
            matmuls_of: quant.map_or_else(|| "bf16".to_owned(), |quant| quant.to_string()),
            platform: report.chosen.clone(),
            support: report.support.to_string(),
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
    pub fn line(&self) -> String {
        if let Some(reason) = &self.refused {
            return format!("does not run: {reason}");
        }
        let Some(about) = &self.about else {
            return String::new();
        };
        let About {
            hidden,
            intermediate,
            routing,
            formats: [gate_up, down],
            bias_vl,
            ..
        } = about;
        let formats = match gate_up == down {
            true => gate_up.clone(),
            false => format!("gate and up {gate_up}, down {down}"),
        };
        let images = if *bias_vl { ", bias_vl for images" } else { "" };
        format!("layer of {routing}, H={hidden} I={intermediate} {formats}{images}")
    }

    pub fn print(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{}", printable(&self.prefix))?;
        writeln!(out, "weights  {}", self.line())?;
        if let Some(details) = &self.details {
            writeln!(out, "act      {}", details.activation)?;
            writeln!(out, "matmuls  of {}", details.matmuls_of)?;
            writeln!(out, "platform {}", details.report)?;
        }
        Ok(())
    }
}
