use half::{bf16, f16};

use super::{Reference, product_in};
use crate::{
    ActAndMulQuant, Clamp, DType, E4M3, E8M0, Element, Error, GatedActivation, HostBuffer,
    QuantOptions, Quantization, Quantized, QuantizedMatmul, QuantizedMut, Result, ScaleFormat,
    ScaleLayout, ScaleOrder, Support, Tensor, TensorMut,
};

/// One output of the operation times a route weight, evaluated in f64 and rounded once.
pub fn gated_routed<T: Element>(op: &GatedActivation, gate: T, up: T, route: f32) -> T {
    T::from_f64(product_in::<f64, T>(op, gate, up) * f64::from(route))
}

/// Whether this pair is clamped: at the gate (with the clamp after the function, at its result),
/// at the up half from above, and from below. NaN is not.
pub fn clamp_hits<T: Element>(op: &GatedActivation, gate: T, up: T) -> [bool; 3] {
    let up = f64::from(up.to_f32());
    let (gate, limit) = match op.clamp() {
        Clamp::None => return [false; 3],
        Clamp::Before(limit) => (f64::from(gate.to_f32()), limit),
        Clamp::After(limit) => {
            let f = super::of_gate::<f64>(op.function(), f64::from(gate.to_f32()));
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

/// Writes a scale at its place.
fn write_scale(bytes: &mut [u8], layout: &ScaleLayout, row: usize, group: usize, scale: f32) {
    let at = layout.position(row, group);
    match layout.format {
        ScaleFormat::F32 => bytes[4 * at..4 * at + 4].copy_from_slice(&scale.to_le_bytes()),
        // A power of two is its own ceiling.
        ScaleFormat::Ue8m0 => bytes[at] = E8M0::ceil(scale).0,
    }
}

/// The scale at a place.
fn read_scale(bytes: &[u8], layout: &ScaleLayout, row: usize, group: usize) -> f32 {
    let at = layout.position(row, group);
    match layout.format {
        ScaleFormat::F32 => bytemuck::pod_read_unaligned(&bytes[4 * at..4 * at + 4]),
        ScaleFormat::Ue8m0 => E8M0(bytes[at]).to_f32(),
    }
}

fn write_row(
    quant: &Quantization,
    row: usize,
    values: &[f32],
    output: &mut QuantizedMut<'_, HostBuffer>,
) {
    let QuantizedMut { codes, scales } = output;
    let place = codes.layout.row(row);
    let (layout, bytes) = (scales.layout, scales.buffer.bytes_mut());
    quantize_row(
        quant,
        values,
        &mut codes.buffer.bytes_mut()[place],
        |g, s| {
            write_scale(bytes, &layout, row, g, s);
        },
    );
    if layout.order == ScaleOrder::Packed {
        for g in layout.groups..layout.groups.next_multiple_of(4) {
            bytes[layout.position(row, g)] = 0;
        }
    }
}

/// Whether a row is in use.
fn in_use(row: usize, batch: Option<(usize, &[i32])>) -> bool {
    batch.is_none_or(|(rows, counts)| {
        usize::try_from(counts[row / rows]).is_ok_and(|count| row % rows < count)
    })
}

impl Reference {
    fn act_quant<T: Element>(
        op: &GatedActivation,
        quant: &Quantization,
        input: &Tensor<'_, HostBuffer>,
        output: &mut QuantizedMut<'_, HostBuffer>,
        options: QuantOptions<'_, HostBuffer>,
    ) {
        let d = output.codes.layout.cols;
        let route = options.route.map(HostBuffer::bytes);
        let counts = options.batch.map(|b| {
            let counts: Vec<i32> = b
                .counts
                .bytes()
                .as_chunks()
                .0
                .iter()
                .copied()
                .map(i32::from_le_bytes)
                .collect();
            (b.rows, counts)
        });
        let batch = counts.as_ref().map(|(rows, counts)| (*rows, &counts[..]));
        let mut hits = [0_u32; 3];
        let mut values = vec![0.0; d];
        for row in (0..input.layout.rows).filter(|&row| in_use(row, batch)) {
            let x = &input.buffer.typed::<T>()[input.layout.row(row)];
            let w = route.map(|r| bytemuck::pod_read_unaligned::<f32>(&r[4 * row..4 * row + 4]));
            for (j, value) in values.iter_mut().enumerate() {
                let (gate, up) = op.positions(d, j);
                let (gate, up) = (x[gate], x[up]);
                let y = product_in::<f64, T>(op, gate, up) * w.map_or(1.0, f64::from);
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
        if let Some(buffer) = options.hits {
            for (place, count) in buffer.bytes_mut().as_chunks_mut().0.iter_mut().zip(hits) {
                *place = u32::from_le_bytes(*place).wrapping_add(count).to_le_bytes();
            }
        }
    }
}

impl ActAndMulQuant for Reference {
    fn supports_quant(&self, _quant: &Quantization, dtype: DType) -> Support {
        if DType::COMPUTE.contains(&dtype) {
            Support::Native
        } else {
            Support::No(format!("{dtype} is storage only"))
        }
    }

    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, HostBuffer>,
        mut output: QuantizedMut<'_, HostBuffer>,
        options: QuantOptions<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_act_quant(op, quant, &input, &output, &options)?;
        match input.dtype {
            DType::F32 => Self::act_quant::<f32>(op, quant, &input, &mut output, options),
            DType::F16 => Self::act_quant::<f16>(op, quant, &input, &mut output, options),
            DType::BF16 => Self::act_quant::<bf16>(op, quant, &input, &mut output, options),
            DType::F8E4M3 | DType::E8M0 => {
                return Err(Error::argument("input", "f32, f16 or bf16", input.dtype));
            }
        }
        Ok(())
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, HostBuffer>,
        mut output: QuantizedMut<'_, HostBuffer>,
    ) -> Result<()> {
        fn widened<T: Element>(input: &Tensor<'_, HostBuffer>, row: usize) -> Vec<f32> {
            let row = &input.buffer.typed::<T>()[input.layout.row(row)];
            row.iter().map(|x| x.to_f32()).collect()
        }
        self.check_quant(quant, &input, &output)?;
        for row in 0..input.layout.rows {
            let values = match input.dtype {
                DType::F16 => widened::<f16>(&input, row),
                DType::BF16 => widened::<bf16>(&input, row),
                DType::F32 | DType::F8E4M3 | DType::E8M0 => widened::<f32>(&input, row),
            };
            write_row(quant, row, &values, &mut output);
        }
        Ok(())
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, HostBuffer>,
        mut output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_dequant(quant, &input, &output)?;
        let Quantized { codes, scales } = input;
        for row in 0..codes.layout.rows {
            let codes = &codes.buffer.bytes()[codes.layout.row(row)];
            for (j, &code) in codes.iter().enumerate() {
                let group = j / quant.group();
                let scale = read_scale(scales.buffer.bytes(), &scales.layout, row, group);
                let y = f64::from(E4M3(code).to_f32()) * f64::from(scale);
                super::backend::store(&mut output, row, j, y);
            }
        }
        Ok(())
    }
}

impl QuantizedMatmul for Reference {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ActAndMul;

    /// Codes and scales of `values` as one row of bf16.
    fn quantize(quant: &Quantization, values: &[f32], order: ScaleOrder) -> (Vec<u8>, Vec<u8>) {
        let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let d = values.len();
        let input = HostBuffer::from_slice(&values).unwrap();
        let layout = ScaleLayout::contiguous(quant.format(), order, 1, quant.groups(d));
        let mut codes = HostBuffer::zeroed(d).unwrap();
        let mut scales = HostBuffer::zeroed(layout.bytes().unwrap()).unwrap();
        scales.bytes_mut().fill(0xee);
        Reference
            .quantize(
                quant,
                Tensor::contiguous(&input, DType::BF16, 1, d),
                QuantizedMut {
                    codes: TensorMut::contiguous(&mut codes, DType::F8E4M3, 1, d),
                    scales: crate::ScalesMut {
                        buffer: &mut scales,
                        layout,
                    },
                },
            )
            .unwrap();
        (codes.bytes().to_vec(), scales.bytes().to_vec())
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
        let input = HostBuffer::from_slice(&x).unwrap();
        let input = || Tensor::contiguous(&input, DType::BF16, rows, 2 * d);
        let layout = ScaleLayout::contiguous(
            quant.format(),
            ScaleOrder::ColumnMajor,
            rows,
            quant.groups(d),
        );
        let run = |y: Option<&HostBuffer>, batch| {
            let mut codes = HostBuffer::zeroed(rows * d).unwrap();
            codes.bytes_mut().fill(0xee);
            let mut scales = HostBuffer::zeroed(layout.bytes().unwrap()).unwrap();
            let mut hits = HostBuffer::zeroed(12).unwrap();
            let output = QuantizedMut {
                codes: TensorMut::contiguous(&mut codes, DType::F8E4M3, rows, d),
                scales: crate::ScalesMut {
                    buffer: &mut scales,
                    layout,
                },
            };
            let options = QuantOptions {
                batch,
                hits: Some(&mut hits),
                ..QuantOptions::default()
            };
            match y {
                Some(y) => {
                    Reference.quantize(&quant, Tensor::contiguous(y, DType::BF16, rows, d), output)
                }
                None => Reference.act_and_mul_quant(&op, &quant, input(), output, options),
            }
            .unwrap();
            (
                codes,
                scales,
                hits.typed::<f32>()
                    .iter()
                    .map(|x| x.to_bits())
                    .collect::<Vec<_>>(),
            )
        };
        let mut y = HostBuffer::zeroed(2 * rows * d).unwrap();
        Reference
            .act_and_mul(
                &op,
                input(),
                TensorMut::contiguous(&mut y, DType::BF16, rows, d),
            )
            .unwrap();
        let (two, fused) = (run(Some(&y), None), run(None, None));
        assert_eq!(two.0.bytes(), fused.0.bytes());
        assert_eq!(two.1.bytes(), fused.1.bytes());
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
        let counts =
            HostBuffer::from_slice(&[f32::from_bits(2), f32::from_bits(u32::MAX)]).unwrap();
        let masked = run(
            None,
            Some(crate::Batch {
                rows: 2,
                counts: &counts,
            }),
        );
        assert_eq!(masked.0.bytes()[..2 * d], fused.0.bytes()[..2 * d]);
        assert!(masked.0.bytes()[2 * d..].iter().all(|&c| c == 0xee));
        assert_eq!(masked.2, expected);
    }
}
