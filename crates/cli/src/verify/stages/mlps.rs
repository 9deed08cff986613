//! The MLP, with bf16 and with FP8 activations.

use std::sync::Arc;

use swiglu::mlp::{
    ActivationQuant, DeepseekV4Mlp, HiddenAct, MlpConfig, Shard, SharedExpert, Workspace,
};
use swiglu::{
    E4M3, Element, Float, GatedActivation, Limit, Quantization, Rounding, RowLayout, ScaleFormat,
    Tensor, TensorMut, WeightFormat, bf16, reference,
};
use swiglu_conformance::inputs::{Numbers, SampleValues, SampleWeight};
use swiglu_conformance::{Failure, FullBackend, filled, relative_error};

use super::matmuls::{Rows, compare, decoded, read, widened};
use super::{FUSED, Measured, row};
use crate::verify::report::StageRow;

const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 192;

/// A row for each kind of weights and activations.
pub fn rows<B: FullBackend>(backend: &Arc<B>) -> Vec<StageRow> {
    let fp8 = |side| WeightFormat::Fp8 {
        scales: ScaleFormat::E8M0,
        block: [side; 2],
    };
    let kinds = [
        (WeightFormat::Float(Float::BF16), ActivationQuant::None),
        (fp8(128), ActivationQuant::None),
        (fp8(128), ActivationQuant::Fp8Block),
        (fp8(32), ActivationQuant::Fp8Block),
    ];
    let of = |(format, activations)| mlp_row(backend, format, activations);
    kinds.into_iter().map(of).collect()
}

fn mlp_row<B: FullBackend>(
    backend: &Arc<B>,
    format: WeightFormat,
    activations: ActivationQuant,
) -> StageRow {
    let read = match activations {
        ActivationQuant::None => "bf16",
        ActivationQuant::Fp8Block => "FP8",
    };
    let name = format!("MLP of {read} activations by {format}");
    let trial = match Trial::new(format, activations) {
        Ok(trial) => trial,
        Err(failure) => return StageRow::new(name, Err(failure)),
    };
    match trial.config.requests(format, format) {
        Ok(requests) => row(&**backend, name, &requests, || {
            trial.run(backend, 1)?;
            trial.run(backend, 33)
        }),
        Err(error) => StageRow::new(name, Err(Failure::new(error.to_string()))),
    }
}

struct Trial {
    config: MlpConfig,
    op: GatedActivation,
    quant: Option<Quantization>,
    /// Gate, up and down.
    weights: [SampleWeight; 3],
}

fn told(error: swiglu::mlp::Error) -> Failure {
    Failure::new(error.to_string())
}

impl Trial {
    fn new(format: WeightFormat, activation_quant: ActivationQuant) -> Result<Self, Failure> {
        let (h, i) = (HIDDEN, INTERMEDIATE);
        let config = MlpConfig {
            hidden_size: h,
            intermediate_size: i,
            hidden_act: HiddenAct::Silu,
            limit: Some(Limit::new(10.0)?),
            rounding: Rounding::Official,
            block: format.scaling().map(|(_, block)| block),
            ue8m0: false,
            activation_quant,
            reduce_results: false,
            shard: Shard::WHOLE,
            prefix: String::new(),
        };
        let weight = |shape, seed| SampleWeight::new(shape, format, SampleValues::Random, seed);
        Ok(Self {
            op: config.activation().map_err(told)?,
            quant: config.quantization().map_err(told)?,
            weights: [weight([i, h], 6)?, weight([i, h], 7)?, weight([h, i], 8)?],
            config,
        })
    }

    /// What a matmul reads of an input.
    fn seen(&self, x: &[bf16], cols: usize) -> Rows {
        let Some(quant) = &self.quant else {
            return widened(x, cols);
        };
        let row = |row: &[bf16]| {
            let values: Vec<f32> = row.iter().map(|x| x.to_f32()).collect();
            let (mut codes, mut scales) = (vec![0; cols], vec![0.0; quant.groups(cols)]);
            reference::quantize_row(quant, &values, &mut codes, |g, scale| scales[g] = scale);
            let value = |(j, code): (usize, &u8)| {
                f64::from(E4M3(*code).to_f32()) * f64::from(scales[j / quant.group()])
            };
            codes.iter().enumerate().map(value).collect()
        };
        x.chunks(cols).map(row).collect()
    }

    /// Runs the MLP stage by stage and as it runs in an engine.
    fn run<B: FullBackend>(&self, backend: &Arc<B>, t: usize) -> Measured {
        let (h, i) = (HIDDEN, INTERMEDIATE);
        let [gate, up, down] = &self.weights;
        let expert = SharedExpert::new(gate.view()?, up.view()?, down.view()?);
        let mlp = DeepseekV4Mlp::load(Arc::clone(backend), &self.config, &expert).map_err(told)?;
        let x: Vec<bf16> = Numbers::new(9).values(t * h, 1.0);
        let on_device = filled(&**backend, bytemuck::cast_slice(&x))?;
        let room = |cols: usize| backend.alloc(t * cols * size_of::<bf16>());
        let (mut gate_up, mut act, mut y, mut fused) = (room(2 * i)?, room(i)?, room(h)?, room(h)?);
        let from = || {
            let rows = RowLayout::contiguous(t, h);
            Tensor::new(B::view(&on_device), Float::BF16, rows)
        };
        let mut workspace = Workspace::new();
        mlp.forward_stages(
            from(),
            TensorMut::contiguous(B::view_mut(&mut gate_up), Float::BF16, t, 2 * i),
            TensorMut::contiguous(B::view_mut(&mut act), Float::BF16, t, i),
            TensorMut::contiguous(B::view_mut(&mut y), Float::BF16, t, h),
            &mut workspace,
        )
        .map_err(told)?;
        let to = TensorMut::contiguous(B::view_mut(&mut fused), Float::BF16, t, h);
        mlp.forward(from(), to, &mut workspace).map_err(told)?;
        let gate_up = read::<bf16, B>(backend, &gate_up, t * 2 * i)?;
        let act = read::<bf16, B>(backend, &act, t * i)?;
        let y = read::<bf16, B>(backend, &y, t * h)?;
        let fused = read::<bf16, B>(backend, &fused, t * h)?;

        let sums = backend.accuracy().accumulation;
        let stacked = [decoded(&gate.view()?), decoded(&up.view()?)].concat();
        compare(&gate_up, &self.seen(&x, h), &stacked, sums).map_err(|f| f.within("gate_up"))?;
        self.check_act(&gate_up, &act, backend.accuracy().ulps(Float::BF16))?;
        let down = decoded(&down.view()?);
        compare(&y, &self.seen(&act, i), &down, sums).map_err(|f| f.within("down"))?;
        let error = relative_error(&fused, &y);
        let measured = format!("{error:.1e} by norm from its stages, of {FUSED:.0e}");
        match error <= FUSED {
            true => Ok(measured),
            false => Err(Failure::new(measured)),
        }
    }

    /// The activation of what the first matmul gave.
    fn check_act(&self, gate_up: &[bf16], act: &[bf16], most: u32) -> Result<(), Failure> {
        let i = INTERMEDIATE;
        for (at, &got) in act.iter().enumerate() {
            let row = &gate_up[at / i * 2 * i..][..2 * i];
            let (gate, up) = self.op.positions(i, at % i);
            let want = reference::gated(&self.op, row[gate], row[up]);
            if got.is_nan() || want.is_nan() || got.ulps_between(want) > most {
                return Err(Failure::new(format!(
                    "act[{}, {}] of gate {} and up {} is {got}, expected {want}",
                    at / i,
                    at % i,
                    row[gate],
                    row[up]
                )));
            }
        }
        Ok(())
    }
}
