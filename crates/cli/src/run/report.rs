//! What `swiglu run` says of its work.

use std::io::Write;

use serde::Serialize;
use swiglu::HostWeight;
use swiglu::mlp::SharedExpert;

use super::{Done, Task};
use crate::act::InputTensor;
use crate::arguments::Run;
use crate::chosen::Chosen;
use crate::console::Console;
use crate::escape;
use crate::failure::Result;
use crate::files::OutputFile;
use crate::tensor_file::{HostTensor, WrittenTensor};

/// What `swiglu run` did, as JSON has it.
#[derive(Debug, Serialize)]
struct RunReport<'a> {
    operation: &'a str,
    /// What the matmuls read: bf16, or a quantization.
    matmuls: &'a str,
    platform: Chosen,
    /// The class of the matmuls' sums.
    sums: &'static str,
    weights: Weights,
    ranks: Ranks,
    input: InputTensor,
    /// As it was named.
    output: String,
    tensors: Vec<WrittenTensor>,
    /// Copies to and from the device included, and the sums of several ranks.
    milliseconds: f64,
}

#[derive(Debug, Serialize)]
struct Weights {
    hidden_size: usize,
    intermediate_size: usize,
    #[serde(flatten)]
    stored: StoredWeights,
    load_milliseconds: f64,
}

/// How weights are stored, and how much of them a forward pass reads on all ranks together.
#[derive(Debug, Serialize)]
pub struct StoredWeights {
    gate_up: String,
    down: String,
    bytes: usize,
}

impl StoredWeights {
    pub fn new(expert: &SharedExpert<'_>, bytes: usize) -> Self {
        Self {
            gate_up: formats(&[expert.gate(), expert.up()]),
            down: expert.down().format().to_string(),
            bytes,
        }
    }
}

/// How the MLP was split.
#[derive(Debug, Serialize)]
pub struct Ranks {
    /// What the ranks were, where there were several.
    communicator: Option<&'static str>,
    world: usize,
    /// I of each, padding included.
    intermediate_size: usize,
}

impl Ranks {
    /// The MLP as a whole.
    pub const fn one(intermediate_size: usize) -> Self {
        Self {
            communicator: None,
            world: 1,
            intermediate_size,
        }
    }

    /// Several with so much of I each.
    #[cfg(feature = "cpu")]
    pub const fn several(
        communicator: &'static str,
        world: usize,
        intermediate_size: usize,
    ) -> Self {
        Self {
            communicator: Some(communicator),
            world,
            intermediate_size,
        }
    }
}

/// Prints the report, and the JSON where it is asked for.
pub fn tell(
    arguments: &Run,
    task: &Task,
    output: &OutputFile,
    tensors: &[(&str, &HostTensor)],
    done: Done,
    out: &mut Console,
) -> Result<()> {
    let report = RunReport {
        operation: &task.operation,
        matmuls: &task.matmuls,
        platform: (&done.platform).into(),
        sums: done.sums,
        weights: Weights {
            hidden_size: task.config.hidden_size,
            intermediate_size: task.config.intermediate_size,
            stored: done.weights,
            load_milliseconds: done.loading.as_secs_f64() * 1e3,
        },
        ranks: done.ranks,
        input: (&task.input).into(),
        output: output.name().display().to_string(),
        tensors: WrittenTensor::all(tensors),
        milliseconds: done.forward.as_secs_f64() * 1e3,
    };
    report.print(out)?;
    if arguments.json {
        out.document(&report)?;
    }
    Ok(())
}

impl RunReport<'_> {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{}", self.operation)?;
        writeln!(out, "platform {}", self.platform)?;
        writeln!(out, "sums     {}", self.sums)?;
        let Weights {
            hidden_size,
            intermediate_size,
            stored: StoredWeights { gate_up, bytes, .. },
            load_milliseconds,
        } = &self.weights;
        writeln!(
            out,
            "weights  H={hidden_size} I={intermediate_size} {gate_up}, {:.1} MB loaded in \
             {load_milliseconds:.0} ms",
            *bytes as f64 / 1e6,
        )?;
        let Ranks {
            communicator,
            world,
            intermediate_size,
        } = &self.ranks;
        if let Some(communicator) = communicator {
            writeln!(
                out,
                "ranks    {world} over {communicator}, I={intermediate_size} each"
            )?;
        }
        writeln!(out, "matmuls  of {}", self.matmuls)?;
        for t in &self.tensors {
            writeln!(out, "{:<8} {}", t.name, escape::shape(&t.shape))?;
        }
        let milliseconds = self.milliseconds;
        writeln!(out, "forward  {milliseconds:.3} ms, copies included")?;
        Ok(())
    }
}

/// How weights are stored: one format, or that of each.
fn formats(weights: &[&HostWeight<'_>]) -> String {
    let mut formats: Vec<_> = weights.iter().map(|w| w.format().to_string()).collect();
    formats.dedup();
    formats.join(" and ")
}
