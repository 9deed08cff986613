use swiglu_core::{ActAndMul, Float, Layout, Matmul, Request, bf16};

use crate::compare::{pairs_of_rows, same_bits};
use crate::inputs::{Numbers, SampleValues, SampleWeight, weight_formats};
use crate::skips::Skips;
use crate::{Failure, Harness};

/// Columns of d, and of x.
const SHAPE: [usize; 2] = [150, 96];

/// Tensor parallelism: the gate and up weights cut by whole blocks of rows into shares, each
/// computed as [gate share | up share], give the columns of the whole, bit for bit; what pads the
/// last share gives zeros. The sums are exact in f32.
///
/// # Errors
/// The first difference.
pub fn shards_equal_the_whole<B: ActAndMul + Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    // Weights in blocks of 32 rows cut by 32; those without, and of one row, by any number.
    let cuts = weight_formats().filter_map(|format| match format.scaling() {
        None | Some((_, [1, _])) => Some((format, 24)),
        Some((_, [32, _])) => Some((format, 32)),
        Some(_) => None,
    });
    let skips = &mut Skips::new(h, "shards_equal_the_whole");
    for ((weight, block), world) in cuts.flat_map(|c| [(c, 2), (c, 4)]) {
        let part = |seed| SampleWeight::new(SHAPE, weight, SampleValues::Exact, seed);
        let [gate, up] = [part(21)?, part(22)?];
        let [d, k] = SHAPE;
        let share = d.div_ceil(block).div_ceil(world) * block;
        let (x, act) = (Float::BF16, Float::BF16);
        let mut ops = skips.activations(act);
        // The weight's rows are not interleaved: what is would be cut otherwise.
        ops.retain(|op| op.layout() == Layout::Concatenated);
        ops.retain(|&op| skips.runs(&Request::GatedMatmul { op, x, weight, act }));
        for op in ops {
            for rows in [1, 5] {
                let mut numbers = Numbers::new(rows as u64);
                // Sums reach far beyond every limit.
                let x: Vec<bf16> = (0..rows * k)
                    .map(|_| bf16::from_f32((numbers.below(17) as f32 - 8.0) / 16.0))
                    .collect();
                let [whole, between] = h.matmul_act_and_mul(&op, &x, gate.view()?, up.view()?)?;
                let pairs = pairs_of_rows(&op, &between, d);
                for rank in 0..world {
                    let [g, u] = [&gate, &up].map(|w| w.rows(rank * share, share));
                    let [got, _] = h.matmul_act_and_mul(&op, &x, g.view()?, u.view()?)?;
                    let of_whole = |t: usize| {
                        let first = t * d + (rank * share).min(d);
                        let last = t * d + ((rank + 1) * share).min(d);
                        first..last
                    };
                    for (t, got) in got.chunks_exact(share).enumerate() {
                        let place = of_whole(t);
                        let (got, pad) = got.split_at(place.len());
                        same_bits(&op, &pairs[place.clone()], got, &whole[place]).map_err(|f| {
                            f.within(format!(
                                "rank {rank} of {world}, weights of {weight}, row {t}"
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
