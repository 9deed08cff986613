//! The weights of a layer with routed experts out of a checkpoint: read expert by expert, so that no
//! more than one is in memory twice.

use std::borrow::Cow;

use safetensors::Dtype;
use swiglu_core::{Float, HostGate, HostWeight, Request, Routing, WeightFormat};

use super::MoeConfig;
use super::names::MoeTensors;
use crate::checkpoint::{StoredTensor, StoredType};
use crate::config::ExpertDtype;
use crate::expert::borrowed;
use crate::{Checkpoint, Error, Result, SharedExpert, text};

/// The weights of a layer in host memory, or in mapped files: its router, its shared expert, and
/// where its routed experts are read from.
#[derive(Clone, Debug)]
pub struct MoeWeights<'a> {
    gate: HostGate<'a>,
    shared: SharedExpert<'a>,
    experts: ExpertSource<'a>,
    /// How gate and up, and down of the routed experts are stored.
    formats: [WeightFormat; 2],
}

#[derive(Clone, Debug)]
enum ExpertSource<'a> {
    /// Tensors of their own.
    Apart {
        checkpoint: &'a Checkpoint,
        config: MoeConfig,
    },
    /// All in one, \[E, 2I, H\] and \[E, H, I\].
    Stacked { gate_up: Stack<'a>, down: Stack<'a> },
    /// Held by the caller.
    Given(Vec<SharedExpert<'a>>),
}

/// A tensor \[E, rows, cols\] of plain numbers.
#[derive(Clone, Debug)]
struct Stack<'a> {
    tensor: StoredTensor<'a>,
    float: Float,
    shape: [usize; 2],
}

impl<'a> MoeWeights<'a> {
    /// Weights that the caller holds: the router, the routed experts in order, and the shared one.
    ///
    /// # Errors
    /// No experts or not as many as the router has, or experts that are stored differently.
    pub fn new(
        gate: HostGate<'a>,
        experts: Vec<SharedExpert<'a>>,
        shared: SharedExpert<'a>,
    ) -> Result<Self> {
        let count = gate.routing().experts();
        let Some(first) = experts.first().filter(|_| experts.len() == count) else {
            let expected = format!("{count}, as the router has");
            return Err(Error::config("experts", expected, experts.len()));
        };
        let formats = formats_of(first.formats(), "experts[0]")?;
        for (e, expert) in experts.iter().enumerate() {
            let name = format!("experts[{e}]");
            if formats_of(expert.formats(), &name)? != formats {
                let expected = "stored as experts[0] is";
                return Err(Error::config(name, expected, expert.gate.format()));
            }
        }
        Ok(Self {
            gate,
            shared,
            experts: ExpertSource::Given(experts),
            formats,
        })
    }

    /// Finds the weights under `config.prefix`, by DeepSeek's names (`experts.E.w1`, `gate.bias`) or
    /// Hugging Face's (`experts.E.gate_proj`, `gate.e_score_correction_bias`, and all experts in one
    /// as `experts.gate_up_proj` and `experts.down_proj`). FP4 is I8 or U8 \[R, C/2\], or F4 \[R, C\],
    /// with scales as F8_E8M0 or U8; experts may also be FP8 or plain numbers. What is mapped stays
    /// where it is; the experts' bytes are not looked at before they are loaded.
    ///
    /// # Errors
    /// A tensor that is missing, unexpected under the prefix, misshaped or wrong-typed; experts that
    /// are missing, too many, or not all stored alike; an entry of `tid2eid` that is no expert; a
    /// setting of the configuration that the tensors contradict.
    pub fn load(checkpoint: &'a Checkpoint, config: &MoeConfig) -> Result<Self> {
        config.check()?;
        let prefix = &config.prefix;
        let found = MoeTensors::find(checkpoint, prefix)?;
        let shared = SharedExpert::load(checkpoint, &config.shared)?;
        let (experts, formats) = match (found.gate_up_proj, found.down_proj) {
            (None, None) => {
                found.check_experts(checkpoint, prefix, config.experts)?;
                let formats = formats_apart(checkpoint, config, &found)?;
                let config = config.clone();
                (ExpertSource::Apart { checkpoint, config }, formats)
            }
            (gate_up, down) => {
                if let Some(other) = found.experts.values().next() {
                    let problem = "unexpected beside experts that are all in one";
                    return Err(other.error(problem));
                }
                let stack = |tensor: Option<StoredTensor<'a>>, name, rows, cols| match tensor {
                    Some(tensor) => Stack::new(tensor, config.experts, [rows, cols]),
                    None => {
                        let name = format!("{prefix}.experts.{name}");
                        Err(Error::tensor(&name, checkpoint.path(), "missing"))
                    }
                };
                let (h, i) = (config.shared.hidden_size, config.intermediate_size);
                let both = i.checked_mul(2);
                let both = both.ok_or_else(|| {
                    Error::config("moe_intermediate_size", "a size within range", i)
                })?;
                let gate_up = stack(gate_up, "gate_up_proj", both, h)?;
                let down = stack(down, "down_proj", h, i)?;
                let formats = [&gate_up, &down].map(|s| WeightFormat::Float(s.float));
                (ExpertSource::Stacked { gate_up, down }, formats)
            }
        };
        agrees(config, formats)?;
        Ok(Self {
            gate: gate(checkpoint, config, &found)?,
            shared,
            experts,
            formats,
        })
    }

    /// The router's tensors.
    pub const fn gate(&self) -> &HostGate<'a> {
        &self.gate
    }

    /// How tokens choose their experts.
    pub const fn routing(&self) -> &Routing {
        self.gate.routing()
    }

    /// The shared expert.
    pub const fn shared(&self) -> &SharedExpert<'a> {
        &self.shared
    }

    /// How the routed experts are stored: gate and up, and down.
    pub const fn formats(&self) -> [WeightFormat; 2] {
        self.formats
    }

    /// A routed expert's weights: mapped ones as they lie, others read now.
    ///
    /// # Errors
    /// No such expert, or bytes that cannot be read.
    pub fn expert(&self, number: usize) -> Result<SharedExpert<'_>> {
        let count = self.routing().experts();
        if number >= count {
            let expected = format!("0 to {}", count - 1);
            return Err(Error::config("expert", expected, number));
        }
        match &self.experts {
            ExpertSource::Apart { checkpoint, config } => {
                SharedExpert::load(checkpoint, &config.expert(number))
            }
            ExpertSource::Stacked { gate_up, down } => {
                let [rows, _] = gate_up.shape;
                let half = rows / 2;
                Ok(SharedExpert::new(
                    gate_up.part(number, 0..half)?,
                    gate_up.part(number, half..rows)?,
                    down.part(number, 0..down.shape[0])?,
                ))
            }
            ExpertSource::Given(experts) => {
                let expert = &experts[number];
                Ok(SharedExpert::new(
                    borrowed(&expert.gate)?,
                    borrowed(&expert.up)?,
                    borrowed(&expert.down)?,
                ))
            }
        }
    }

    /// What a forward pass with these weights asks of its backend, x and y in bf16: what
    /// [`crate::DeepseekV4Moe::load`] requires.
    ///
    /// # Errors
    /// As [`MoeConfig::check`] and [`SharedExpert::requests`].
    pub fn requests(&self, config: &MoeConfig) -> Result<Vec<Request>> {
        config.requests(*self.routing(), self.formats, &self.shared)
    }
}

/// Gate and up must be stored alike.
fn formats_of([gate, up, down]: [WeightFormat; 3], name: &str) -> Result<[WeightFormat; 2]> {
    if gate == up {
        return Ok([gate, down]);
    }
    let expected = format!("gate and up stored alike, {gate}");
    Err(Error::config(name, expected, up))
}

/// How experts with tensors of their own are stored: all alike.
fn formats_apart(
    checkpoint: &Checkpoint,
    config: &MoeConfig,
    found: &MoeTensors<'_>,
) -> Result<[WeightFormat; 2]> {
    let mut first = None;
    for (&number, tensor) in &found.experts {
        let formats = SharedExpert::stored_formats(checkpoint, &config.expert(number))?;
        let expected = *first.get_or_insert(formats);
        if formats != expected || formats[0] != formats[1] {
            let shown = |f: [WeightFormat; 3]| f.map(|f| f.to_string()).join(", ");
            let [gate, _, down] = expected;
            let expected = shown([gate, gate, down]);
            let got = shown(formats);
            let problem =
                format!("expected an expert stored as the first is, {expected}; got {got}");
            return Err(tensor.error(problem));
        }
    }
    let [gate, _, down] = first.ok_or_else(|| {
        let name = format!("{}.experts.0.*", config.prefix);
        Error::tensor(&name, checkpoint.path(), "missing")
    })?;
    Ok([gate, down])
}

/// The tensors are right: what a configuration says otherwise is refused.
fn agrees(config: &MoeConfig, formats: [WeightFormat; 2]) -> Result<()> {
    let Some(stated) = config.expert_dtype else {
        return Ok(());
    };
    for format in formats {
        let stored = match format {
            WeightFormat::Fp4 => ExpertDtype::Fp4,
            WeightFormat::Fp8 { .. } => ExpertDtype::Fp8,
            _ => ExpertDtype::Bf16,
        };
        if stored != stated {
            let expected = format!(
                "{}, as the tensors under {}.experts are",
                stored.name(),
                config.prefix
            );
            return Err(Error::config("expert_dtype", expected, stated.name()));
        }
    }
    Ok(())
}

/// The router's tensors, read.
fn gate<'a>(
    checkpoint: &'a Checkpoint,
    config: &MoeConfig,
    found: &MoeTensors<'a>,
) -> Result<HostGate<'a>> {
    let prefix = &config.prefix;
    let missing = |name: &str, problem: &str| {
        let name = format!("{prefix}.gate.{name}");
        Error::tensor(&name, checkpoint.path(), problem)
    };
    if let Some(hashes) = config.hashes
        && hashes != found.tid2eid.is_some()
    {
        return Err(match &found.tid2eid {
            None => missing(
                "tid2eid",
                "missing, and the configuration has this layer hash",
            ),
            Some(table) => {
                table.error("unexpected: the configuration has this layer choose by score")
            }
        });
    }
    let tensor = found.gate.ok_or_else(|| missing("weight", "missing"))?;
    let shape = [config.experts, config.shared.hidden_size];
    has_type(&tensor, &[Dtype::BF16])?;
    has_shape(&tensor, &shape)?;
    let weight = plain(&tensor, shape, Float::BF16, tensor.data()?)?;
    let bias = match (&found.bias, &found.tid2eid) {
        (Some(bias), None) => Some(floats(bias, config.experts)?),
        (Some(bias), Some(_)) => {
            return Err(bias.error("unexpected beside tid2eid, which chooses without a bias"));
        }
        (None, Some(_)) => None,
        (None, None) => {
            let problem = "missing, and so is tid2eid: one of them chooses the experts";
            let hugging_face = prefix.ends_with(".mlp") || prefix == "mlp";
            let name = if hugging_face {
                "e_score_correction_bias"
            } else {
                "bias"
            };
            return Err(missing(name, problem));
        }
    };
    let bias_vl = found.bias_vl.as_ref();
    let bias_vl = bias_vl.map(|b| floats(b, config.experts)).transpose()?;
    let table = found.tid2eid.as_ref();
    let table = table.map(|t| self::table(t, config)).transpose()?;
    let rows = table.as_ref().map(|(rows, _)| *rows);
    let gate = HostGate::new(
        config.routing(rows)?,
        weight,
        bias,
        bias_vl,
        table.map(|(_, table)| table),
    );
    gate.map_err(|error| match &found.tid2eid {
        // What else could be wrong has been checked.
        Some(table) => table.error(error),
        None => error.into(),
    })
}

/// A weight of plain numbers.
fn plain<'a>(
    tensor: &StoredTensor<'_>,
    shape: [usize; 2],
    float: Float,
    data: Cow<'a, [u8]>,
) -> Result<HostWeight<'a>> {
    let format = WeightFormat::Float(float);
    let weight = match data {
        Cow::Borrowed(data) => HostWeight::new(shape, format, data, &[]),
        Cow::Owned(data) => HostWeight::owned(shape, format, data, Vec::new()),
    };
    weight.map_err(|e| tensor.error(e))
}

fn has_type(tensor: &StoredTensor<'_>, expected: &[Dtype]) -> Result<()> {
    if expected
        .iter()
        .any(|&d| *tensor.dtype == StoredType::Known(d))
    {
        return Ok(());
    }
    let names: Vec<_> = expected.iter().map(|d| format!("{d:?}")).collect();
    let problem = format!("expected {}, got {}", names.join(" or "), tensor.dtype);
    Err(tensor.error(problem))
}

fn has_shape(tensor: &StoredTensor<'_>, expected: &[usize]) -> Result<()> {
    if tensor.shape == expected {
        return Ok(());
    }
    let got = text::shape(tensor.shape);
    Err(tensor.error(format!("expected shape {expected:?}, got {got}")))
}

fn floats(tensor: &StoredTensor<'_>, count: usize) -> Result<Vec<f32>> {
    has_type(tensor, &[Dtype::F32])?;
    has_shape(tensor, &[count])?;
    let data = tensor.data()?;
    let (words, _) = data.as_chunks::<4>();
    Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
}

/// `tid2eid`: its rows, and its entries.
fn table(tensor: &StoredTensor<'_>, config: &MoeConfig) -> Result<(usize, Vec<i32>)> {
    has_type(tensor, &[Dtype::I64, Dtype::I32])?;
    let rows = match (tensor.shape, config.vocab_size) {
        (&[_, _], Some(rows)) => rows,
        (&[rows, _], None) => rows,
        _ => config.vocab_size.unwrap_or_default(),
    };
    has_shape(tensor, &[rows, config.top_k])?;
    let data = tensor.data()?;
    // An entry that no i32 holds is no expert either: -1 is told as such.
    let entries = if *tensor.dtype == StoredType::Known(Dtype::I64) {
        let (words, _) = data.as_chunks::<8>();
        let narrow = |&word| i32::try_from(i64::from_le_bytes(word)).unwrap_or(-1);
        words.iter().map(narrow).collect()
    } else {
        let (words, _) = data.as_chunks::<4>();
        words.iter().map(|&word| i32::from_le_bytes(word)).collect()
    };
    Ok((rows, entries))
}

impl<'a> Stack<'a> {
    fn new(tensor: StoredTensor<'a>, experts: usize, shape: [usize; 2]) -> Result<Self> {
        has_type(&tensor, &[Dtype::BF16, Dtype::F16, Dtype::F32])?;
        has_shape(&tensor, &[experts, shape[0], shape[1]])?;
        let float = match tensor.dtype {
            StoredType::Known(Dtype::F32) => Float::F32,
            StoredType::Known(Dtype::F16) => Float::F16,
            _ => Float::BF16,
        };
        Ok(Self {
            tensor,
            float,
            shape,
        })
    }

    /// Some rows of an expert.
    fn part(&self, expert: usize, rows: std::ops::Range<usize>) -> Result<HostWeight<'a>> {
        let line = self.shape[1] * self.float.size();
        let first = expert * self.shape[0] + rows.start;
        let bytes = first * line..(first + rows.len()) * line;
        let shape = [rows.len(), self.shape[1]];
        plain(&self.tensor, shape, self.float, self.tensor.part(bytes)?)
    }
}
