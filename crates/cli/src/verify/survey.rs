use indicatif::{ProgressBar, ProgressStyle};
use swiglu::{Float, GatedActivation, Rounding};
use swiglu_conformance::{Check, Harness, Size, checks};

use super::compared;
use super::platform::Platform;
use super::report::{CheckRow, OperationRow, PlatformReport, Report};
use super::stages::stages_of;
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
    let dispatcher = arguments.platform.dispatcher()?;
    // An unknown name, or a platform that is not here, ends with the reason.
    let _held_open = dispatcher.device(&GatedActivation::deepseek_v4(), Float::BF16)?;
    let only = arguments.op.is_some().then(|| ops[0].operator());
    let mut report = Report::default();
    let mut harnesses = Vec::new();
    let size = if arguments.exhaustive {
        Size::Full
    } else {
        Size::Quick
    };
    for (name, opened) in dispatcher.probe(compared(&dispatcher)) {
        match opened {
            Ok(backend) => {
                let harness = Harness::new(Platform::new(backend, only), size);
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
    let bar = bar(harnesses.len() * (ops.len() * Float::ALL.len() + CHECKS.len()));
    for (name, harness) in &harnesses {
        let mut platform = check(name, harness, &ops, &bar);
        if only.is_none() {
            bar.set_message(format!("{name}: matmuls, quantization and the MLP"));
            let options = &dispatcher.dispatch().open;
            platform.stages = stages_of(name, options).map_err(Failure::Input)?;
        }
        report.platforms.push(platform);
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
        for float in Float::ALL {
            bar.set_message(format!("{name}: {} in {float}", op.name()));
            // In f32 nothing is rounded between the steps: the two modes are one.
            let same = float == Float::F32 && op.rounding() == Rounding::Eager;
            if !same || !ops.contains(&op.with_rounding(Rounding::Official)) {
                report.operations.push(OperationRow::of(harness, op, float));
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

    use swiglu::{
        Accuracy, ActAndMul, AnyBackend, Backend, Element, GateUp, Matmul, Quantize, Request,
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
        /// Results in f32 that are six units in the last place off, and the bound that is promised.
        Inexact {
            promise: u32,
        },
    }

    impl Backend for Wrong {
        swiglu_core::host_memory!();

        fn platform(&self) -> &'static str {
            "wrong"
        }

        fn description(&self) -> String {
            "made to fail".to_owned()
        }

        fn accuracy(&self) -> Accuracy {
            let f32_ulps = match self {
                Self::Inexact { promise } => *promise,
                _ => Accuracy::EXACT.f32_ulps,
            };
            Accuracy {
                f32_ulps,
                ..Accuracy::EXACT
            }
        }

        fn supports(&self, request: &Request) -> Support {
            match request {
                Request::Activation { .. } => Support::Native,
                _ => Support::No("only activates".to_owned()),
            }
        }
    }

    const fn on_reference<'a>(t: Tensor<'a, Wrong>) -> Tensor<'a, Reference> {
        Tensor::new(t.view, t.float, t.layout)
    }

    impl ActAndMul for Wrong {
        fn act_and_mul(
            &self,
            op: &GatedActivation,
            input: GateUp<'_, Self>,
            output: TensorMut<'_, Self>,
        ) -> swiglu::Result<()> {
            let unclamped = GatedActivation::silu_and_mul().with_rounding(op.rounding());
            let op = match (self, op.name()) {
                (Self::NoClamp, "silu_and_mul_with_clamp") => &unclamped,
                _ => op,
            };
            let input: GateUp<'_, Reference> = match input {
                GateUp::Merged(input) => on_reference(input).into(),
                GateUp::Split { gate, up } => GateUp::Split {
                    gate: on_reference(gate),
                    up: on_reference(up),
                },
            };
            let (float, layout) = (output.float, output.layout);
            let to = TensorMut::new(&mut *output.view, float, layout);
            Reference.act_and_mul(op, input, to)?;
            match self {
                Self::Nowhere | Self::NoClamp => {}
                Self::TailUnwritten if layout.cols % 8 != 0 && layout.rows > 0 => {
                    let end = layout.row(layout.rows - 1).end * float.size();
                    output.view[end - float.size()..end].fill(0);
                }
                Self::TailUnwritten => {}
                Self::NanAsZero if float == Float::BF16 => {
                    for y in output
                        .view
                        .chunks_exact_mut(2)
                        .filter(|y| *y == [0xc0, 0x7f])
                    {
                        y.fill(0);
                    }
                }
                Self::NanAsZero => {}
                Self::Inexact { .. } if float == Float::F32 => {
                    let y = output.into_typed::<f32>("output")?;
                    for t in 0..layout.rows {
                        for y in &mut y[layout.row(t)] {
                            *y = six_ulps_off(*y);
                        }
                    }
                }
                Self::Inexact { .. } => {}
            }
            Ok(())
        }
    }

    impl Quantize for Wrong {}

    impl Matmul for Wrong {
        type Weight = swiglu_core::NoWeight;
    }

    impl swiglu_core::Router for Wrong {}

    impl swiglu_core::GroupedMatmul for Wrong {}

    fn six_ulps_off(y: f32) -> f32 {
        if y.is_normal() && y.abs() < 1e30 {
            return <f32 as Element>::from_bits(y.to_bits() + 6);
        }
        y
    }

    fn report(wrong: Wrong, ops: &[GatedActivation]) -> PlatformReport {
        let platform = Platform::new(Arc::new(AnyBackend::new(wrong)), None);
        let harness = Harness::new(platform, Size::Quick);
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

    #[test]
    fn a_backend_from_outside_is_judged_by_what_it_promises() {
        let ops = [GatedActivation::silu_and_mul()];
        let passes = |promise| {
            let report = report(Wrong::Inexact { promise }, &ops);
            report.operations.iter().all(|row| row.passes)
        };
        assert!(passes(7));
        assert!(!passes(5));
    }
}
