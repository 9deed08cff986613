use bytemuck::Pod;
use half::{bf16, f16};

use crate::{
    ActAndMul, Backend, BlockScales, DType, Element, Error, GatedActivation, GatedMatmul,
    HostBuffer, HostWeight, Matmul, Result, Rows, RowsMut, Support, Tensor, TensorMut,
};

/// The reference as a backend: one thread, f64 between the roundings, correct and slow. Calls run
/// at once, and products allocate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// A weight as it was stored.
#[derive(Clone, Debug)]
pub struct ReferenceWeight {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    rows: usize,
    cols: usize,
    dtype: DType,
    data: Vec<u8>,
    scales: Option<(Vec<u8>, DType, [usize; 2])>,
}

impl Part {
    fn view(&self) -> Result<HostWeight<'_>> {
        let scales = self
            .scales
            .as_ref()
            .map(|(data, dtype, block)| BlockScales {
                data,
                dtype: *dtype,
                block: *block,
            });
        HostWeight::new(self.rows, self.cols, self.dtype, &self.data, scales)
    }
}

impl Reference {
    fn act<T: Element>(
        op: &GatedActivation,
        input: &Tensor<'_, HostBuffer>,
        output: &mut TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        super::act_and_mul::<T>(
            op,
            Rows::new(input.buffer.typed(), input.layout)?,
            RowsMut::new(output.buffer.typed_mut(), output.layout)?,
        )
    }
}

impl Backend for Reference {
    type Device = ();
    type Buffer = HostBuffer;

    fn platform(&self) -> &'static str {
        "reference"
    }

    fn description(&self) -> String {
        "scalar f64, one thread".to_owned()
    }

    fn device(&self) -> &() {
        &()
    }

    fn supports(&self, _op: &GatedActivation, dtype: DType) -> Support {
        if DType::COMPUTE.contains(&dtype) {
            Support::Native
        } else {
            Support::No(format!("{dtype} is storage only"))
        }
    }

    fn alloc(&self, bytes: usize) -> Result<HostBuffer> {
        HostBuffer::zeroed(bytes)
    }

    fn len(&self, buffer: &HostBuffer) -> usize {
        buffer.len()
    }

    fn upload(&self, buffer: &mut HostBuffer, data: &[u8]) -> Result<()> {
        buffer.write(data)
    }

    fn download(&self, buffer: &HostBuffer, data: &mut [u8]) -> Result<()> {
        buffer.read(data)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl ActAndMul for Reference {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, HostBuffer>,
        mut output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_act(&input, &output)?;
        match input.dtype {
            DType::F32 => Self::act::<f32>(op, &input, &mut output),
            DType::F16 => Self::act::<f16>(op, &input, &mut output),
            DType::BF16 => Self::act::<bf16>(op, &input, &mut output),
            DType::F8E4M3 | DType::E8M0 => {
                Err(Error::argument("input", "f32, f16 or bf16", input.dtype))
            }
        }
    }
}

/// Rows of any of the three types as f64, one after another.
fn widened(x: &Tensor<'_, HostBuffer>) -> Vec<f64> {
    fn typed<T: Element + Pod>(x: &Tensor<'_, HostBuffer>) -> Vec<f64> {
        let data = x.buffer.typed::<T>();
        let row = |t| data[x.layout.row(t)].iter();
        (0..x.layout.rows)
            .flat_map(row)
            .map(|v| f64::from(v.to_f32()))
            .collect()
    }
    match x.dtype {
        DType::F16 => typed::<f16>(x),
        DType::BF16 => typed::<bf16>(x),
        DType::F32 | DType::F8E4M3 | DType::E8M0 => typed::<f32>(x),
    }
}

pub(super) fn store(y: &mut TensorMut<'_, HostBuffer>, t: usize, n: usize, value: f64) {
    let at = y.layout.row(t).start + n;
    match y.dtype {
        DType::F16 => y.buffer.typed_mut()[at] = <f16 as Element>::from_f64(value),
        DType::BF16 => y.buffer.typed_mut()[at] = <bf16 as Element>::from_f64(value),
        DType::F32 | DType::F8E4M3 | DType::E8M0 => {
            y.buffer.typed_mut()[at] = <f32 as Element>::from_f64(value);
        }
    }
}

/// Four sums side by side, so that the compiler can use vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let (a, a_rest) = a.as_chunks::<4>();
    let (b, b_rest) = b.as_chunks::<4>();
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

impl Matmul for Reference {
    type Weight = ReferenceWeight;

    fn supports_weight(&self, dtype: DType) -> Support {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => Support::Native,
            DType::E8M0 => Support::No("f8_e8m0 holds scales only".to_owned()),
        }
    }

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<ReferenceWeight> {
        HostWeight::check_parts(parts)?;
        let own = |w: &HostWeight<'_>| Part {
            rows: w.rows(),
            cols: w.cols(),
            dtype: w.dtype(),
            data: w.data().to_vec(),
            scales: w.scales().map(|s| (s.data.to_vec(), s.dtype, s.block)),
        };
        Ok(ReferenceWeight {
            parts: parts.iter().map(own).collect(),
        })
    }

    fn weight_shape(&self, weight: &ReferenceWeight) -> [usize; 2] {
        let rows = weight.parts.iter().map(|p| p.rows).sum();
        [rows, weight.parts.first().map_or(0, |p| p.cols)]
    }

    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        let bytes = |p: &Part| p.data.len() + p.scales.as_ref().map_or(0, |s| s.0.len());
        weight.parts.iter().map(bytes).sum()
    }

    fn matmul(
        &self,
        x: Tensor<'_, HostBuffer>,
        weight: &ReferenceWeight,
        mut y: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_matmul(&x, weight, &y)?;
        let k = x.layout.cols;
        let x = widened(&x);
        let mut row = vec![0.0; k];
        let mut n = 0;
        for part in &weight.parts {
            let w = part.view()?;
            for r in 0..part.rows {
                w.decode_row(r, &mut row);
                for (t, x) in x.chunks_exact(k).enumerate() {
                    store(&mut y, t, n, dot(x, &row));
                }
                n += 1;
            }
        }
        Ok(())
    }
}

impl GatedMatmul for Reference {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_stacked_fp8_parts_is_the_sum_it_stands_for() {
        let one = crate::E4M3::from_f32_saturating(1.0).0;
        let codes = [one; 6];
        let scales = |s| BlockScales {
            data: s,
            dtype: DType::E8M0,
            block: [128, 2],
        };
        let part = |s| HostWeight::new(2, 3, DType::F8E4M3, &codes, Some(scales(s))).unwrap();
        let w = Reference
            .load_weight(&[part(&[127, 128]), part(&[129, 130])])
            .unwrap();
        assert_eq!(Reference.weight_shape(&w), [4, 3]);
        let x = HostBuffer::from_slice(&[1.0_f32, 10.0, 100.0]).unwrap();
        let mut y = Reference.alloc(16).unwrap();
        Reference
            .matmul(
                Tensor::contiguous(&x, DType::F32, 1, 3),
                &w,
                TensorMut::contiguous(&mut y, DType::F32, 1, 4),
            )
            .unwrap();
        assert_eq!(y.typed::<f32>(), [211.0, 211.0, 844.0, 844.0]);
    }

    #[test]
    fn calls_that_do_not_fit_are_errors() {
        let x = Reference.alloc(8).unwrap();
        let mut y = Reference.alloc(2).unwrap();
        let input = || Tensor::contiguous(&x, DType::BF16, 2, 2);
        let op = GatedActivation::silu_and_mul();
        let short = TensorMut::contiguous(&mut y, DType::BF16, 2, 1);
        let error = Reference.act_and_mul(&op, input(), short).unwrap_err();
        assert!(
            error.to_string().starts_with("output: expected at least 2"),
            "{error}"
        );
        let odd = TensorMut::contiguous(&mut y, DType::F16, 2, 1);
        assert!(Reference.act_and_mul(&op, input(), odd).is_err());
        assert!(Reference.upload(&mut y, &[0; 3]).is_err());
        assert!(Reference.download(&y, &mut [0; 3]).is_err());
    }
}
