//! The clamped activation on this machine's CPU, as a caller with slices gets it: type by shape, in
//! bytes moved a second.
//!
//! `cargo bench -p swiglu-bench --bench act_and_mul [-- --csv]`
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]

use std::convert::Infallible;
use std::time::Duration;

use swiglu_bench::{Options, Report, figure};
use swiglu_conformance::{Case, timing};
use swiglu_core::{Element, GatedActivation, Request, RowLayout, Tensor, TensorMut, bf16, f16};

const BUDGET: Duration = Duration::from_millis(500);

fn main() {
    let options = Options::from_env();
    let mut report = Report::new(&options);
    of_type::<bf16>(&mut report);
    of_type::<f16>(&mut report);
    of_type::<f32>(&mut report);
}

/// The standard activations of one type.
fn of_type<T: Element>(report: &mut Report) {
    for case in Case::standard() {
        match *case.request() {
            Request::Activation { op, float } if float == T::FLOAT => {
                measure::<T>(&op, &case, report);
            }
            _ => {}
        }
    }
}

fn measure<T: Element>(op: &GatedActivation, case: &Case, report: &mut Report) {
    let (rows, d) = (case.shape().rows, case.shape().cols);
    let mut random = fastrand::Rng::with_seed(1);
    let mut value = || T::from_f32((random.f32() - 0.5) * 40.0);
    let input: Vec<T> = (0..rows * 2 * d).map(|_| value()).collect();
    let mut output = vec![T::default(); rows * d];
    let (from, to) = (
        RowLayout::contiguous(rows, 2 * d),
        RowLayout::contiguous(rows, d),
    );
    let passes = |n| {
        for _ in 0..n {
            let input = Tensor::from_slice(&input, from).into();
            let output = TensorMut::from_slice(&mut output, to);
            swiglu_cpu::act_and_mul(op, input, output).unwrap();
        }
        Ok::<_, Infallible>(())
    };
    let Ok(timing) = timing::time(BUDGET, 3, passes);
    let bytes: usize = case.bytes().iter().sum();
    let figures = [
        figure("time", "us", timing.median * 1e6),
        figure("rate", "GB/s", bytes as f64 / timing.median / 1e9),
    ];
    report.case(op.name(), &format!("{} {rows}x{d}", T::FLOAT), &figures);
}
