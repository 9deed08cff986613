use swiglu_core::{
    DType, GatedActivation, GatedMatmul, Layout, RowLayout, Tensor, TensorMut, bf16,
};

use super::weights::{FORMATS, Stored, Values};
use crate::compare::{pairs_of_rows, same_bits};
use crate::inputs::Numbers;
use crate::{Failure, Harness};

/// Columns of d, and of x.
const SHAPE: [usize; 2] = [150, 96];

/// The activations of a rank's share of the gated half, rows of `gate.shape[0]`.
fn activated<B: GatedMatmul>(
    h: &Harness<B>,
    op: &GatedActivation,
    x: &[bf16],
    [gate, up]: [&Stored; 2],
) -> Result<(Vec<bf16>, Vec<bf16>), Failure> {
    let [d, k] = gate.shape;
    let rows = x.len() / k;
    let weight = h.backend.load_gate_up(gate.view()?, up.view()?)?;
    let x = h.upload(x)?;
    let between = RowLayout::contiguous(rows, 2 * d);
    let mut gate_up = h.poisoned::<bf16>(&between)?;
    let layout = RowLayout::contiguous(rows, d);
    let mut act = h.poisoned::<bf16>(&layout)?;
    h.backend.matmul_act_and_mul(
        op,
        Tensor::contiguous(&x, DType::BF16, rows, k),
        &weight,
        TensorMut::contiguous(&mut gate_up, DType::BF16, rows, 2 * d),
        TensorMut::contiguous(&mut act, DType::BF16, rows, d),
    )?;
    Ok((h.collect(&layout, &act)?, h.collect(&between, &gate_up)?))
}

/// Tensor parallelism: the gate and up weights cut by whole blocks of rows into shares, each
/// computed as [gate share | up share], give the columns of the whole, bit for bit; what pads the
/// last share gives zeros. The sums are exact in f32.
///
/// # Errors
/// The first difference.
pub fn shards_equal_the_whole<B: GatedMatmul>(h: &Harness<B>) -> Result<(), Failure> {
    // Weights in blocks of 32 rows cut by 32; the others by any number.
    let cuts = FORMATS.iter().filter_map(|f| match f.1 {
        None => Some((*f, 24)),
        Some((_, [32, _])) => Some((*f, 32)),
        Some(_) => None,
    });
    for ((format, block), world) in cuts.flat_map(|c| [(c, 2), (c, 4)]) {
        let [gate, up] = [21, 22].map(|seed| Stored::new(SHAPE, format, Values::Exact, seed));
        let [d, k] = SHAPE;
        let share = d.div_ceil(block).div_ceil(world) * block;
        let mut ops = h.activations(DType::BF16);
        // The weight's rows are not interleaved: what is would be cut otherwise.
        ops.retain(|op| op.layout() == Layout::Concatenated);
        for op in ops {
            for rows in [1, 5] {
                let mut numbers = Numbers::new(rows as u64);
                // Sums reach far beyond every limit.
                let x: Vec<bf16> = (0..rows * k)
                    .map(|_| bf16::from_f32((numbers.below(17) as f32 - 8.0) / 16.0))
                    .collect();
                let (whole, between) = activated(h, &op, &x, [&gate, &up])?;
                let pairs = pairs_of_rows(&op, &between, d);
                for rank in 0..world {
                    let [g, u] = [&gate, &up].map(|w| w.rows(rank * share, share));
                    let (got, _) = activated(h, &op, &x, [&g, &u])?;
                    let of_whole = |t: usize| {
                        let first = t * d + (rank * share).min(d);
                        let last = t * d + ((rank + 1) * share).min(d);
                        first..last
                    };
                    for (t, got) in got.chunks_exact(share).enumerate() {
                        let place = of_whole(t);
                        let (got, pad) = got.split_at(place.len());
                        same_bits(&op, &pairs[place.clone()], got, &whole[place]).map_err(|f| {
                            let weights = format.0;
                            f.within(format!(
                                "rank {rank} of {world}, weights of {weights}, row {t}"
                            ))
                        })?;
                        if pad.iter().any(|y| y.to_f32() != 0.0) {
                            return Err(Failure::new(format!(
                                "{op}: rank {rank} of {world} has {pad:?} in its padding"
                            )));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
