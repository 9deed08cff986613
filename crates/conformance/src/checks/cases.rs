use swiglu_core::{
    ActAndMul, E4M3, Element, GatedActivation, HostWeight, Matmul, Quantization, Quantize,
    Quantized, Request, RowLayout, ScaleOrder, bf16, with_float,
};

use super::act_quant::against_the_reference as act_quant_against_the_reference;
use crate::compare::{Tally, against_reference, pairs_of_rows, shown};
use crate::harness::tensor_mut;
use crate::inputs::{Numbers, SampleValues, SampleWeight};
use crate::quant_case::QuantCase;
use crate::skips::Skips;
use crate::{ActLayouts, Case, Failure, FullBackend, Harness, Size};

/// Columns of a matmul that are compared: the first, the last, and this many between.
const COLUMNS: usize = 62;

/// Elements of an activation in a quick run; of matmuls it takes those of one row.
const QUICK: usize = 1 << 18;

/// The calls of models, in their sizes ([`Case::standard`]): activations are the reference's within
/// the bounds, and matmuls whose sums are exact in f32 are to the bit, in some of their columns.
///
/// # Errors
/// The first result that is otherwise.
pub fn standard_cases<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "standard_cases");
    for case in Case::standard() {
        let shape = case.shape();
        let small = match shape.depth {
            0 => shape.rows * shape.cols <= QUICK,
            _ => shape.rows == 1,
        };
        if (h.size == Size::Full || small) && skips.runs(case.request()) {
            run(h, &case).map_err(|f| f.within(&case))?;
        }
    }
    Ok(())
}

fn run<B: FullBackend>(h: &Harness<B>, case: &Case) -> Result<(), Failure> {
    let (rows, cols) = (case.shape().rows, case.shape().cols);
    match *case.request() {
        Request::Activation { op, float } => {
            with_float!(float, T => activation::<T, B>(h, &op, rows, cols))
        }
        Request::ActivationQuant { op, quant, .. } => {
            let x = Numbers::new(17).values::<bf16>(rows * 2 * cols, 15.0);
            let kind = (quant, ScaleOrder::RowMajor);
            let case = QuantCase::new(Some(&op), kind, rows, cols);
            act_quant_against_the_reference(h, &case, &x)
        }
        Request::Matmul { weight, .. } => {
            let weight = SampleWeight::new([cols, case.shape().depth], weight, EXACT, 18)?;
            matmul(h, &weight, rows)
        }
        Request::GatedMatmul { op, weight, .. } => {
            let shape = [cols / 2, case.shape().depth];
            let gate = SampleWeight::new(shape, weight, EXACT, 19)?;
            let up = SampleWeight::new(shape, weight, EXACT, 20)?;
            gated(h, &op, [&gate, &up], rows)
        }
        Request::QuantizedMatmul { quant, weight, .. } => {
            let weight = SampleWeight::new([cols, case.shape().depth], weight, EXACT, 21)?;
            quantized(h, case, &quant, &weight)
        }
        _ => Err(Failure::new("the suite has no call for this request yet")),
    }
}

const EXACT: SampleValues = SampleValues::Exact;

fn activation<T: Element, B: ActAndMul>(
    h: &Harness<B>,
    op: &GatedActivation,
    rows: usize,
    d: usize,
) -> Result<(), Failure> {
    let x = Numbers::new(16).values::<T>(rows * 2 * d, 25.0);
    let got = h.act_on_rows(op, &x, ActLayouts::contiguous(rows, d))?;
    let tally = &mut Tally::default();
    against_reference(op, &pairs_of_rows(op, &x, d), &got, &h.accuracy, tally)
}

/// Some of so many columns, from the first to the last.
fn some_of(columns: usize) -> impl Iterator<Item = usize> {
    let step = (columns - 1).div_ceil(COLUMNS + 1).max(1);
    (0..columns).step_by(step).chain([columns - 1])
}

/// x of whole numbers from -8 to 8, divided.
fn some_rows(rows: usize, k: usize, divisor: f32) -> Vec<bf16> {
    let mut numbers = Numbers::new(rows as u64);
    let value = |_| bf16::from_f32((numbers.below(17) as f32 - 8.0) / divisor);
    (0..rows * k).map(value).collect()
}

fn sum(x: impl Iterator<Item = f64>, row: &[f64]) -> f64 {
    x.zip(row).map(|(x, w)| x * w).sum()
}

/// Compares some columns of y with sums in f64, rounded once.
fn compare(
    y: &[bf16],
    weight: &HostWeight<'_>,
    x: impl Fn(usize, usize) -> f64,
) -> Result<(), Failure> {
    let (n, k) = (weight.rows(), weight.cols());
    let mut row = vec![0.0; k];
    for j in some_of(n) {
        weight.decode_row(j, &mut row);
        for (t, y) in y.chunks_exact(n).enumerate() {
            let want = <bf16 as Element>::from_f64(sum((0..k).map(|i| x(t, i)), &row));
            if y[j] != want {
                let (got, want) = (shown(y[j]), shown(want));
                return Err(Failure::new(format!(
                    "y[{t}, {j}]: got {got}, expected {want}"
                )));
            }
        }
    }
    Ok(())
}

fn matmul<B: Matmul>(h: &Harness<B>, weight: &SampleWeight, rows: usize) -> Result<(), Failure> {
    let [n, k] = weight.shape;
    let x = some_rows(rows, k, 1.0);
    let layouts = [k, n].map(|cols| RowLayout::contiguous(rows, cols));
    let y: Vec<bf16> = h.matmul(&x, layouts[0], &[weight.view()?], layouts[1])?;
    compare(&y, &weight.view()?, |t, i| f64::from(x[t * k + i].to_f32()))
}

fn gated<B: ActAndMul + Matmul>(
    h: &Harness<B>,
    op: &GatedActivation,
    [gate, up]: [&SampleWeight; 2],
    rows: usize,
) -> Result<(), Failure> {
    let [d, k] = gate.shape;
    // Sums on both sides of the limit.
    let x = some_rows(rows, k, 32.0);
    let (gate, up) = (gate.view()?, up.view()?);
    let [act, _] = h.matmul_act_and_mul(op, &x, gate.clone(), up.clone())?;
    let mut row = vec![0.0; k];
    for j in some_of(d) {
        let mut halves = [&gate, &up].map(|weight| {
            weight.decode_row(j, &mut row);
            let sums = x.chunks_exact(k).map(|x| {
                let x = x.iter().map(|x| f64::from(x.to_f32()));
                <bf16 as Element>::from_f64(sum(x, &row))
            });
            sums.collect::<Vec<_>>()
        });
        let [gates, ups] = &mut halves;
        let pairs: Vec<_> = gates.iter().copied().zip(ups.iter().copied()).collect();
        let got: Vec<_> = act.chunks_exact(d).map(|row| row[j]).collect();
        against_reference(op, &pairs, &got, &h.accuracy, &mut Tally::default())
            .map_err(|f| f.within(format!("column {j}")))?;
    }
    Ok(())
}

fn quantized<B: Quantize + Matmul>(
    h: &Harness<B>,
    case: &Case,
    quant: &Quantization,
    weight: &SampleWeight,
) -> Result<(), Failure> {
    let ([n, k], rows) = (weight.shape, case.shape().rows);
    let places = QuantCase::new(None, (*quant, ScaleOrder::RowMajor), rows, k);
    let mut numbers = Numbers::new(rows as u64);
    let value = |_| E4M3::from_f32_saturating(numbers.below(4) as f32 - 1.0).0;
    let codes: Vec<u8> = (0..rows * k).map(value).collect();
    let layout = places.scales();
    let mut scales = vec![0; layout.bytes()?];
    for t in 0..rows {
        for g in 0..layout.groups {
            let power = 2f32.powi(numbers.below(3) as i32 - 1);
            layout
                .format
                .write(&mut scales, layout.position(t, g), power);
        }
    }
    let (on_device, on_scales) = (h.upload_bytes(&codes)?, h.upload_bytes(&scales)?);
    let loaded = h.backend.load_weight(&[weight.view()?])?;
    let room = h.backend.scratch(case.request(), case.shape());
    let mut scratch = h.backend.alloc(room)?;
    let to = RowLayout::contiguous(rows, n);
    let mut y = h.poisoned::<bf16>(&to)?;
    let x = Quantized {
        codes: B::view(&on_device),
        layout: places.codes(),
        scales: B::view(&on_scales),
        scale_layout: layout,
    };
    let (room, output) = (B::view_mut(&mut scratch), tensor_mut::<B, bf16>(&mut y, to));
    h.backend
        .matmul_quantized(quant, x, &loaded, room, output)?;
    let y: Vec<bf16> = h.collect(&to, &y)?;
    compare(&y, &weight.view()?, |t, i| {
        let scale = layout
            .format
            .read(&scales, layout.position(t, i / quant.group()));
        f64::from(E4M3(codes[t * k + i]).to_f32()) * f64::from(scale)
    })
}
