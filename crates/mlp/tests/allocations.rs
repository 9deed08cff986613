//! A second forward pass of the same T allocates nothing on the host: seen by the allocator, over a
//! backend that allocates nothing itself.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use swiglu_core::reference::{gated, quantize_row};
use swiglu_core::{
    ActAndMul, Backend, E4M3, Element, GateUp, GatedActivation, Halves, HostWeight, Matmul,
    QuantOptions, Quantization, Quantize, Quantized, QuantizedMut, Request, Result, RowLayout,
    Support, Tensor, TensorMut, bf16, check,
};
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input};
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, Workspace};

mod common;
use common::{forward, load, tiny, with};

/// Counts the allocations of each thread by itself: the tests run side by side.
struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may free and allocate after its counter has gone.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged. Counting touches a constant-made
// cell of the thread, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `memory` came from this allocator, so from the system's, with this layout.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How often `work` allocates.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// A backend on host memory for bf16 that allocates nothing in a call.
struct Frugal;

/// The widest row that it quantizes.
const WIDEST: usize = 256;

impl Backend for Frugal {
    swiglu_core::host_memory!();

    fn platform(&self) -> &'static str {
        "frugal"
    }
    fn description(&self) -> String {
        String::new()
    }
    fn supports(&self, _: &Request) -> Support {
        Support::Native
    }
}

impl ActAndMul for Frugal {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::act(&input, &output)?;
        let halves = Halves::<bf16>::new(op, &input)?;
        let layout = output.layout;
        let output = output.into_typed::<bf16>("output")?;
        for t in 0..layout.rows {
            for (y, (gate, up)) in output[layout.row(t)].iter_mut().zip(halves.pairs(t)) {
                *y = gated(op, gate, up);
            }
        }
        Ok(())
    }
}

fn write_row(
    quant: &Quantization,
    row: usize,
    values: impl Iterator<Item = bf16>,
    output: &mut QuantizedMut<'_, Frugal>,
) {
    let mut wide = [0.0; WIDEST];
    let (layout, scale_layout) = (output.layout, output.scale_layout);
    for (wide, value) in wide.iter_mut().zip(values) {
        *wide = value.to_f32();
    }
    let codes = &mut output.codes[layout.row(row)];
    quantize_row(quant, &wide[..layout.cols], codes, |group, scale| {
        let at = scale_layout.position(row, group);
        scale_layout.format.write(output.scales, at, scale);
    });
}

impl Quantize for Frugal {
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        mut output: QuantizedMut<'_, Self>,
        options: QuantOptions<'_, Self>,
    ) -> Result<()> {
        check::act_quant(op, quant, &input, &output, &options)?;
        let halves = Halves::<bf16>::new(op, &input)?;
        for t in 0..output.layout.rows {
            let values = halves.pairs(t).map(|(gate, up)| gated(op, gate, up));
            write_row(quant, t, values, &mut output);
        }
        Ok(())
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self>,
        mut output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        check::quantize(quant, &input, &output)?;
        let data = input.typed::<bf16>("input")?;
        for t in 0..input.layout.rows {
            let values = data[input.layout.row(t)].iter().copied();
            write_row(quant, t, values, &mut output);
        }
        Ok(())
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::dequantize(quant, &input, &output)?;
        let (layout, scales) = (output.layout, input.scale_layout);
        let output = output.into_typed::<bf16>("output")?;
        for t in 0..layout.rows {
            let codes = &input.codes[input.layout.row(t)];
            for (j, (y, code)) in output[layout.row(t)].iter_mut().zip(codes).enumerate() {
                let at = scales.position(t, j / quant.group());
                let scale = scales.format.read(input.scales, at);
                *y = <bf16 as Element>::from_f32(E4M3(*code).to_f32() * scale);
            }
        }
        Ok(())
    }
}

impl Matmul for Frugal {
    type Weight = Vec<HostWeight<'static>>;

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<Self::Weight> {
        HostWeight::check_parts(parts)?;
        Ok(parts.iter().map(|w| w.clone().into_owned()).collect())
    }

    fn weight_shape(&self, weight: &Self::Weight) -> [usize; 2] {
        [weight.iter().map(HostWeight::rows).sum(), weight[0].cols()]
    }

    fn matmul(
        &self,
        x: Tensor<'_, Self>,
        weight: &Self::Weight,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::matmul(&x, self.weight_shape(weight), &y)?;
        let (from, to) = (x.layout, y.layout);
        let x = x.typed::<bf16>("x")?;
        let y = y.into_typed::<bf16>("y")?;
        let rows = weight
            .iter()
            .flat_map(|w| (0..w.rows()).map(move |r| (w, r)));
        for (n, (part, r)) in rows.enumerate() {
            for t in 0..from.rows {
                let x = x[from.row(t)].iter().enumerate();
                let sum = x.map(|(k, x)| f64::from(x.to_f32()) * part.get(r, k)).sum();
                y[to.row(t).start + n] = <bf16 as Element>::from_f64(sum);
            }
        }
        Ok(())
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| ()), 0);
    assert_eq!(
        allocations(|| drop(std::hint::black_box(vec![1_u8; 100]))),
        1
    );
}

#[test]
fn a_second_pass_allocates_nothing() {
    let form = SyntheticConfig {
        hidden: 80,
        intermediate: 70,
        block: 32,
        ..tiny()
    };
    let (h, i, most) = (form.hidden, form.intermediate, 4);
    for activation_quant in [ActivationQuant::None, ActivationQuant::Fp8Block] {
        with(&form, |config, expert| {
            let config = MlpConfig {
                activation_quant,
                ..config
            };
            let mlp = DeepseekV4Mlp::load(Arc::new(Frugal), &config, &expert).unwrap();
            let x = synthetic_input(most, h, 9);
            let mut y = vec![bf16::ZERO; most * h];
            let (mut gate_up, mut act) =
                (vec![bf16::ZERO; most * 2 * i], vec![bf16::ZERO; most * i]);
            let mut workspace = Workspace::new();
            let mut pass = |tokens: usize, staged: bool| {
                let rows = |cols| RowLayout::contiguous(tokens, cols);
                let y = TensorMut::from_slice(&mut y, rows(h));
                let x = Tensor::from_slice(&x, rows(h));
                let (gate_up, act) = (
                    TensorMut::from_slice(&mut gate_up, rows(2 * i)),
                    TensorMut::from_slice(&mut act, rows(i)),
                );
                allocations(|| {
                    if staged {
                        mlp.forward_stages(x, gate_up, act, y, &mut workspace)
                    } else {
                        mlp.forward(x, y, &mut workspace)
                    }
                    .unwrap();
                })
            };
            assert!(pass(most, false) > 0, "the workspace grows");
            for tokens in [most, 1, 0, 3, most] {
                for staged in [false, true] {
                    assert_eq!(pass(tokens, staged), 0, "{activation_quant:?} {tokens}");
                }
            }
            assert_eq!(y, forward(&load(&config, &expert), &x));
        });
    }
}
