use swiglu_core::{ActAndMul, Element, GatedActivation, Matmul, Request, RowLayout, TensorMut};

use super::in_every_type;
use crate::compare::{pairs_of_rows, same_bits};
use crate::harness::{tensor, tensor_mut};
use crate::inputs::{Numbers, SampleValues, SampleWeight, weight_formats, whole_columns};
use crate::skips::Skips;
use crate::{ActLayouts, Failure, Harness};

/// `matmul_act_and_mul` equals `matmul`, rounded, then `act_and_mul`, bit for bit. The sums are
/// exact in f32, so that both have the same accumulators however they add; they need more bits
/// than 16-bit types have, and reach far beyond every limit.
///
/// # Errors
/// The first difference.
pub fn fused_equals_unfused<B: ActAndMul + Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul + Matmul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for (i, weight) in weight_formats().enumerate() {
            let part = |seed| {
                let seed = 10 * i as u64 + seed;
                SampleWeight::new(
                    [77, whole_columns(&weight, 150)],
                    weight,
                    SampleValues::Exact,
                    seed,
                )
            };
            let [gate, up] = [part(1)?, part(2)?];
            for op in skips.activations(T::FLOAT) {
                let (x, y) = (T::FLOAT, T::FLOAT);
                let gated = Request::GatedMatmul {
                    op,
                    x,
                    weight,
                    act: y,
                };
                if !skips.runs(&gated) || !skips.runs(&Request::Matmul { x, weight, y }) {
                    continue;
                }
                for rows in [0, 1, 2, 7] {
                    compare::<T, B>(h, &op, rows, [&gate, &up])?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "fused_equals_unfused");
    in_every_type!(check(h, skips))
}

fn compare<T: Element, B: ActAndMul + Matmul>(
    h: &Harness<B>,
    op: &GatedActivation,
    rows: usize,
    [gate, up]: [&SampleWeight; 2],
) -> Result<(), Failure> {
    let [i, k] = gate.shape;
    let mut numbers = Numbers::new(rows as u64);
    // Multiples of 1/32: sums have about 12 bits, and some are beyond 10 and some are not.
    let x: Vec<T> = (0..rows * k)
        .map(|_| T::from_f32((numbers.below(17) as f32 - 8.0) / 32.0))
        .collect();
    let layout = RowLayout::contiguous(rows, k);
    let views = [gate.view()?, up.view()?];
    let between: Vec<T> = h.matmul(&x, layout, &views, RowLayout::contiguous(rows, 2 * i))?;
    let want = h.act_on_rows(op, &between, ActLayouts::contiguous(rows, i))?;

    let [gate_view, up_view] = views;
    let weight = h.backend.load_gate_up(gate_view, up_view)?;
    let x = h.upload(&x)?;
    let mut gate_up = h.backend.alloc(rows * 2 * i * T::FLOAT.size())?;
    let act_layout = RowLayout::contiguous(rows, i)
        .with_stride(i + 3)
        .with_offset(1);
    let mut act = h.poisoned::<T>(&act_layout)?;
    h.backend.matmul_act_and_mul(
        op,
        tensor::<B, T>(&x, layout),
        &weight,
        TensorMut::contiguous(B::view_mut(&mut gate_up), T::FLOAT, rows, 2 * i),
        tensor_mut::<B, T>(&mut act, act_layout),
    )?;
    let got = h.collect::<T>(&act_layout, &act)?;
    same_bits(op, &pairs_of_rows(op, &between, i), &got, &want).map_err(|f| {
        f.within(format!(
            "fused with weights of {}, {rows} rows",
            gate.format
        ))
    })
}
