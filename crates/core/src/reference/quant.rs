use super::backend::store;
use super::{Reference, unrounded};
use crate::{
    Clamp, E4M3, Element, GateUp, GatedActivation, Halves, QuantOptions, Quantization, Quantize,
    Quantized, QuantizedMut, Result, ScaleFormat, ScaleOrder, Tensor, TensorMut, check, with_float,
};

/// One output of the operation times a route weight, evaluated in f64 and rounded once.
pub fn gated_routed<T: Element>(op: &GatedActivation, gate: T, up: T, route: f32) -> T {
    T::from_f64(unrounded(op, gate, up) * f64::from(route))
}

/// Whether this pair is clamped: at the gate (with the clamp after the function, at its result),
/// at the up half from above, and from below. NaN is not.
pub fn clamp_hits<T: Element>(op: &GatedActivation, gate: T, up: T) -> [bool; 3] {
    let up = f64::from(up.to_f32());
    let (gate, limit) = match op.clamp() {
        Clamp::None => return [false; 3],
        Clamp::Before(limit) => (f64::from(gate.to_f32()), limit),
        Clamp::After(limit) => {
            let f = super::of_gate(op.function(), f64::from(gate.to_f32()));
            let f = match op.rounding() {
                crate::Rounding::Official => f,
                crate::Rounding::Eager => f64::from(T::from_f64(f).to_f32()),
            };
            (f, limit)
        }
    };
    let limit = f64::from(limit.get());
    [gate > limit, up > limit, up < -limit]
}

/// Quantizes one row of `values`: the codes into `codes`, the scale of each group to `scale`.
pub fn quantize_row(
    quant: &Quantization,
    values: &[f32],
    codes: &mut [u8],
    mut scale: impl FnMut(usize, f32),
) {
    let groups = values.chunks(quant.group());
    for (g, (values, codes)) in groups.zip(codes.chunks_mut(quant.group())).enumerate() {
        // Not `max`, which would swallow a NaN.
        let larger = |a: f32, y: &f32| {
            if y.abs() <= a || a.is_nan() {
                a
            } else {
                y.abs()
            }
        };
        let s = quant.scale(values.iter().fold(0.0, larger));
        for (code, &y) in codes.iter_mut().zip(values) {
            *code = quant.code(y, s).0;
        }
        scale(g, s);
    }
}

fn write_row(
    quant: &Quantization,
    row: usize,
    values: &[f32],
    output: &mut QuantizedMut<'_, Reference>,
) {
    let place = output.layout.row(row);
    let layout = output.scale_layout;
    let scales = &mut output.scales;
    quantize_row(quant, values, &mut output.codes[place], |g, s| {
        layout.format.write(scales, layout.position(row, g), s);
    });
    if layout.order == ScaleOrder::Packed {
        for g in layout.groups..layout.groups.next_multiple_of(4) {
            scales[layout.position(row, g)] = 0;
        }
    }
}

/// Whether a row is in use.
fn in_use(row: usize, batch: Option<(usize, &[i32])>) -> bool {
    batch.is_none_or(|(rows, counts)| {
        usize::try_from(counts[row / rows]).is_ok_and(|count| row % rows < count)
    })
}

fn act_quant<T: Element>(
    op: &GatedActivation,
    quant: &Quantization,
    input: &GateUp<'_, Reference>,
    output: &mut QuantizedMut<'_, Reference>,
    options: QuantOptions<'_, Reference>,
) -> Result<()> {
    let halves = Halves::<T>::new(op, input)?;
    let counts = options.batch.map(|b| {
        let (counts, _) = b.counts.as_chunks();
        let counts: Vec<_> = counts.iter().copied().map(i32::from_le_bytes).collect();
        (b.rows, counts)
    });
    let batch = counts.as_ref().map(|(rows, counts)| (*rows, &counts[..]));
    let mut hits = [0_u32; 3];
    let mut values = vec![0.0; output.layout.cols];
    for row in (0..input.rows()).filter(|&row| in_use(row, batch)) {
        let route = options.route.map(|r| ScaleFormat::F32.read(r, row));
        for (value, (gate, up)) in values.iter_mut().zip(halves.pairs(row)) {
            let y = unrounded(op, gate, up) * route.map_or(1.0, f64::from);
            *value = if quant.materialize() {
                T::from_f64(y).to_f32()
            } else {
                <f32 as Element>::from_f64(y)
            };
            for (count, hit) in hits.iter_mut().zip(clamp_hits(op, gate, up)) {
                *count = count.wrapping_add(u32::from(hit));
            }
        }
        write_row(quant, row, &values, output);
    }
    if let Some(view) = options.hits {
        for (place, count) in view.as_chunks_mut().0.iter_mut().zip(hits) {
            *place = u32::from_le_bytes(*place).wrapping_add(count).to_le_bytes();
        }
    }
    Ok(())
}

/// A row as f32.
fn widened<T: Element>(input: &Tensor<'_, Reference>, row: usize) -> Result<Vec<f32>> {
    let row = &input.typed::<T>("input")?[input.layout.row(row)];
    Ok(row.iter().map(|x| x.to_f32()).collect())
}

impl Quantize for Reference {
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        mut output: QuantizedMut<'_, Self>,
        options: QuantOptions<'_, Self>,
    ) -> Result<()> {
        check::act_quant(op, quant, &input, &output, &options)?;
        with_float!(input.float(), T => act_quant::<T>(op, quant, &input, &mut output, options))
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self>,
        mut output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        check::quantize(quant, &input, &output)?;
        for row in 0..input.layout.rows {
            let values = with_float!(input.float, T => widened::<T>(&input, row))?;
            write_row(quant, row, &values, &mut output);
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
        let scales = input.scale_layout;
        store("output", output, |row, j| {
            let code = E4M3(input.codes[input.layout.row(row).start + j]);
            let at = scales.position(row, j / quant.group());
            f64::from(code.to_f32()) * f64::from(scales.format.read(input.scales, at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActAndMul, Batch, RowLayout, ScaleLayout, bf16};

    /// Codes and scales of `values` as one row of bf16.
    fn quantize(quant: &Quantization, values: &[f32], order: ScaleOrder) -> (Vec<u8>, Vec<u8>) {
        let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let d = values.len();
        let layout = RowLayout::contiguous(1, d);
        let scale_layout = ScaleLayout::contiguous(quant.format(), order, 1, quant.groups(d));
        let mut codes = vec![0; d];
        let mut scales = vec![0xee; scale_layout.bytes().unwrap()];
        let output = QuantizedMut {
            codes: &mut codes[..],
            layout,
            scales: &mut scales[..],
            scale_layout,
        };
        let input = Tensor::from_slice(&values, layout);
        Reference.quantize(quant, input, output).unwrap();
        (codes, scales)
    }

    #[test]
    fn a_group_answers_for_itself_alone() {
        let v41 = Quantization::deepseek_v4_1();
        let mut values = vec![1.0; 32 * 4 + 5];
        values[32] = 448.0;
        values[64..96].fill(0.0);
        values[64] = -0.0;
        values[97] = f32::NAN;
        let (codes, scales) = quantize(&v41, &values, ScaleOrder::Packed);
        // 1/448 rounds up to 2^-8, and 256 is an E4M3.
        assert_eq!(scales, [119, 127, 105, 255, 119, 0, 0, 0]);
        assert!(codes[..32].iter().all(|&c| E4M3(c).to_f32() == 256.0));
        assert_eq!((codes[32], codes[33]), (0x7e, 0x38));
        assert_eq!((codes[64], codes[65]), (0x80, 0));
        assert!(codes[96..128].iter().all(|&c| c == 0x7f));
        assert!(codes[128..].iter().all(|&c| E4M3(c).to_f32() == 256.0));
    }

    #[test]
    fn the_fused_pass_is_the_two_step_path_and_masks_rows() {
        let op = GatedActivation::deepseek_v4();
        let quant = Quantization::new(32, ScaleFormat::F32).unwrap();
        let (rows, d) = (4, 70);
        let mut x: Vec<bf16> = (0..rows * 2 * d)
            .map(|i| bf16::from_f32((i as f32 * 0.37).sin() * 30.0))
            .collect();
        x[2 * 2 * d..].fill(bf16::NAN);
        let wide = RowLayout::contiguous(rows, 2 * d);
        let layout = RowLayout::contiguous(rows, d);
        let scale_layout = ScaleLayout::contiguous(
            quant.format(),
            ScaleOrder::ColumnMajor,
            rows,
            quant.groups(d),
        );
        let run = |y: Option<&[bf16]>, counts: Option<&[u8]>| {
            let mut codes = vec![0xee; rows * d];
            let mut scales = vec![0; scale_layout.bytes().unwrap()];
            let mut hits = [0_u8; 12];
            let output = QuantizedMut {
                codes: &mut codes[..],
                layout,
                scales: &mut scales[..],
                scale_layout,
            };
            let options = QuantOptions {
                batch: counts.map(|counts| Batch { rows: 2, counts }),
                hits: Some(&mut hits[..]),
                ..QuantOptions::default()
            };
            match y {
                Some(y) => Reference.quantize(&quant, Tensor::from_slice(y, layout), output),
                None => {
                    let input = Tensor::from_slice(&x, wide).into();
                    Reference.act_and_mul_quant(&op, &quant, input, output, options)
                }
            }
            .unwrap();
            let hits: [u32; 3] = bytemuck::cast(hits);
            (codes, scales, hits)
        };
        let mut y = vec![bf16::ZERO; rows * d];
        let output = TensorMut::from_slice(&mut y, layout);
        Reference
            .act_and_mul(&op, Tensor::from_slice(&x, wide).into(), output)
            .unwrap();
        let (two, fused) = (run(Some(&y), None), run(None, None));
        assert_eq!((&two.0, &two.1), (&fused.0, &fused.1));
        let count = |test: &dyn Fn(f32) -> bool, half: usize| {
            let up = |i: &usize| i / d % 2 == half;
            (0..x.len())
                .filter(up)
                .filter(|&i| test(x[i].to_f32()))
                .count() as u32
        };
        let expected = [
            count(&|x| x > 10.0, 0),
            count(&|x| x > 10.0, 1),
            count(&|x| x < -10.0, 1),
        ];
        assert!(fused.2 == expected && expected.iter().all(|&n| n > 0));
        let counts: [u8; 8] = bytemuck::cast([2_i32, -1]);
        let masked = run(None, Some(&counts[..]));
        assert_eq!(masked.0[..2 * d], fused.0[..2 * d]);
        assert!(masked.0[2 * d..].iter().all(|&c| c == 0xee));
        assert_eq!(masked.2, expected);
    }
}
