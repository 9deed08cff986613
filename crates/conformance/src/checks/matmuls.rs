use swiglu_core::{
    Element, HostWeight, Matmul, Request, RowLayout, ScaleFormat, WeightFormat, bf16, f16,
};

use crate::compare::shown;
use crate::inputs::{Numbers, SampleValues, SampleWeight, decoded, weight_formats, whole_columns};
use crate::skips::Skips;
use crate::{Failure, Harness};

const ROWS: [usize; 5] = [0, 1, 2, 7, 33];

/// Two parts: their border, the last rows and the last columns all cut a block.
const PARTS: [[usize; 2]; 2] = [[150, 300], [37, 300]];

/// One matmul against sums in f64. `slack` scales the bound that f32 accumulation may reach.
struct SumsCase<'a> {
    parts: &'a [HostWeight<'a>],
    rows: usize,
    values: SampleValues,
    slack: f64,
}

impl SumsCase<'_> {
    fn compare<X: Element, Y: Element, B: Matmul>(
        &self,
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let request = Request::Matmul {
            x: X::FLOAT,
            weight: self.parts[0].format(),
            y: Y::FLOAT,
        };
        if !skips.runs(&request) {
            return Ok(());
        }
        let weight = decoded(self.parts);
        let (n, k) = (weight.len(), self.parts[0].cols());
        let mut numbers = Numbers::new(self.rows as u64);
        let mut value = || match self.values {
            SampleValues::Exact => numbers.below(17) as f32 - 8.0,
            SampleValues::Random => numbers.within(4.0),
        };
        let x: Vec<X> = (0..self.rows * k).map(|_| X::from_f32(value())).collect();
        // Odd strides and offsets: rows are aligned to the element only.
        let x_layout = RowLayout::contiguous(self.rows, k)
            .with_stride(k + 3)
            .with_offset(1);
        let y_layout = RowLayout::contiguous(self.rows, n)
            .with_stride(n + 5)
            .with_offset(1);
        for (x_layout, y_layout) in [
            (
                RowLayout::contiguous(self.rows, k),
                RowLayout::contiguous(self.rows, n),
            ),
            (x_layout, y_layout),
        ] {
            let got = h.matmul::<X, Y>(&x, x_layout, self.parts, y_layout)?;
            for (at, &got) in got.iter().enumerate() {
                let (t, j) = (at / n, at % n);
                let terms = x[t * k..(t + 1) * k].iter().zip(&weight[j]);
                let terms = terms.map(|(x, w)| f64::from(x.to_f32()) * w);
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), p: f64| (s + p, a + p.abs()));
                if !self.within::<Y>(got, sum, size, k) {
                    let want = Y::from_f64(sum);
                    return Err(Failure::new(format!(
                        "x of {} with {x_layout}, y[{t}, {j}] of {}: got {}, expected {}",
                        X::FLOAT,
                        Y::FLOAT,
                        shown(got),
                        shown(want),
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether a result is the sum rounded to Y, give or take what k additions in f32 lose.
    fn within<Y: Element>(&self, got: Y, sum: f64, size: f64, k: usize) -> bool {
        if self.slack == 0.0 {
            return got == Y::from_f64(sum);
        }
        let lost = self.slack * (k as f64 + 4.0) * f64::from(f32::EPSILON) / 2.0 * size;
        let (low, high) = (Y::from_f64(sum - lost), Y::from_f64(sum + lost));
        low.to_f32() <= got.to_f32() && got.to_f32() <= high.to_f32()
    }
}

/// Weights of two parts and of one, in every format.
fn each_format(
    values: SampleValues,
    mut check: impl FnMut(&[HostWeight<'_>]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for (i, format) in weight_formats().enumerate() {
        let part = |p: usize| {
            let [rows, cols] = PARTS[p];
            let shape = [rows, whole_columns(&format, cols)];
            SampleWeight::new(shape, format, values, (2 * i + p) as u64)
        };
        let [a, b] = [part(0)?, part(1)?];
        check(&[a.view()?, b.view()?])
            .and_then(|()| check(&[b.view()?]))
            .map_err(|f| f.within(format!("weight of {format}")))?;
    }
    Ok(())
}

/// Matmuls whose every partial sum is exact in f32: any order of adding gives the same bits.
///
/// # Errors
/// The first result that is not the sum, rounded once.
pub fn matmuls_of_exact_sums<B: Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "matmuls_of_exact_sums");
    let values = SampleValues::Exact;
    each_format(values, |parts| {
        for rows in ROWS {
            let case = SumsCase {
                parts,
                rows,
                values,
                slack: 0.0,
            };
            case.compare::<bf16, bf16, B>(h, skips)?;
            case.compare::<f16, f16, B>(h, skips)?;
            case.compare::<f32, f32, B>(h, skips)?;
        }
        Ok(())
    })
}

/// Matmuls of any numbers, within what k additions in f32 may lose and one rounding.
///
/// # Errors
/// The first result beyond that.
pub fn matmuls_within_the_bound<B: Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    let skips = &mut Skips::new(h, "matmuls_within_the_bound");
    let values = SampleValues::Random;
    each_format(values, |parts| {
        for rows in ROWS {
            let case = SumsCase {
                parts,
                rows,
                values,
                slack: 1.0,
            };
            case.compare::<bf16, bf16, B>(h, skips)?;
            case.compare::<bf16, f32, B>(h, skips)?;
            case.compare::<f16, f16, B>(h, skips)?;
            case.compare::<f32, f32, B>(h, skips)?;
        }
        Ok(())
    })
}

/// A scale that is NaN makes the outputs of its block's rows NaN, and no others; so does a NaN
/// among the elements for its row.
///
/// # Errors
/// The first output that is otherwise.
pub fn a_nan_scale_stays_in_its_block<B: Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    let format = WeightFormat::Fp8 {
        scales: ScaleFormat::E8M0,
        block: [32, 32],
    };
    let request = Request::Matmul {
        x: bf16::FLOAT,
        weight: format,
        y: f32::FLOAT,
    };
    if !Skips::new(h, "a_nan_scale_stays_in_its_block").runs(&request) {
        return Ok(());
    }
    let mut weight = SampleWeight::new([70, 100], format, SampleValues::Exact, 5)?;
    // The grid of scales is 3 x 4: this is the block of rows 32 to 63 and the last columns.
    weight.scales[4 + 3] = 0xff;
    weight.data[3 * 100 + 50] = 0xff;
    for rows in [1, 7] {
        let x = Numbers::new(9).values::<bf16>(rows * 100, 4.0);
        let layouts = [100, 70].map(|cols| RowLayout::contiguous(rows, cols));
        let y: Vec<f32> = h.matmul(&x, layouts[0], &[weight.view()?], layouts[1])?;
        for (at, y) in y.iter().enumerate() {
            let n = at % 70;
            if f32::is_nan(*y) != (n == 3 || (32..64).contains(&n)) {
                return Err(Failure::new(format!(
                    "output {n} of row {} is {y}",
                    at / 70
                )));
            }
        }
    }
    Ok(())
}
