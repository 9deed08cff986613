//! How checkpoints name an MLP's tensors. Matrices and scales go by either naming, in any mixture:
//! each name says by itself what it is.

use crate::checkpoint::StoredTensor;
use crate::{Checkpoint, Error, Result, text};

/// The tensors of one matrix.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatrixTensors<'a> {
    pub weight: Option<StoredTensor<'a>>,
    /// The scales multiply, whatever their name says.
    pub scale: Option<StoredTensor<'a>>,
    /// A static scale of the matmul's input, which does not touch the weight.
    pub input_scale: Option<StoredTensor<'a>>,
}

/// The tensors of an MLP.
#[derive(Clone, Copy, Debug, Default)]
pub struct MlpTensors<'a> {
    pub gate: MatrixTensors<'a>,
    pub up: MatrixTensors<'a>,
    pub down: MatrixTensors<'a>,
    /// Gate and up in one, gate rows first.
    pub gate_up: MatrixTensors<'a>,
}

/// Names of tensors that change what a weight is in ways that are not computed here.
const FOREIGN: [(&str, &str); 12] = [
    ("bias", "a bias, which these MLPs do not have"),
    ("qweight", "integers of AWQ or GPTQ, which are not read"),
    ("qzeros", "zero points of AWQ or GPTQ, which are not read"),
    ("scales", "scales of AWQ or GPTQ, which are not read"),
    ("g_idx", "an order of groups of GPTQ, which is not read"),
    (
        "weight_packed",
        "packed numbers of compressed-tensors, which are not read",
    ),
    (
        "weight_shape",
        "the shape of packed numbers, which are not read",
    ),
    (
        "weight_zero_point",
        "zero points: the weights are not symmetric",
    ),
    ("weight_g_idx", "an order of groups, which is not read"),
    (
        "weight_scale_2",
        "the second scale of NVFP4, which is not read",
    ),
    (
        "weight_global_scale",
        "the second scale of NVFP4, which is not read",
    ),
    (
        "pre_quant_scale",
        "a scale of the MLP's input, which is not computed",
    ),
];

impl<'a> MlpTensors<'a> {
    /// The tensors under a prefix.
    ///
    /// # Errors
    /// As [`Checkpoint::under`], a prefix without any matrix, one matrix by two names, and a tensor
    /// that is none of the MLP's.
    pub fn find(checkpoint: &'a Checkpoint, prefix: &str) -> Result<Self> {
        let found = checkpoint.under(prefix)?;
        let mut tensors = Self::default();
        let mut others = Vec::new();
        for tensor in found {
            let rest = match prefix {
                "" => tensor.name,
                _ => &tensor.name[prefix.len() + 1..],
            };
            let (matrix, part) = rest.split_once('.').unwrap_or((rest, ""));
            match tensors.place(matrix, part) {
                Some(place) => match place.replace(tensor) {
                    None => {}
                    Some(other) => {
                        let problem = format!("the same as {}", text::name(other.name));
                        return Err(tensor.error(problem));
                    }
                },
                None => others.push((tensor, part)),
            }
        }
        if tensors.matrices().all(|m| m.weight.is_none()) {
            return Err(match others.first() {
                Some((tensor, part)) if foreign(part).is_some() => unexpected(tensor, part),
                _ => checkpoint.no_mlp(prefix),
            });
        }
        if let Some((tensor, part)) = others.first() {
            return Err(unexpected(tensor, part));
        }
        if let Some(merged) = tensors.gate_up.weight
            && let Some(other) = tensors.gate.weight.or(tensors.up.weight)
        {
            let problem = format!("gate and up in one, beside {}", text::name(other.name));
            return Err(merged.error(problem));
        }
        Ok(tensors)
    }

    fn place(&mut self, matrix: &str, part: &str) -> Option<&mut Option<StoredTensor<'a>>> {
        let matrix = match matrix {
            "w1" | "gate_proj" => &mut self.gate,
            "w3" | "up_proj" => &mut self.up,
            "w2" | "down_proj" => &mut self.down,
            "gate_up_proj" => &mut self.gate_up,
            _ => return None,
        };
        match part {
            "weight" => Some(&mut matrix.weight),
            "scale" | "weight_scale" | "weight_scale_inv" => Some(&mut matrix.scale),
            "input_scale" => Some(&mut matrix.input_scale),
            _ => None,
        }
    }

    fn matrices(&self) -> impl Iterator<Item = &MatrixTensors<'a>> {
        [&self.gate, &self.up, &self.down, &self.gate_up].into_iter()
    }

    /// The static scales of inputs.
    pub fn input_scales(&self) -> impl Iterator<Item = StoredTensor<'a>> {
        self.matrices().filter_map(|m| m.input_scale)
    }

    /// Whether matrices go by DeepSeek's names.
    fn named_by_deepseek(&self) -> bool {
        let mut weights = self.matrices().filter_map(|m| m.weight);
        weights.any(|w| {
            ["w1", "w2", "w3"]
                .iter()
                .any(|n| w.name.ends_with(&format!("{n}.weight")))
        })
    }

    /// I, as the tensors have it.
    pub fn intermediate(&self) -> Option<usize> {
        let side = |m: &MatrixTensors<'_>, axis| m.weight?.shape.get(axis).copied();
        side(&self.gate, 0)
            .or_else(|| side(&self.up, 0))
            .or_else(|| side(&self.gate_up, 0).map(|n| n / 2))
            .or_else(|| side(&self.down, 1))
    }

    /// The error of a matrix that is not there: `names` are DeepSeek's and Hugging Face's.
    pub fn missing(&self, checkpoint: &Checkpoint, prefix: &str, names: [&str; 2]) -> Error {
        let name = names[usize::from(!self.named_by_deepseek())];
        let dot = if prefix.is_empty() { "" } else { "." };
        let name = format!("{prefix}{dot}{name}.weight");
        Error::tensor(&name, checkpoint.path(), "missing")
    }
}

impl MatrixTensors<'_> {
    /// What the scales of this weight would be named.
    pub fn scale_name(weight: &str) -> String {
        let matrix = weight.strip_suffix("weight").unwrap_or(weight);
        match matrix.ends_with("_proj.") {
            true => format!("{matrix}weight_scale_inv"),
            false => format!("{matrix}scale"),
        }
    }
}

fn foreign(part: &str) -> Option<&'static str> {
    // modelopt's have a module before them: `input_quantizer._pre_quant_scale`.
    let own = part.rsplit_once("._").map_or(part, |(_, own)| own);
    let known = |(name, _): &&(&str, &str)| *name == own;
    FOREIGN.iter().find(known).map(|(_, reason)| *reason)
}

fn unexpected(tensor: &StoredTensor<'_>, part: &str) -> Error {
    match foreign(part) {
        Some(reason) => tensor.error(format!("unexpected under the prefix: {reason}")),
        None => tensor.error("unexpected under the prefix"),
    }
}
