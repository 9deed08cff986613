//! Times on one device through wgpu, beside a copy of as many bytes and an empty dispatch.
//!
//! `cargo bench -p swiglu-bench --features wgpu --bench wgpu [-- SECTION … --csv]` takes the best adapter;
//! `SWIGLU_ALLOW_SOFTWARE=1` lets it be a software rasterizer, for which the shapes are smaller. Without a
//! section all run, and numbers choose the tokens of
//! MLPs and experts (`EXPERTS` of them, 256): opening, limits, activation, few, many, tokens, host, experts.

mod device;
mod experts;
mod opening;

use device::{Bench, Result};
use swiglu_bench::{Options, Report, figure, median};
use swiglu_conformance::{Case, MlpShape};
use swiglu_core::{Backend, Float, GatedActivation, Matmul, WeightFormat};
use swiglu_wgpu::limits;

fn main() -> Result<()> {
    let options = Options::from_env();
    let mut report = Report::new(&options);
    let sections = [
        "opening",
        "limits",
        "activation",
        "few",
        "many",
        "tokens",
        "host",
        "experts",
    ];
    let sections = options.named(&sections, str::to_owned);
    if sections.contains(&"opening") {
        opening::opening(&mut report)?;
    }
    if sections == ["opening"] {
        return Ok(());
    }
    let bench = Bench::new()?;
    report.note(&bench.backend.description());
    // H and I: a model's, or what software can do.
    let sizes = if bench.software() {
        [1024, 512]
    } else {
        [MlpShape::PRO.hidden, MlpShape::PRO.intermediate]
    };
    for section in sections {
        match section {
            "limits" => limits(&bench, &mut report)?,
            "activation" => activations(&bench, &mut report)?,
            "few" => gemv(&bench, sizes, &mut report)?,
            "many" => large(&bench, sizes, &mut report)?,
            "tokens" => tokens(&bench, &options, &mut report)?,
            "host" => mlps(&bench, sizes, &mut report)?,
            "experts" => experts::experts(&bench, &options, &mut report)?,
            _ => {}
        }
    }
    Ok(())
}

/// What the device allows.
fn limits(Bench { backend, .. }: &Bench, report: &mut Report) -> Result<()> {
    let (read, both) = (
        limits::read_rate(backend)?,
        limits::read_and_write_rate(backend)?,
    );
    let (f32s, unit) = (
        limits::multiply_add_rate(backend)?,
        limits::matrix_unit_rate(backend)?,
    );
    let figures = [
        figure("reads", "GB/s", read / 1e9),
        figure("two reads and a write", "GB/s", both / 1e9),
        figure("f32", "TFLOP/s", f32s / 1e12),
        figure(
            "cooperative matrices",
            "TFLOP/s",
            unit.unwrap_or(f64::NAN) / 1e12,
        ),
    ];
    report.case("limits", "the device's", &figures);
    Ok(())
}

/// How the weights of an MLP are stored here.
const WEIGHTS: [WeightFormat; 2] = [WeightFormat::Float(Float::BF16), WeightFormat::DEEPSEEK_V4];

fn activations(bench: &Bench, report: &mut Report) -> Result<()> {
    // What a process measures first reads two or three times too long.
    bench.nothing()?;
    let empty = bench.nothing()?;
    report.case(
        "activation",
        "an empty dispatch",
        &[figure("time", "us", empty)],
    );
    let one = bench.activation(Float::BF16, 1, 2048, 200)?;
    let figures = [
        figure("time", "us", one),
        figure("over an empty dispatch", "ratio", one / empty),
    ];
    report.case("activation", "bf16 1x2048", &figures);
    let rows = if bench.software() {
        [64, 256]
    } else {
        [4096, 32768]
    };
    for rows in rows {
        for float in [Float::BF16, Float::F16, Float::F32] {
            let case = Case::activation(GatedActivation::deepseek_v4(), float, rows, 3072);
            let bytes: usize = case.bytes().iter().sum();
            let (time, copy) = (bench.activation(float, rows, 3072, 10)?, bench.copy(bytes)?);
            let figures = [
                figure("time", "us", time),
                figure("copy", "us", copy),
                figure("of the copy", "ratio", copy / time),
            ];
            report.case("activation", &format!("{float} {rows}x3072"), &figures);
        }
    }
    Ok(())
}

/// Matmuls of few tokens, beside a copy of the weight's bytes.
fn gemv(bench: &Bench, [h, i]: [usize; 2], report: &mut Report) -> Result<()> {
    for format in WEIGHTS {
        let weights = (0..4).map(|_| bench.weight(format, 2 * i, h));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let copy = bench.copy(bench.backend.weight_bytes(&weights[0]))?;
        let name = |tokens| format!("{tokens}x{h}x{} bf16 by {}", 2 * i, format.name());
        for tokens in [1, 8] {
            let time = bench.gated(tokens, &weights, 20)?;
            let figures = [figure("time", "us", time), figure("copy", "us", copy)];
            report.case("matmul", &format!("{}, activated", name(tokens)), &figures);
        }
        for tokens in [1, 2, 4, 8, 16, 32] {
            let time = bench.matmul((tokens, Float::BF16), &weights, 20)?;
            let figures = [figure("time", "us", time), figure("copy", "us", copy)];
            report.case("matmul", &name(tokens), &figures);
        }
    }
    Ok(())
}

/// Matmuls of many tokens, in operations a second.
fn large(bench: &Bench, [h, i]: [usize; 2], report: &mut Report) -> Result<()> {
    let tokens = if bench.software() { 64 } else { 4096 };
    let plain = Float::ALL.map(|float| (float, WeightFormat::Float(float)));
    let all = plain
        .into_iter()
        .chain([(Float::BF16, WeightFormat::DEEPSEEK_V4)]);
    for (x, format) in all {
        let weight = bench.weight(format, 2 * i, h)?;
        let time = bench.matmul((tokens, x), &[weight], 2)?;
        let case = Case::matmul(format, x, [tokens, 2 * i, h]);
        let figures = [
            figure("time", "us", time),
            figure("rate", "TFLOP/s", case.operations() as f64 / time / 1e6),
        ];
        let name = format!("{tokens}x{h}x{} {x} by {}", 2 * i, format.name());
        report.case("matmul", &name, &figures);
    }
    Ok(())
}

/// The whole MLP of few and of many tokens, its weights coming from memory.
fn tokens(bench: &Bench, options: &Options, report: &mut Report) -> Result<()> {
    let (
        MlpShape {
            hidden,
            intermediate,
            ..
        },
        tokens,
    ) = if bench.software() {
        (
            MlpShape {
                hidden: 1024,
                intermediate: 512,
                ..MlpShape::FLASH
            },
            &[1, 16][..],
        )
    } else {
        (
            MlpShape::FLASH,
            &[1, 2, 4, 8, 16, 32, 64, 128, 256, 1024][..],
        )
    };
    let (h, i) = (hidden, intermediate);
    for format in WEIGHTS {
        let weights =
            (0..4).map(|_| Ok([bench.weight(format, 2 * i, h)?, bench.weight(format, h, i)?]));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        for tokens in options.numbers(tokens) {
            let time = bench.mlp_on_device(tokens, &weights, 8)?;
            let name = format!("T={tokens} {h}/{i} {}, device", format.name());
            report.case("mlp", &name, &[figure("time", "us", time)]);
        }
    }
    Ok(())
}

/// The whole MLP of one token.
fn mlps(bench: &Bench, [h, i]: [usize; 2], report: &mut Report) -> Result<()> {
    for format in WEIGHTS {
        bench.warm()?;
        let rounds = bench.mlp(format, h, i)?;
        let figures = [
            figure("best round", "us", rounds[0]),
            figure("time", "us", median(rounds)),
        ];
        let name = format!("T=1 {h}/{i} {}, host", format.name());
        report.case("mlp", &name, &figures);
    }
    Ok(())
}
