use swiglu_core::{DType, Element, GatedActivation, GatedMatmul, RowLayout, Tensor, TensorMut};

use super::in_every_type;
use super::weights::{FORMATS, Stored, Values};
use crate::compare::{pairs_of_rows, same_bits};
use crate::inputs::Numbers;
use crate::{ActLayouts, Failure, Harness};

/// `matmul_act_and_mul` equals `matmul`, rounded, then `act_and_mul`, bit for bit. The sums are
/// exact in f32, so that both have the same accumulators however they add; they need more bits
/// than 16-bit types have, and reach far beyond every limit.
///
/// # Errors
/// The first difference.
pub fn fused_equals_unfused<B: GatedMatmul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: GatedMatmul>(h: &Harness<B>) -> Result<(), Failure> {
        for (i, format) in FORMATS.into_iter().enumerate() {
            let [gate, up] = [1, 2]
                .map(|seed| Stored::new([77, 150], format, Values::Exact, 10 * i as u64 + seed));
            for op in h.activations(T::DTYPE) {
                for rows in [0, 1, 2, 7] {
                    compare::<T, B>(h, &op, rows, [&gate, &up])?;
                }
            }
        }
        Ok(())
    }
    in_every_type!(check(h))
}

fn compare<T: Element, B: GatedMatmul>(
    h: &Harness<B>,
    op: &GatedActivation,
    rows: usize,
    [gate, up]: [&Stored; 2],
) -> Result<(), Failure> {
    let [i, k] = gate.shape;
    let mut numbers = Numbers::new(rows as u64);
    // Multiples of 1/32: sums have about 12 bits, and some are beyond 10 and some are not.
    let x: Vec<T> = (0..rows * k)
        .map(|_| T::from_f32((numbers.below(17) as f32 - 8.0) / 32.0))
        .collect();
    let layout = RowLayout::contiguous(rows, k);
    let views = [gate.view()?, up.view()?];
    let between: Vec<T> = h.product(&x, layout, &views, RowLayout::contiguous(rows, 2 * i))?;
    let want = h.act_on_rows(op, &between, ActLayouts::contiguous(rows, i))?;

    let weight = h.backend.load_gate_up(views[0], views[1])?;
    let x = h.upload(&x)?;
    let mut gate_up = h.backend.alloc(rows * 2 * i * T::DTYPE.size())?;
    let act_layout = RowLayout::contiguous(rows, i)
        .with_stride(i + 3)
        .with_offset(1);
    let mut act = h.poisoned::<T>(&act_layout)?;
    h.backend.matmul_act_and_mul(
        op,
        Tensor::contiguous(&x, T::DTYPE, rows, k),
        &weight,
        TensorMut::contiguous(&mut gate_up, T::DTYPE, rows, 2 * i),
        TensorMut {
            buffer: &mut act,
            dtype: T::DTYPE,
            layout: act_layout,
        },
    )?;
    let got = h.collect::<T>(&act_layout, &act)?;
    let dtype: DType = gate.format.0;
    same_bits(op, &pairs_of_rows(op, &between, i), &got, &want)
        .map_err(|f| f.within(format!("fused with weights of {dtype}, {rows} rows")))
}
