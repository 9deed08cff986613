use swiglu_core::{ActAndMul, Element, GatedActivation, RowLayout, bf16, f16};

use super::in_every_type;
use crate::compare::{Tally, against_reference, pairs_of_rows, same_bits};
use crate::harness::{tensor, tensor_mut};
use crate::inputs::Numbers;
use crate::skips::Skips;
use crate::{ActLayouts, Failure, Harness, Size};

const D: [usize; 12] = [1, 2, 3, 7, 8, 12, 127, 128, 2048, 2304, 3072, 13824];
const T: [usize; 5] = [0, 1, 7, 83, 2048];

/// A result of random rows, compared with the reference, and what lies between the rows looked at.
fn compare_rows<E: Element, B: ActAndMul>(
    skips: &mut Skips<'_, B>,
    op: &GatedActivation,
    (rows, d): (usize, usize),
    layouts: ActLayouts,
) -> Result<(), Failure> {
    if !skips.activates(op, E::FLOAT) {
        return Ok(());
    }
    let h = skips.harness;
    let seed = (rows * 100_003 + d) as u64;
    let input = Numbers::new(seed).values::<E>(rows * 2 * d, 25.0);
    let context = || {
        let ActLayouts { input, output } = layouts;
        format!("seed {seed}, input {input}, output {output}")
    };
    let got = h
        .act_on_rows(op, &input, layouts)
        .map_err(|f| f.within(context()))?;
    let pairs = pairs_of_rows(op, &input, d);
    let tally = &mut Tally::default();
    against_reference(op, &pairs, &got, &h.accuracy, tally).map_err(|f| f.within(context()))
}

/// The shapes of models and those that vectors leave a tail of: rows without gaps, and rows with
/// gaps from a base that is aligned to the element only.
///
/// # Errors
/// The first result that is too far off or was written outside of the rows.
pub fn shapes_and_strides<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    let [deepseek, interleaved, swapped] = [
        GatedActivation::deepseek_v4(),
        GatedActivation::gpt_oss(),
        GatedActivation::mul_and_silu(),
    ];
    let skips = &mut Skips::new(h, "shapes_and_strides");
    let most = h.size.pick(1 << 18, usize::MAX);
    let shapes = D.into_iter().flat_map(|d| T.map(|t| (t, d)));
    // And several rows that are longer than what one task or workgroup takes.
    let shapes = shapes.chain([(3, 40_001)]);
    for (rows, d) in shapes.filter(|(t, d)| t * d <= most) {
        let tight = ActLayouts::contiguous(rows, d);
        compare_rows::<bf16, B>(skips, &deepseek, (rows, d), tight)?;
        // Gaps, and the offset of one element, that leave every alignment to some row.
        let spreads = [
            tight.spread([0, 0], [1, 1]),
            tight.spread([3, 5], [1, 1]),
            tight.spread([16, 8], [0, 1]),
        ];
        let few = h.size.pick(1 << 16, usize::MAX);
        if rows * d <= few {
            for layouts in spreads {
                compare_rows::<bf16, B>(skips, &deepseek, (rows, d), layouts)?;
                compare_rows::<bf16, B>(skips, &interleaved, (rows, d), layouts)?;
                compare_rows::<bf16, B>(skips, &swapped, (rows, d), layouts)?;
            }
            compare_rows::<f16, B>(skips, &deepseek, (rows, d), spreads[1])?;
            compare_rows::<f32, B>(skips, &deepseek, (rows, d), spreads[1])?;
            compare_rows::<f32, B>(skips, &interleaved, (rows, d), tight)?;
        }
    }
    Ok(())
}

/// Rows computed one by one, each from its own place, equal the batch bit for bit.
///
/// # Errors
/// The first difference.
pub fn rows_alone_equal_the_batch<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<E: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for op in skips.activations(E::FLOAT) {
            for d in [7, 129] {
                let rows = Numbers::new(d as u64).values::<E>(5 * 2 * d, 25.0);
                let batch = h.act_on_rows(&op, &rows, ActLayouts::contiguous(5, d))?;
                for (t, row) in rows.chunks_exact(2 * d).enumerate() {
                    let layouts = ActLayouts::contiguous(1, d).spread([0, 0], [t * 2 * d, t * d]);
                    let alone = h.act_on_rows(&op, row, layouts)?;
                    let pairs = pairs_of_rows(&op, row, d);
                    same_bits(&op, &pairs, &alone, &batch[t * d..(t + 1) * d])
                        .map_err(|f| f.within(format!("row {t} of 5 alone")))?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "rows_alone_equal_the_batch");
    in_every_type!(check(h, skips))
}

/// The same pairs give the same bits in every layout: concatenated or interleaved, gate or up first.
///
/// # Errors
/// The first difference.
pub fn layouts_agree<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<E: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let mut numbers = Numbers::new(11);
        let values = numbers.values::<E>(2 * 1001, 25.0);
        let pairs: Vec<_> = values.chunks_exact(2).map(|v| (v[0], v[1])).collect();
        for (a, b) in [
            (
                GatedActivation::silu_and_mul(),
                GatedActivation::mul_and_silu(),
            ),
            (GatedActivation::minimax_m3(), GatedActivation::gpt_oss()),
        ] {
            if skips.activates(&a, E::FLOAT) && skips.activates(&b, E::FLOAT) {
                let want = h.act_on_pairs(&a, &pairs)?;
                same_bits(&b, &pairs, &h.act_on_pairs(&b, &pairs)?, &want)?;
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "layouts_agree");
    in_every_type!(check(h, skips))
}

/// No rows are no work and no error, wherever they would lie; empty buffers will do.
///
/// # Errors
/// A refusal, or an element that was written.
pub fn no_rows_write_nothing<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    let op = GatedActivation::deepseek_v4();
    if !Skips::new(h, "no_rows_write_nothing").activates(&op, bf16::FLOAT) {
        return Ok(());
    }
    for d in [1, 8, 13_824] {
        let layouts = ActLayouts::contiguous(0, d);
        h.act_on_rows::<bf16>(&op, &[], layouts)?;
        h.act_on_rows::<bf16>(&op, &[], layouts.spread([9, 9], [1, 1]))?;
        let input = h.backend.alloc(0)?;
        let mut output = h.backend.alloc(0)?;
        let input = tensor::<B, bf16>(&input, RowLayout::contiguous(0, 2 * d));
        let output = tensor_mut::<B, bf16>(&mut output, RowLayout::contiguous(0, d));
        h.backend.act_and_mul(&op, input.into(), output)?;
    }
    Ok(())
}

/// Rows that lie more than 2^31 elements from the start of their buffer are read and written.
/// [`crate::Size::Full`] only: this takes 9 GB on the device and as much on the host; where the
/// device does not have them it is skipped by name.
///
/// # Errors
/// The first result that is too far off.
pub fn offsets_beyond_31_bits<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    const ROWS: usize = 3;
    const STRIDE: usize = (1 << 30) + 5;
    let d = 1027;
    if h.size == Size::Quick {
        return Ok(());
    }
    let op = GatedActivation::deepseek_v4();
    let skips = &mut Skips::new(h, "offsets_beyond_31_bits");
    let tight = ActLayouts::contiguous(ROWS, d);
    for far in [
        ActLayouts {
            input: tight.input.with_stride(STRIDE),
            ..tight
        },
        ActLayouts {
            output: tight.output.with_stride(STRIDE),
            ..tight
        },
    ] {
        let bytes = (ROWS - 1) * STRIDE * bf16::FLOAT.size() + (1 << 20);
        if let Err(reason) = h.backend.alloc(bytes) {
            skips.leave_out(format!("rows over {bytes} bytes"), reason.to_string());
            return Ok(());
        }
        compare_rows::<bf16, B>(skips, &op, (ROWS, d), far)?;
    }
    Ok(())
}
