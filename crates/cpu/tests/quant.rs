//! Quantization: bit for bit the reference's, in two steps and fused, on every instruction set of
//! this machine and whatever the number of threads.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, LazyLock};

use swiglu_conformance::inputs::{Numbers, quantizations};
use swiglu_conformance::{Check, Harness, QuantCase, Size, checks};
use swiglu_core::reference::Reference;
use swiglu_core::{
    Batch, Float, GatedActivation, HostBuffer, QuantOptions, Quantization, Quantize, Quantized,
    QuantizedMut, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Tensor, TensorMut, bf16,
};
use swiglu_cpu::{CpuBackend, InstructionSet};

const POISON: u8 = 0xa5;

/// The backend of each instruction set, and the fastest with pools of several sizes.
static HARNESSES: LazyLock<Vec<(String, Harness<CpuBackend>)>> = LazyLock::new(|| {
    let sets = InstructionSet::ALL.into_iter().filter(|s| s.available());
    let set = |s| CpuBackend::with_instruction_set(s).unwrap();
    let mut backends: Vec<_> = sets.map(|s| (s.to_string(), set(s))).collect();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let backend = CpuBackend::new().with_pool(Arc::new(pool.build().unwrap()));
        backends.push((format!("{threads} threads"), backend));
    }
    let harness = |(name, backend)| (name, Harness::new(backend, Size::from_env()));
    backends.into_iter().map(harness).collect()
});

fn filled(bytes: &[u8]) -> HostBuffer {
    let mut buffer = HostBuffer::zeroed(bytes.len()).unwrap();
    buffer.bytes_mut().copy_from_slice(bytes);
    buffer
}

/// Runs a check of the suite on all of them.
fn on_every_backend(check: Check<CpuBackend>) {
    for (name, harness) in &*HARNESSES {
        check(harness).unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
}

#[test]
fn matrices_are_quantized() {
    on_every_backend(checks::matrices_are_quantized);
}

#[test]
fn quotients_are_rounded_once() {
    on_every_backend(checks::quotients_are_rounded_once);
}

#[test]
fn activations_of_exact_products_are_quantized() {
    on_every_backend(checks::quantized_activations_of_exact_products);
}

#[test]
fn the_fused_pass_is_the_two_step_path() {
    on_every_backend(checks::fused_quantization_equals_two_steps);
}

/// Groups whose largest magnitude is each float around 448 times each power of two.
#[test]
fn scales_step_where_448_times_a_power_of_two_does() {
    let quant = Quantization::new(32, ScaleFormat::E8M0).unwrap();
    let quant = quant.with_floor(1e-30).unwrap();
    let mut x = Vec::new();
    for exponent in -90..119 {
        let edge = 448.0 * 2f32.powi(exponent);
        for amax in [edge.next_down(), edge, edge.next_up()] {
            x.extend((0..32).map(|i| amax / (i + 1) as f32 * if i % 2 == 0 { 1.0 } else { -1.0 }));
        }
    }
    let case = QuantCase::new(None, (quant, ScaleOrder::RowMajor), 1, x.len());
    let reference = Harness::new(Reference, Size::from_env());
    let want = case.run(&reference, &x).unwrap();
    for (steps, exponent) in want.scales.chunks_exact(3).zip(-90..119_i32) {
        let byte = (127 + exponent) as u8;
        assert_eq!(steps, [byte, byte, byte + 1]);
    }
    for (name, harness) in &*HARNESSES {
        let got = case.run(harness, &x).unwrap();
        case.same(Float::F32, &got, &want, name).unwrap();
    }
}

/// The bytes of groups whose largest magnitude is each positive float in steps, against their
/// definition in f64, where it is exact: the least power of two of which 448 fold is not below.
/// Returns how many.
fn sweep_scales(backend: &CpuBackend, step: u32) -> u64 {
    const GROUPS: usize = 1 << 16;
    let floor = 1e-30_f32;
    let quant = Quantization::new(32, ScaleFormat::E8M0).unwrap();
    let quant = quant.with_floor(floor).unwrap();
    let layout = ScaleLayout::contiguous(ScaleFormat::E8M0, ScaleOrder::RowMajor, 1, GROUPS);
    let mut x = HostBuffer::zeroed(4 * 32 * GROUPS).unwrap();
    let mut codes = HostBuffer::zeroed(32 * GROUPS).unwrap();
    let mut scales = HostBuffer::zeroed(GROUPS).unwrap();
    let (mut next, mut checked) = (0_u64, 0);
    while next <= u64::from(f32::MAX.to_bits()) {
        let bits = |g: usize| (next + g as u64 * u64::from(step)).min(0x7f7f_ffff) as u32;
        for (g, group) in x.typed_mut::<f32>().chunks_exact_mut(32).enumerate() {
            // The place within the group changes with the value.
            group.fill(0.0);
            group[bits(g) as usize % 32] = f32::from_bits(bits(g));
        }
        let output = QuantizedMut {
            codes: codes.bytes_mut(),
            layout: RowLayout::contiguous(1, 32 * GROUPS),
            scales: scales.bytes_mut(),
            scale_layout: layout,
        };
        let input = Tensor::contiguous(x.bytes(), Float::F32, 1, 32 * GROUPS);
        backend.quantize(&quant, input, output).unwrap();
        for (g, &byte) in scales.bytes().iter().enumerate() {
            let amax = f64::from(f32::from_bits(bits(g)).max(floor));
            let largest = 448.0 * 2f64.powi(i32::from(byte) - 127);
            assert!(largest >= amax && largest / 2.0 < amax, "{amax:e}: {byte}");
        }
        checked += GROUPS as u64;
        next += GROUPS as u64 * u64::from(step);
    }
    checked
}

#[test]
fn the_exponents_are_exact_on_a_sample() {
    for (_, harness) in &*HARNESSES {
        assert!(sweep_scales(&harness.backend, 4_099) > 500_000);
    }
}

#[test]
#[ignore = "all 2^31 positive floats: minutes"]
fn the_exponents_are_exact_for_every_positive_float() {
    assert!(sweep_scales(&CpuBackend::new(), 1) >= 0x7f80_0000);
}

/// Also where the reference, which evaluates silu in f64, has others: near boundaries of codes.
#[test]
fn all_backends_give_the_same_codes() {
    let op = GatedActivation::deepseek_v4();
    let x: Vec<bf16> = Numbers::new(3).values(64 * 2 * 2048, 15.0);
    for (quant, order) in quantizations().unwrap() {
        for materialize in [true, false] {
            let kind = (quant.with_materialize(materialize), order);
            let case = QuantCase {
                hits: true,
                ..QuantCase::new(Some(&op), kind, 64, 2048)
            };
            let [(_, first), others @ ..] = &HARNESSES[..] else {
                unreachable!("scalar code runs anywhere");
            };
            let want = case.run(first, &x).unwrap();
            for (name, harness) in others {
                let got = case.run(harness, &x).unwrap();
                case.same(Float::BF16, &got, &want, name).unwrap();
            }
        }
    }
}

/// Codes times scales are rounded once, under every code and odd scales.
#[test]
fn codes_are_widened_as_the_reference_does() {
    fn widened<B>(
        backend: &B,
        quant: &Quantization,
        order: ScaleOrder,
        float: Float,
        d: usize,
    ) -> Vec<u8>
    where
        B: Quantize<Buffer = HostBuffer>,
    {
        let rows = 7;
        let codes: Vec<u8> = (0..rows * d).map(|i| (i % 256) as u8).collect();
        let layout = ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d));
        let bytes = layout.bytes().unwrap();
        let scales: Vec<u8> = match quant.format() {
            ScaleFormat::E8M0 => (0..bytes).map(|i| (i * 7) as u8).collect(),
            ScaleFormat::F32 => (0..bytes / 4)
                .flat_map(|i| {
                    let power = 2f32.powi(i as i32 * 5 % 260 - 140);
                    let odd = [0.0, f32::NAN, f32::INFINITY, -1.7e-3];
                    let scale = odd.get(i % 40).copied();
                    scale
                        .unwrap_or(1.013 * (i as f32 + 0.7) * power)
                        .to_le_bytes()
                })
                .collect(),
        };
        let (codes, scales) = (filled(&codes), filled(&scales));
        let mut y = filled(&vec![POISON; rows * d * float.size() + 2]);
        let input = Quantized {
            codes: B::view(&codes),
            layout: RowLayout::contiguous(rows, d),
            scales: B::view(&scales),
            scale_layout: layout,
        };
        let output = TensorMut::contiguous(B::view_mut(&mut y), float, rows, d);
        backend.dequantize(quant, input, output).unwrap();
        y.bytes().to_vec()
    }
    for (quant, order) in quantizations().unwrap() {
        for float in Float::ALL {
            for d in [1, 255, 2304] {
                let want = widened(&Reference, &quant, order, float, d);
                for (name, harness) in &*HARNESSES {
                    let got = widened(&harness.backend, &quant, order, float, d);
                    let at = (0..got.len()).find(|&i| got[i] != want[i]);
                    assert_eq!(at, None, "{quant} {order} {float} {d} on {name}");
                }
            }
        }
    }
}

/// Arguments that do not fit are refused by name before anything is written.
#[test]
fn arguments_are_named() {
    let (quant, backend) = (Quantization::deepseek_v4(), &HARNESSES[0].1.backend);
    let x = HostBuffer::zeroed(2 * 256 * 2).unwrap();
    let refused = |codes: usize, order, stride: usize, counts: Option<&HostBuffer>| {
        let mut codes = filled(&vec![POISON; codes]);
        let mut scales = filled(&[POISON; 2]);
        let layout = ScaleLayout::contiguous(quant.format(), order, 2, 1).with_stride(stride);
        let output = QuantizedMut {
            codes: codes.bytes_mut(),
            layout: RowLayout::contiguous(2, 128),
            scales: scales.bytes_mut(),
            scale_layout: layout,
        };
        let options = QuantOptions {
            batch: counts.map(|counts| Batch {
                rows: 1,
                counts: counts.bytes(),
            }),
            ..QuantOptions::default()
        };
        let input = Tensor::contiguous(x.bytes(), Float::BF16, 2, 256).into();
        let op = GatedActivation::deepseek_v4();
        let error = backend.act_and_mul_quant(&op, &quant, input, output, options);
        assert!(codes.bytes().iter().all(|&b| b == POISON));
        error.unwrap_err().to_string()
    };
    assert!(refused(255, ScaleOrder::RowMajor, 1, None).starts_with("codes"));
    assert!(refused(256, ScaleOrder::ColumnMajor, 1, None).starts_with("scales"));
    assert!(refused(256, ScaleOrder::Packed, 2, None).starts_with("scales"));
    let short = HostBuffer::zeroed(4).unwrap();
    assert!(refused(256, ScaleOrder::RowMajor, 1, Some(&short)).starts_with("counts"));
}
