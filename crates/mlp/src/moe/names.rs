//! How checkpoints name the tensors of a layer with routed experts.

use std::collections::BTreeMap;

use crate::checkpoint::StoredTensor;
use crate::{Checkpoint, Error, Result, text};

/// The tensors of a layer, but for those of each expert, which are found by their own prefixes.
#[derive(Debug, Default)]
pub struct MoeTensors<'a> {
    pub gate: Option<StoredTensor<'a>>,
    pub bias: Option<StoredTensor<'a>>,
    pub bias_vl: Option<StoredTensor<'a>>,
    pub tid2eid: Option<StoredTensor<'a>>,
    /// All experts in one, \[E, 2I, H\] and \[E, H, I\].
    pub gate_up_proj: Option<StoredTensor<'a>>,
    pub down_proj: Option<StoredTensor<'a>>,
    /// The numbers of experts that have tensors of their own, each with the first of them.
    pub experts: BTreeMap<usize, StoredTensor<'a>>,
}

impl<'a> MoeTensors<'a> {
    /// The tensors under a prefix.
    ///
    /// # Errors
    /// As [`Checkpoint::under`], a tensor by two names, and one that is none of the layer's.
    pub fn find(checkpoint: &'a Checkpoint, prefix: &str) -> Result<Self> {
        let mut tensors = Self::default();
        for tensor in checkpoint.under(prefix)? {
            let rest = match prefix {
                "" => tensor.name,
                _ => &tensor.name[prefix.len() + 1..],
            };
            tensors.take(tensor, rest)?;
        }
        Ok(tensors)
    }

    fn take(&mut self, tensor: StoredTensor<'a>, rest: &str) -> Result<()> {
        let place = match rest {
            "gate.weight" => &mut self.gate,
            "gate.bias" | "gate.e_score_correction_bias" => &mut self.bias,
            "gate.bias_vl" => &mut self.bias_vl,
            "gate.tid2eid" => &mut self.tid2eid,
            "experts.gate_up_proj" => &mut self.gate_up_proj,
            "experts.down_proj" => &mut self.down_proj,
            _ => {
                // Those of an MLP are found, and anything else refused, under its own prefix.
                if rest.starts_with("shared_experts.") {
                    return Ok(());
                }
                let expert = rest.strip_prefix("experts.");
                let number = expert.and_then(|rest| rest.split_once('.')?.0.parse().ok());
                let exact = |n: &usize| rest.starts_with(&format!("experts.{n}."));
                let Some(number) = number.filter(exact) else {
                    return Err(tensor.error("unexpected under the prefix of a layer with a gate"));
                };
                self.experts.entry(number).or_insert(tensor);
                return Ok(());
            }
        };
        match place.replace(tensor) {
            None => Ok(()),
            Some(other) => Err(tensor.error(format!("the same as {}", text::name(other.name)))),
        }
    }

    /// Checks that there are so many experts, numbered from 0.
    pub fn check_experts(&self, checkpoint: &Checkpoint, prefix: &str, count: usize) -> Result<()> {
        if let Some((_, extra)) = self.experts.range(count..).next() {
            let problem = format!("unexpected: the configuration has {count} routed experts");
            return Err(extra.error(problem));
        }
        // As many as there are tensors at the most: a count from a file may be any.
        let mut numbers = self.experts.keys();
        match (0..count).find(|n| numbers.next() != Some(n)) {
            None => Ok(()),
            Some(missing) => {
                let name = format!("{prefix}.experts.{missing}.*");
                let problem = format!("missing, of {count} routed experts");
                Err(Error::tensor(&name, checkpoint.path(), problem))
            }
        }
    }
}

impl Checkpoint {
    /// Whether the layer under a prefix has routed experts: there is a `gate.weight`. Only names are
    /// looked at.
    pub fn has_gate(&self, prefix: &str) -> bool {
        let name = match prefix {
            "" => "gate.weight".to_owned(),
            _ => format!("{prefix}.gate.weight"),
        };
        self.names().any(|n| n == name)
    }

    /// What the names of layers with routed experts begin with. Only names are looked at.
    pub fn moe_prefixes(&self) -> Vec<&str> {
        let prefix = |name: &'static str| move |n: &str| n.ends_with(name);
        let ends = prefix(".gate.weight");
        let gates = self.names().filter(|name| ends(name));
        gates
            .filter_map(|name| name.strip_suffix(".gate.weight"))
            .collect()
    }
}
