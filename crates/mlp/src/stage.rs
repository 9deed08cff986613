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
    /// What `gate_up` and `act` are stored as; bf16 where the matmuls read FP8.
    pub float: Float,
    /// How the weights are stored.
    pub gate: WeightFormat,
    pub up: WeightFormat,
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
        let (op, ends, float) = (self.op, Float::BF16, self.float);
        let act = |request| Stage {
            name: "act",
            request,
            cols: self.intermediate,
            depth: 0,
        };
        let mut stages = Vec::new();
        match self.quant {
            None if self.is_merged() => stages.push(Stage {
                name: "gate_up",
                request: Request::GatedMatmul {
                    op,
                    x: ends,
                    weight: self.gate,
                    act: float,
                },
                cols: self.intermediate.saturating_mul(2),
                depth: self.hidden,
            }),
            None => {
                stages.extend(self.first(|weight| Request::Matmul {
                    x: ends,
                    weight,
                    y: float,
                }));
                stages.push(act(Request::Activation { op, float }));
            }
            Some(quant) => {
                stages.push(Stage {
                    name: "quantize",
                    request: Request::Quantize { quant, float: ends },
                    cols: self.hidden,
                    depth: 0,
                });
                stages.extend(self.quantized_gate_up(quant, float));
                stages.push(act(Request::ActivationQuant { op, quant, float }));
            }
        }
        stages.push(match self.quant {
            None => self.second(Request::Matmul {
                x: float,
                weight: self.down,
                y: self.y,
            }),
            Some(quant) => self.quantized_down(quant, self.y),
        });
        stages
    }

    /// A line for each stage that `plan` knows, in a pass over so many rows.
    pub fn plan(
        &self,
        rows: usize,
        plan: impl Fn(&Request, &Shape) -> Option<String>,
    ) -> Vec<String> {
        let line = |stage: Stage| {
            let shape = stage.shape(rows);
            let plan = plan(&stage.request, &shape)?;
            Some(format!("{} {shape}: {plan}", stage.name))
        };
        let all = |[gate_up, down]: [Stage; 2]| Some(vec![line(gate_up)?, line(down)?]);
        self.quantizing()
            .and_then(all)
            .or_else(|| self.quantizing_first().and_then(all))
            .unwrap_or_else(|| self.list().into_iter().filter_map(line).collect())
    }

    /// The stages of a pass that quantizes within its matmuls, where the backend has kernels for it.
    fn quantizing(&self) -> Option<[Stage; 2]> {
        let quant = self.quant.filter(|q| q.materialize() && self.is_merged())?;
        let (x, float) = (Float::BF16, self.float);
        let mut first = self.first(|weight| Request::QuantizingGatedMatmul {
            op: self.op,
            quant,
            x,
            weight,
            act: float,
        });
        let second = self.second(Request::QuantizingMatmul {
            quant,
            x: float,
            weight: self.down,
            y: self.y,
        });
        Some([first.next()?, second])
    }

    /// Those of a pass whose first matmul quantizes x before it and its results behind it.
    fn quantizing_first(&self) -> Option<[Stage; 2]> {
        let quant = self.quant.filter(|_| self.is_merged())?;
        let mut first = self.first(|weight| Request::QuantizingGatedMatmulQuant {
            op: self.op,
            quant,
            x: Float::BF16,
            weight,
        });
        Some([first.next()?, self.quantized_down(quant, self.y)])
    }

    /// Whether gate and up are one weight: only those of one format can be.
    pub fn is_merged(&self) -> bool {
        self.gate == self.up
    }

    /// The matmuls of quantized x by the gate and up weights: one, or one of each.
    pub fn quantized_gate_up(
        &self,
        quant: Quantization,
        y: Float,
    ) -> impl Iterator<Item = Stage> + use<> {
        self.first(move |weight| Request::QuantizedMatmul { quant, weight, y })
    }

    /// The matmul of the quantized activation by the down weight.
    pub const fn quantized_down(&self, quant: Quantization, y: Float) -> Stage {
        let weight = self.down;
        self.second(Request::QuantizedMatmul { quant, weight, y })
    }

    /// The matmuls by the gate and up weights.
    fn first<F: Fn(WeightFormat) -> Request>(
        &self,
        request: F,
    ) -> impl Iterator<Item = Stage> + use<F> {
        let (depth, i) = (self.hidden, self.intermediate);
        let parts = if self.is_merged() {
            [Some(("gate_up", self.gate, i.saturating_mul(2))), None]
        } else {
            [Some(("gate", self.gate, i)), Some(("up", self.up, i))]
        };
        parts
            .into_iter()
            .flatten()
            .map(move |(name, weight, cols)| Stage {
                name,
                request: request(weight),
                cols,
                depth,
            })
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
