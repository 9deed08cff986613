use swiglu_core::{BlockScales, DType, HostWeight};

use crate::Failure;
use crate::inputs::{Numbers, push};

/// How a weight is stored: its type, and for f8 the type of the scales and the block.
pub(super) type Format = (DType, Option<(DType, [usize; 2])>);

/// Every type, and the blocks of the models' checkpoints with either type of scales.
pub(super) const FORMATS: [Format; 7] = [
    (DType::F32, None),
    (DType::F16, None),
    (DType::BF16, None),
    (DType::F8E4M3, Some((DType::E8M0, [128, 128]))),
    (DType::F8E4M3, Some((DType::E8M0, [32, 32]))),
    (DType::F8E4M3, Some((DType::F32, [128, 128]))),
    (DType::F8E4M3, Some((DType::F32, [32, 32]))),
];

/// What the elements and scales of a weight are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Values {
    /// Whole numbers of at most 3, times powers of two: every sum of products is exact in f32.
    Exact,
    /// Numbers of any mantissa.
    Random,
}

/// A weight's bytes.
pub(super) struct Stored {
    pub shape: [usize; 2],
    pub format: Format,
    pub data: Vec<u8>,
    pub scales: Vec<u8>,
}

impl Stored {
    pub(super) fn new(shape: [usize; 2], format: Format, values: Values, seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let mut data = Vec::new();
        for _ in 0..shape[0] * shape[1] {
            let x = match values {
                Values::Exact => numbers.below(7) as f32 - 3.0,
                Values::Random => numbers.within(2.0),
            };
            push(&mut data, format.0, x);
        }
        let mut scales = Vec::new();
        if let Some((dtype, block)) = format.1 {
            for _ in 0..shape[0].div_ceil(block[0]) * shape[1].div_ceil(block[1]) {
                let power = 2f32.powi(numbers.below(4) as i32 - 2);
                let scale = match (dtype, values) {
                    (DType::F32, Values::Random) => power * (1.0 + numbers.within(0.4)),
                    _ => power,
                };
                push(&mut scales, dtype, scale);
            }
        }
        Self {
            shape,
            format,
            data,
            scales,
        }
    }

    /// `count` rows from one on, which starts a block; those past the last are zeros.
    pub(super) fn rows(&self, first: usize, count: usize) -> Self {
        let [rows, cols] = self.shape;
        let cut = |bytes: &[u8], size: usize, first: usize, count: usize, pad: &[u8]| {
            let end = bytes.len().min((first + count) * size);
            let mut cut = bytes[end.min(first * size)..end].to_vec();
            let missing = count * size - cut.len();
            cut.extend(pad.iter().cycle().take(missing));
            cut
        };
        let scales = match self.format.1 {
            None => Vec::new(),
            Some((dtype, block)) => {
                let mut one = Vec::new();
                push(&mut one, dtype, 1.0);
                let size = cols.div_ceil(block[1]) * dtype.size();
                let [first, count] = [first, count].map(|n| n / block[0]);
                cut(&self.scales, size, first, count, &one)
            }
        };
        Self {
            shape: [count, cols],
            format: self.format,
            data: cut(&self.data, self.data.len() / rows, first, count, &[0]),
            scales,
        }
    }

    pub(super) fn view(&self) -> Result<HostWeight<'_>, Failure> {
        let scales = self.format.1.map(|(dtype, block)| BlockScales {
            data: &self.scales,
            dtype,
            block,
        });
        let [n, k] = self.shape;
        Ok(HostWeight::new(n, k, self.format.0, &self.data, scales)?)
    }
}

/// All rows of stacked weights in f64, [N, K].
pub(super) fn decoded(parts: &[HostWeight<'_>]) -> Vec<Vec<f64>> {
    let row = |w: &HostWeight<'_>, r| {
        let mut row = vec![0.0; w.cols()];
        w.decode_row(r, &mut row);
        row
    };
    let rows = |w| (0..HostWeight::rows(w)).map(move |r| row(w, r));
    parts.iter().flat_map(rows).collect()
}
