use swiglu_core::{Float, GatedActivation, Quantization, Request, Shape, WeightFormat};

/// One stage of a forward pass: what it asks of the backend, and the sizes of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    pub name: &'static str,
    pub request: Request,
    cols: usize,
    depth: usize,
}

impl Stage {
    /// The sizes in a pass over so many rows.
    pub const fn shape(&self, rows: usize) -> Shape {
        Shape {
            rows,
            cols: self.cols,
            depth: self.depth,
        }
    }
}

/// All that the stages of an MLP follow from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stages {
    pub op: GatedActivation,
    pub quant: Option<Quantization>,
    /// How the gate and up weights are stored.
    pub gate_up: WeightFormat,
    pub down: WeightFormat,
    /// What the second matmul gives: f32 where the ranks' sums are still to be added.
    pub y: Float,
    pub hidden: usize,
    pub intermediate: usize,
}

impl Stages {
    /// The stages of [`crate::DeepseekV4Mlp::forward`] in order, with x in bf16, and y too unless
    /// it is reduced.
    pub fn list(&self) -> Vec<Stage> {
        let (op, float) = (self.op, Float::BF16);
        match self.quant {
            None => vec![
                self.first(Request::GatedMatmul {
                    op,
                    x: float,
                    weight: self.gate_up,
                    act: float,
                }),
                self.second(Request::Matmul {
                    x: float,
                    weight: self.down,
                    y: self.y,
                }),
            ],
            Some(quant) => vec![
                Stage {
                    name: "quantize",
                    request: Request::Quantize { quant, float },
                    cols: self.hidden,
                    depth: 0,
                },
                self.quantized_gate_up(quant, float),
                Stage {
                    name: "act",
                    request: Request::ActivationQuant { op, quant, float },
                    cols: self.intermediate,
                    depth: 0,
                },
                self.quantized_down(quant, self.y),
            ],
        }
    }

    /// The matmul of quantized x by the gate and up weights.
    pub const fn quantized_gate_up(&self, quant: Quantization, y: Float) -> Stage {
        let weight = self.gate_up;
        self.first(Request::QuantizedMatmul { quant, weight, y })
    }

    /// The matmul of the quantized activation by the down weight.
    pub const fn quantized_down(&self, quant: Quantization, y: Float) -> Stage {
        let weight = self.down;
        self.second(Request::QuantizedMatmul { quant, weight, y })
    }

    const fn first(&self, request: Request) -> Stage {
        Stage {
            name: "gate_up",
            request,
            cols: self.intermediate.saturating_mul(2),
            depth: self.hidden,
        }
    }

    const fn second(&self, request: Request) -> Stage {
        Stage {
            name: "down",
            request,
            cols: self.hidden,
            depth: self.intermediate,
        }
    }
}
