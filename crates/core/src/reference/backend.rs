use crate::{
    ActAndMul, Backend, Element, GateUp, GatedActivation, Halves, HostWeight, Matmul, Request,
    Result, Support, Tensor, TensorMut, check, with_float,
};

/// The reference as a backend: one thread, f64 between the roundings, correct and slow. Calls run
/// at once, and matmuls allocate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// A weight as it was stored: parts, one above the other.
#[derive(Clone, Debug)]
pub struct ReferenceWeight {
    parts: Vec<HostWeight<'static>>,
}

impl Backend for Reference {
    crate::host_memory!();

    fn platform(&self) -> &'static str {
        "reference"
    }

    fn description(&self) -> String {
        "scalar f64, one thread".to_owned()
    }

    fn supports(&self, request: &Request) -> Support {
        match request {
            Request::QuantizedMatmul { .. } => {
                Support::Emulated("codes are widened before the matmul".to_owned())
            }
            Request::QuantizingGatedMatmul { .. }
            | Request::QuantizingGatedMatmulQuant { .. }
            | Request::QuantizingMatmul { .. } => {
                Support::No("x is quantized before its matmul".to_owned())
            }
            Request::Activation { .. }
            | Request::ActivationQuant { .. }
            | Request::Quantize { .. }
            | Request::Matmul { .. }
            | Request::GatedMatmul { .. }
            | Request::Route { .. }
            | Request::GroupedGatedMatmul { .. }
            | Request::GroupedMatmulSum { .. } => Support::Native,
        }
    }
}

fn act<T: Element>(
    op: &GatedActivation,
    input: &GateUp<'_, Reference>,
    output: TensorMut<'_, Reference>,
) -> Result<()> {
    let halves = Halves::<T>::new(op, input)?;
    let layout = output.layout;
    let output = output.into_typed::<T>("output")?;
    for t in 0..layout.rows {
        for (y, (gate, up)) in output[layout.row(t)].iter_mut().zip(halves.pairs(t)) {
            *y = super::gated(op, gate, up);
        }
    }
    Ok(())
}

impl ActAndMul for Reference {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::act(&input, &output)?;
        with_float!(input.float(), T => act::<T>(op, &input, output))
    }
}

/// Rows of any of the three types as f64, one after another.
fn widened<T: Element>(x: &Tensor<'_, Reference>) -> Result<Vec<f64>> {
    let data = x.typed::<T>("x")?;
    let rows = (0..x.layout.rows).flat_map(|t| &data[x.layout.row(t)]);
    Ok(rows.map(|v| f64::from(v.to_f32())).collect())
}

/// Rounds what `value` gives for each row and column of y.
pub(super) fn store(
    argument: &'static str,
    y: TensorMut<'_, Reference>,
    mut value: impl FnMut(usize, usize) -> f64,
) -> Result<()> {
    let layout = y.layout;
    with_float!(y.float, T => {
        let y = y.into_typed::<T>(argument)?;
        for t in 0..layout.rows {
            for (n, y) in y[layout.row(t)].iter_mut().enumerate() {
                *y = <T as Element>::from_f64(value(t, n));
            }
        }
    });
    Ok(())
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

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<ReferenceWeight> {
        HostWeight::check_parts(parts)?;
        let own = |w: &HostWeight<'_>| w.clone().into_owned();
        Ok(ReferenceWeight {
            parts: parts.iter().map(own).collect(),
        })
    }

    fn weight_shape(&self, weight: &ReferenceWeight) -> [usize; 2] {
        let rows = weight.parts.iter().map(HostWeight::rows).sum();
        [rows, weight.parts.first().map_or(0, HostWeight::cols)]
    }

    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        weight.parts.iter().map(HostWeight::bytes).sum()
    }

    fn matmul(
        &self,
        x: Tensor<'_, Self>,
        weight: &ReferenceWeight,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        let [n, k] = self.weight_shape(weight);
        check::matmul(&x, [n, k], &y)?;
        let rows = x.layout.rows;
        let x = with_float!(x.float, T => widened::<T>(&x))?;
        let mut row = vec![0.0; k];
        let mut sums = vec![0.0; rows * n];
        let stacked = weight
            .parts
            .iter()
            .flat_map(|w| (0..w.rows()).map(move |r| (w, r)));
        for (j, (part, r)) in stacked.enumerate() {
            part.decode_row(r, &mut row);
            for (t, x) in x.chunks_exact(k).enumerate() {
                sums[t * n + j] = dot(x, &row);
            }
        }
        store("y", y, |t, j| sums[t * n + j])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Float;

    #[test]
    fn a_product_of_stacked_fp4_parts_is_the_sum_it_stands_for() {
        // Columns are 1 and -2 in turn, or 6 and 0.5.
        let rows = [[0xc2_u8; 32], [0x17; 32]].concat();
        let part = |scales| HostWeight::new([2, 64], crate::WeightFormat::Fp4, &rows, scales);
        let parts = [[127, 128, 130, 120], [127, 127, 255, 127]];
        let parts = parts.each_ref().map(|scales| part(scales).unwrap());
        let w = Reference.load_weight(&parts).unwrap();
        assert_eq!(Reference.weight_shape(&w), [4, 64]);
        assert_eq!(Reference.weight_bytes(&w), 2 * (64 + 4));
        let x: Vec<f32> = (0..64).map(|k| (1 + k / 32) as f32).collect();
        let mut y = [0.0_f32; 4];
        let at = |cols| crate::RowLayout::contiguous(1, cols);
        let (x, to) = (
            Tensor::from_slice(&x, at(64)),
            TensorMut::from_slice(&mut y, at(4)),
        );
        Reference.matmul(x, &w, to).unwrap();
        // 16 pairs a group, of -1 and of 6.5.
        assert_eq!(
            y[..3],
            [-16.0 * 5.0, 104.0 * (8.0 + 2.0 / 128.0), -16.0 * 3.0]
        );
        assert!(y[3].is_nan());
    }

    #[test]
    fn a_product_of_stacked_fp8_parts_is_the_sum_it_stands_for() {
        let one = crate::E4M3::from_f32_saturating(1.0).0;
        let codes = [one; 6];
        let format = crate::WeightFormat::Fp8 {
            scales: crate::ScaleFormat::E8M0,
            block: [128, 2],
        };
        let part = |s| HostWeight::new([2, 3], format, &codes, s).unwrap();
        let w = Reference
            .load_weight(&[part(&[127, 128]), part(&[129, 130])])
            .unwrap();
        assert_eq!(Reference.weight_shape(&w), [4, 3]);
        let (x, mut y) = ([1.0_f32, 10.0, 100.0], [0.0_f32; 4]);
        let row = crate::RowLayout::contiguous;
        Reference
            .matmul(
                Tensor::from_slice(&x, row(1, 3)),
                &w,
                TensorMut::from_slice(&mut y, row(1, 4)),
            )
            .unwrap();
        assert_eq!(y, [211.0, 211.0, 844.0, 844.0]);
    }

    #[test]
    fn calls_that_do_not_fit_are_errors() {
        let mut y = Reference.alloc(2).unwrap();
        let x = Reference.alloc(8).unwrap();
        let input = || Tensor::contiguous(Reference::view(&x), Float::BF16, 2, 2).into();
        let op = GatedActivation::silu_and_mul();
        let short = TensorMut::contiguous(Reference::view_mut(&mut y), Float::BF16, 2, 1);
        let error = Reference.act_and_mul(&op, input(), short).unwrap_err();
        assert!(
            error.to_string().starts_with("output: expected at least 2"),
            "{error}"
        );
        let other = TensorMut::contiguous(Reference::view_mut(&mut y), Float::F16, 2, 1);
        assert!(Reference.act_and_mul(&op, input(), other).is_err());
        assert!(Reference.upload(&mut y, &[0; 3]).is_err());
        assert!(Reference.download(&y, &mut [0; 3]).is_err());
    }

    #[test]
    fn a_view_between_two_elements_is_an_error() {
        let buffer = Reference.alloc(16).unwrap();
        let mut y = [0.0_f32; 1];
        let odd = Tensor::contiguous(&Reference::view(&buffer)[1..], Float::F32, 1, 2);
        let output = TensorMut::from_slice(&mut y, crate::RowLayout::contiguous(1, 1));
        let op = GatedActivation::silu_and_mul();
        let error = Reference.act_and_mul(&op, odd.into(), output).unwrap_err();
        let expected = "input: expected memory aligned to 4 bytes";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
