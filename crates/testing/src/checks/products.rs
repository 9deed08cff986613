use swiglu_core::{DType, Element, HostWeight, Matmul, RowLayout, bf16, f16};

use super::weights::{FORMATS, Format, Stored, Values, decoded};
use crate::compare::shown;
use crate::inputs::Numbers;
use crate::{Failure, Harness};

const ROWS: [usize; 5] = [0, 1, 2, 7, 33];

/// Two parts: their border, the last rows and the last columns all cut a block.
const PARTS: [[usize; 2]; 2] = [[150, 300], [37, 300]];

/// One product against sums in f64. `slack` scales the bound that f32 accumulation may reach.
struct Case<'a> {
    parts: &'a [HostWeight<'a>],
    rows: usize,
    values: Values,
    slack: f64,
}

impl Case<'_> {
    fn compare<X: Element, Y: Element, B: Matmul>(&self, h: &Harness<B>) -> Result<(), Failure> {
        let weight = decoded(self.parts);
        let (n, k) = (weight.len(), self.parts[0].cols());
        let mut numbers = Numbers::new(self.rows as u64);
        let mut value = || match self.values {
            Values::Exact => numbers.below(17) as f32 - 8.0,
            Values::Random => numbers.within(4.0),
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
            let got = h.product::<X, Y>(&x, x_layout, self.parts, y_layout)?;
            for (at, &got) in got.iter().enumerate() {
                let (t, j) = (at / n, at % n);
                let terms = x[t * k..(t + 1) * k].iter().zip(&weight[j]);
                let terms = terms.map(|(x, w)| f64::from(x.to_f32()) * w);
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), p: f64| (s + p, a + p.abs()));
                if !self.within::<Y>(got, sum, size, k) {
                    let want = Y::from_f64(sum);
                    return Err(Failure::new(format!(
                        "x of {} with {x_layout}, y[{t}, {j}] of {}: got {}, expected {}",
                        X::DTYPE,
                        Y::DTYPE,
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

fn each_format<B: Matmul>(
    h: &Harness<B>,
    values: Values,
    mut check: impl FnMut(&[HostWeight<'_>]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for (i, format) in FORMATS.into_iter().enumerate() {
        if !h.backend.supports_weight(format.0).runs() {
            return Err(Failure::new(format!("weights of {} do not run", format.0)));
        }
        let [a, b] = [0, 1].map(|p| Stored::new(PARTS[p], format, values, (2 * i + p) as u64));
        check(&[a.view()?, b.view()?])
            .and_then(|()| check(&[b.view()?]))
            .map_err(|f| f.within(label(format)))?;
    }
    Ok(())
}

fn label((dtype, scales): Format) -> String {
    match scales {
        None => format!("weight of {dtype}"),
        Some((scale, [r, c])) => format!("weight of {dtype}, scales of {scale} for {r} x {c}"),
    }
}

/// Products whose every partial sum is exact in f32: any order of adding gives the same bits.
///
/// # Errors
/// The first result that is not the sum, rounded once.
pub fn products_of_exact_sums<B: Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    each_format(h, Values::Exact, |parts| {
        for rows in ROWS {
            let case = Case {
                parts,
                rows,
                values: Values::Exact,
                slack: 0.0,
            };
            case.compare::<bf16, bf16, B>(h)?;
            case.compare::<f16, f16, B>(h)?;
            case.compare::<f32, f32, B>(h)?;
        }
        Ok(())
    })
}

/// Products of any numbers, within what k additions in f32 may lose and one rounding.
///
/// # Errors
/// The first result beyond that.
pub fn products_within_the_bound<B: Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    each_format(h, Values::Random, |parts| {
        for rows in ROWS {
            let case = Case {
                parts,
                rows,
                values: Values::Random,
                slack: 1.0,
            };
            case.compare::<bf16, bf16, B>(h)?;
            case.compare::<bf16, f32, B>(h)?;
            case.compare::<f16, f16, B>(h)?;
            case.compare::<f32, f32, B>(h)?;
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
    let format = (DType::F8E4M3, Some((DType::E8M0, [32, 32])));
    let mut weight = Stored::new([70, 100], format, Values::Exact, 5);
    // The grid of scales is 3 x 4: this is the block of rows 32 to 63 and the last columns.
    weight.scales[4 + 3] = 0xff;
    weight.data[3 * 100 + 50] = 0xff;
    for rows in [1, 7] {
        let x = Numbers::new(9).values::<bf16>(rows * 100, 4.0);
        let layouts = [100, 70].map(|cols| RowLayout::contiguous(rows, cols));
        let y: Vec<f32> = h.product(&x, layouts[0], &[weight.view()?], layouts[1])?;
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
