//! The weights of an MLP out of a `VarBuilder`.

use candle_core::{Device, Layout, Result, Storage, Tensor};
use candle_nn::VarBuilder;
use swiglu_core::{HostWeight, WeightFormat};
use swiglu_mlp::{MlpConfig, SharedExpert};

use crate::error::{OrCandle as _, argument, float};
use crate::host::bytes;
use crate::rows::rows;

/// Gate and up \[I, H\] and down \[H, I\], contiguous on the CPU.
pub(crate) struct Weights {
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// How checkpoints name the matrices.
enum Naming {
    /// A matrix each.
    Apart {
        gate: &'static str,
        up: &'static str,
        down: &'static str,
    },
    /// Gate and up in one, the gate's rows first.
    Merged {
        gate_up: &'static str,
        down: &'static str,
    },
}

const NAMINGS: [Naming; 3] = [
    // Hugging Face's.
    Naming::Apart {
        gate: "gate_proj",
        up: "up_proj",
        down: "down_proj",
    },
    Naming::Merged {
        gate_up: "gate_up_proj",
        down: "down_proj",
    },
    // DeepSeek's own.
    Naming::Apart {
        gate: "w1",
        up: "w3",
        down: "w2",
    },
];

/// What must not stand beside a weight: scales, as those of FP8 weights, and biases.
const SCALES: [&str; 3] = ["scale", "weight_scale_inv", "weight_scale"];
const BIAS: &str = "bias";

/// In no checkpoint: a builder that has it makes up whatever it is asked for.
const NO_TENSOR: &str = "no tensor's name";

impl Naming {
    /// What tells it from the others.
    const fn first(&self) -> &'static str {
        match self {
            Self::Apart { gate, .. } => gate,
            Self::Merged { gate_up, .. } => gate_up,
        }
    }

    fn matrices(&self) -> Vec<&'static str> {
        match self {
            Self::Apart { gate, up, down } => vec![gate, up, down],
            Self::Merged { gate_up, down } => vec![gate_up, down],
        }
    }

    /// The naming of what a builder has; none where it has nothing, or whatever it is asked for.
    fn of(vb: &VarBuilder<'_>) -> Result<Option<Self>> {
        if vb.contains_tensor(NO_TENSOR) {
            return Ok(None);
        }
        let is_there = |naming: &Self| vb.contains_tensor(&weight(naming.first()));
        let mut found = NAMINGS.into_iter().filter(is_there);
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(naming), None) => {
                naming.check_alone(vb)?;
                Ok(Some(naming))
            }
            (Some(one), Some(other)) => {
                let expected = format!("one naming under {:?}", vb.prefix());
                let got = format!("{} and {}", weight(one.first()), weight(other.first()));
                Err(argument("vb", expected, got))
            }
        }
    }

    /// Checks that nothing stands beside the weights that would be left out.
    fn check_alone(&self, vb: &VarBuilder<'_>) -> Result<()> {
        for matrix in self.matrices() {
            let beside =
                |kind: &str| Some(format!("{matrix}.{kind}")).filter(|n| vb.contains_tensor(n));
            let under = vb.prefix();
            if let Some(scale) = SCALES.into_iter().find_map(beside) {
                let expected = "weights without scales: FP8 weights are loaded from a Checkpoint, by \
                                DeepseekV4Mlp::load";
                return Err(argument("vb", expected, format!("{under}.{scale}")));
            }
            if let Some(bias) = beside(BIAS) {
                return Err(argument(
                    "vb",
                    "weights without biases",
                    format!("{under}.{bias}"),
                ));
            }
        }
        Ok(())
    }
}

fn weight(matrix: &str) -> String {
    format!("{matrix}.weight")
}

impl Weights {
    /// Takes them out of a builder, in its type.
    pub(crate) fn find(config: &MlpConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.check().or_candle()?;
        float("vb", vb.dtype())?;
        // Backends take them from the host's memory.
        let mut vb = vb.set_device(Device::Cpu);
        if !config.prefix.is_empty() {
            vb = vb.pp(&config.prefix);
        }
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let get = |matrix: &str, [rows, cols]: [usize; 2]| {
            // The hint is for a map of variables, which makes those that it does not have.
            let made = candle_nn::init::DEFAULT_KAIMING_NORMAL;
            vb.get_with_hints((rows, cols), &weight(matrix), made)?
                .contiguous()
        };
        let missing = |error: candle_core::Error| {
            let expected = format!(
                "weights of w1, gate_proj or gate_up_proj under {:?}",
                vb.prefix()
            );
            argument("vb", expected, error)
        };
        match Naming::of(&vb)? {
            None => Ok(Self {
                gate: get("gate_proj", [i, h]).map_err(missing)?,
                up: get("up_proj", [i, h])?,
                down: get("down_proj", [h, i])?,
            }),
            Some(Naming::Apart { gate, up, down }) => Ok(Self {
                gate: get(gate, [i, h])?,
                up: get(up, [i, h])?,
                down: get(down, [h, i])?,
            }),
            Some(Naming::Merged { gate_up, down }) => {
                let both = i.checked_mul(2);
                let both =
                    both.ok_or_else(|| argument("intermediate_size", "a smaller size", i))?;
                let gate_up = get(gate_up, [both, h])?;
                Ok(Self {
                    gate: gate_up.narrow(0, 0, i)?,
                    up: gate_up.narrow(0, i, i)?,
                    down: get(down, [h, i])?,
                })
            }
        }
    }

    /// One of them that a gradient is kept for: its first element.
    pub(crate) fn tracked(&self) -> Result<Option<Tensor>> {
        let weights = [&self.gate, &self.up, &self.down];
        let tracked = weights.into_iter().find(|weight| weight.track_op());
        tracked
            .map(|weight| weight.flatten_all()?.narrow(0, 0, 1))
            .transpose()
    }

    /// Lends them where they lie.
    pub(crate) fn as_expert<R>(
        &self,
        call: impl FnOnce(&SharedExpert<'_>) -> Result<R>,
    ) -> Result<R> {
        let (gate, gate_layout) = self.gate.storage_and_layout();
        let (up, up_layout) = self.up.storage_and_layout();
        let (down, down_layout) = self.down.storage_and_layout();
        call(&SharedExpert::new(
            host("gate", &gate, gate_layout)?,
            host("up", &up, up_layout)?,
            host("down", &down, down_layout)?,
        ))
    }
}

/// A contiguous matrix on the CPU as a weight.
fn host<'a>(name: &'static str, storage: &'a Storage, layout: &Layout) -> Result<HostWeight<'a>> {
    let Storage::Cpu(storage) = storage else {
        return Err(argument(name, "a tensor on the CPU", "one elsewhere"));
    };
    let (float, bytes) = bytes(name, storage)?;
    let place = rows(name, layout)?;
    let start = place.offset * float.size();
    let len = place.rows * place.cols * float.size();
    let format = WeightFormat::Float(float);
    HostWeight::new(
        [place.rows, place.cols],
        format,
        &bytes[start..start + len],
        &[],
    )
    .or_candle()
}
