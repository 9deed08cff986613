use indicatif::{ProgressBar, ProgressStyle};
use swiglu::{DType, GatedActivation, Rounding};
use swiglu_testing::{Check, Expectations, Harness, Size, checks};

use super::platform::Platform;
use super::report::{CheckRow, OperationRow, PlatformReport, Report};
use crate::act::{compared, dispatcher};
use crate::arguments::Verify;
use crate::failure::{Failure, Result};

/// The checks on all operations together, with what they show.
const CHECKS: [(&str, Check<Platform>); 8] = [
    (
        "the clamp is before the activation, to the bit",
        checks::the_clamp_is_before_the_activation,
    ),
    (
        "swiglustep's clamp is after it, to the bit",
        checks::the_clamp_of_step_is_after_the_activation,
    ),
    (
        "limits from 0.333 to 15",
        checks::limits_against_the_reference,
    ),
    (
        "slopes, offsets, thresholds and bounds",
        checks::alpha_and_beta,
    ),
    ("halves in every layout", checks::layouts_agree),
    ("rows from 1 to 13,824 wide", checks::shapes_and_strides),
    (
        "rows alone and in a batch, to the bit",
        checks::rows_alone_equal_the_batch,
    ),
    ("random shapes and values", checks::random_shapes_and_values),
];

/// Checks the platforms here: all of them, or the one that the caller or the environment names.
///
/// # Errors
/// A platform that does not exist or cannot be opened, or an operation that cannot be built. What
/// the checks find is in the report.
pub fn survey(arguments: &Verify) -> Result<Report> {
    let ops = operations(arguments)?;
    let dispatcher = dispatcher(arguments.platform.as_deref())?;
    // An unknown name, or a platform that is not here, ends with the reason.
    let _held_open = dispatcher.device(&GatedActivation::deepseek_v4(), DType::BF16)?;
    let only = arguments.op.is_some().then(|| ops[0].operator());
    let mut report = Report::default();
    let mut harnesses = Vec::new();
    for (name, opened) in dispatcher.registry().probe(compared(&dispatcher)) {
        match opened {
            Ok(backend) => {
                let expectations = expectations(name, arguments.exhaustive);
                let harness = Harness::new(Platform::new(backend, only), expectations);
                harnesses.push((name, harness));
            }
            Err(reason) => report.absent(name, reason),
        }
    }
    if harnesses.is_empty() {
        return Err(Failure::Input(
            "platform: expected one to check, got none but the reference".to_owned(),
        ));
    }
    let bar = bar(harnesses.len() * (ops.len() * DType::COMPUTE.len() + CHECKS.len()));
    for (name, harness) in &harnesses {
        report.platforms.push(check(name, harness, &ops, &bar));
    }
    bar.finish_and_clear();
    Ok(report)
}

/// The operations that are asked for, in the rounding that is asked for or in both.
fn operations(arguments: &Verify) -> Result<Vec<GatedActivation>> {
    let ops = match &arguments.op {
        Some(name) => vec![arguments.settings.activation(name)?],
        None => GatedActivation::ALL.to_vec(),
    };
    let roundings = match arguments.settings.rounding {
        Some(rounding) => vec![rounding.into()],
        None => vec![Rounding::Official, Rounding::Eager],
    };
    let each = |op: GatedActivation| roundings.iter().map(move |r| op.with_rounding(*r));
    Ok(ops.into_iter().flat_map(each).collect())
}

fn expectations(platform: &str, exhaustive: bool) -> Expectations {
    let expected = match platform {
        "wgpu" => Expectations::shader(),
        _ => Expectations::exact(),
    };
    let size = if exhaustive { Size::Full } else { Size::Quick };
    Expectations { size, ..expected }
}

/// Progress on standard error, where that is a terminal.
fn bar(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Everything on one platform.
pub fn check(
    name: &str,
    harness: &Harness<Platform>,
    ops: &[GatedActivation],
    bar: &ProgressBar,
) -> PlatformReport {
    let mut report = PlatformReport::new(name, &harness.backend);
    for op in ops {
        for dtype in DType::COMPUTE {
            bar.set_message(format!("{name}: {} in {dtype}", op.name()));
            // In f32 nothing is rounded between the steps: the two modes are one.
            let same = dtype == DType::F32 && op.rounding() == Rounding::Eager;
            if !same || !ops.contains(&op.with_rounding(Rounding::Official)) {
                report.operations.push(OperationRow::of(harness, op, dtype));
            }
            bar.inc(1);
        }
    }
    for (what, check) in CHECKS {
        bar.set_message(format!("{name}: {what}"));
        report.checks.push(CheckRow::new(what, check(harness)));
        bar.inc(1);
    }
    report
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swiglu::mlp::{MlpConfig, SharedExpert};
    use swiglu::{
        ActAndMul, ActShape, AnyAct, AnyBackend, AnyMlp, Backend, HostBuffer, Quantization,
        Support, Tensor, TensorMut, reference::Reference,
    };

    use super::*;

    /// The reference with a fault.
    #[derive(Clone, Copy, PartialEq)]
    enum Wrong {
        Nowhere,
        NoClamp,
        TailUnwritten,
        NanAsZero,
    }

    impl AnyBackend for Wrong {
        fn platform(&self) -> &'static str {
            "wrong"
        }

        fn description(&self) -> String {
            "made to fail".to_owned()
        }

        fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
            Backend::supports(&Reference, op, dtype)
        }

        fn supports_weight(&self, _: DType) -> Support {
            Support::No("has no products".to_owned())
        }

        fn supports_quant(&self, _: &Quantization, _: DType) -> Support {
            Support::No("does not quantize".to_owned())
        }

        fn supports_quantized(&self, _: &Quantization, _: DType) -> Support {
            Support::No("has no products".to_owned())
        }

        fn act_and_mul(
            &self,
            op: &GatedActivation,
            dtype: DType,
            shape: ActShape,
            input: &[u8],
            output: &mut [u8],
        ) -> swiglu::Result<()> {
            let unclamped = GatedActivation::silu_and_mul().with_rounding(op.rounding());
            let op = match (self, op.name()) {
                (Self::NoClamp, "silu_and_mul_with_clamp") => &unclamped,
                _ => op,
            };
            let mut x = HostBuffer::zeroed(input.len())?;
            x.write(input)?;
            let mut y = HostBuffer::zeroed(output.len())?;
            let ActShape { rows, d } = shape;
            let from = Tensor::contiguous(&x, dtype, rows, 2 * d);
            let to = TensorMut::contiguous(&mut y, dtype, rows, d);
            ActAndMul::act_and_mul(&Reference, op, from, to)?;
            y.read(output)?;
            let last = output.chunks_exact_mut(dtype.size()).last();
            if let Some(last) = last.filter(|_| *self == Self::TailUnwritten && d % 8 != 0) {
                last.fill(0);
            }
            if *self == Self::NanAsZero && dtype == DType::BF16 {
                for y in output.chunks_exact_mut(2).filter(|y| *y == [0xc0, 0x7f]) {
                    y.fill(0);
                }
            }
            Ok(())
        }

        fn act_and_mul_quant(
            &self,
            _: &GatedActivation,
            quant: &Quantization,
            _: DType,
            _: ActShape,
            _: &[u8],
            _: &mut [u8],
            _: &mut [u8],
        ) -> swiglu::Result<()> {
            Err(swiglu::Error::argument("quant", "none", quant))
        }

        fn load_act(
            self: Arc<Self>,
            _: &GatedActivation,
            _: Option<&Quantization>,
            _: DType,
            _: ActShape,
            _: &[u8],
            _: usize,
        ) -> swiglu::Result<Box<dyn AnyAct>> {
            Err(swiglu::Error::argument("copies", "none", "some"))
        }

        fn load_mlp(
            self: Arc<Self>,
            _: &MlpConfig,
            _: &SharedExpert<'_>,
        ) -> std::result::Result<Box<dyn AnyMlp>, swiglu::mlp::Error> {
            Err(swiglu::Error::argument("weights", "nothing", "weights").into())
        }
    }

    fn report(wrong: Wrong, ops: &[GatedActivation]) -> PlatformReport {
        let platform = Platform::new(Arc::new(wrong), None);
        let harness = Harness::new(platform, expectations("wrong", false));
        check("wrong", &harness, ops, &ProgressBar::hidden())
    }

    fn failed(report: &PlatformReport) -> Vec<&str> {
        let checks = report.checks.iter().filter(|row| !row.passes);
        checks.map(|row| row.check).collect()
    }

    #[test]
    fn the_reference_passes() {
        let report = report(Wrong::Nowhere, &GatedActivation::ALL);
        assert_eq!(report.failures().next(), None);
        assert!(report.operations.iter().all(|row| row.worst_ulps == 0));
        assert!(report.operations.iter().all(|row| row.results > 100_000));
    }

    #[test]
    fn a_lost_clamp_fails_where_there_is_one() {
        let ops = [
            GatedActivation::silu_and_mul(),
            GatedActivation::deepseek_v4(),
        ];
        let report = report(Wrong::NoClamp, &ops);
        let passes: Vec<_> = report.operations.iter().map(|row| row.passes).collect();
        assert_eq!(passes, [true, true, true, false, false, false]);
        assert!(failed(&report).contains(&CHECKS[0].0));
        let report = Report {
            platforms: vec![report],
            absent: Vec::new(),
        };
        let message = report.outcome().unwrap_err().to_string();
        assert!(
            message.contains("on wrong: silu_and_mul_with_clamp"),
            "{message}"
        );
        let mut text = Vec::new();
        report.print(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("FAILED") && !text.contains("as the definition says"));
    }

    #[test]
    fn a_tail_that_is_not_written_fails_the_shapes() {
        let report = report(Wrong::TailUnwritten, &[]);
        assert!(failed(&report).contains(&"rows from 1 to 13,824 wide"));
    }

    #[test]
    fn a_nan_that_is_lost_is_told_by_type() {
        let report = report(Wrong::NanAsZero, &[GatedActivation::silu_and_mul()]);
        let lost = report.operations.iter().filter(|row| !row.nan_propagates);
        assert_eq!(lost.map(|row| row.dtype).collect::<Vec<_>>(), ["bf16"]);
    }
}
