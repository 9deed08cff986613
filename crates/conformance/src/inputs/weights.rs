use swiglu_core::{E2M1, E4M3, Element, Float, HostWeight, ScaleFormat, WeightFormat, bf16, f16};

use super::Numbers;
use crate::Failure;

/// Every format that weights come in: core's samples, and FP8 also in blocks of 32 x 32.
pub fn weight_formats() -> impl Iterator<Item = WeightFormat> {
    let small = ScaleFormat::ALL.map(|scales| WeightFormat::Fp8 {
        scales,
        block: [32, 32],
    });
    WeightFormat::SAMPLES.into_iter().chain(small)
}

/// So many columns, up to the next number of them that a weight of this format may have.
pub const fn whole_columns(format: &WeightFormat, cols: usize) -> usize {
    cols.next_multiple_of(format.columns_step())
}

/// The bytes of a row of elements in a format, without scales.
///
/// # Errors
/// A format of a newer core that this function does not write yet.
pub fn encode(format: WeightFormat, values: &[f32]) -> Result<Vec<u8>, Failure> {
    if let WeightFormat::Fp4 = format {
        let codes = |pair: &[f32; 2]| E2M1::pack(pair.map(E2M1::from_f32_saturating));
        return Ok(values.as_chunks().0.iter().map(codes).collect());
    }
    let values = values.iter().copied();
    Ok(match format {
        WeightFormat::Float(Float::F32) => values.flat_map(f32::to_le_bytes).collect(),
        WeightFormat::Float(Float::F16) => values
            .flat_map(|x| <f16 as Element>::from_f32(x).to_le_bytes())
            .collect(),
        WeightFormat::Float(Float::BF16) => values
            .flat_map(|x| <bf16 as Element>::from_f32(x).to_le_bytes())
            .collect(),
        WeightFormat::Fp8 { .. } => values.map(|x| E4M3::from_f32_saturating(x).0).collect(),
        _ => {
            return Err(Failure::new(format!(
                "the suite writes no elements of {format} yet: see inputs::encode"
            )));
        }
    })
}

/// What the elements and scales of a made-up weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleValues {
    /// Whole numbers of at most 3, times powers of two: every sum of a matmul is exact in f32.
    Exact,
    /// Numbers of any mantissa.
    Random,
}

/// A made-up weight's bytes.
#[derive(Clone, Debug)]
pub struct SampleWeight {
    /// Rows and columns, \[N, K\].
    pub shape: [usize; 2],
    /// How it is stored.
    pub format: WeightFormat,
    /// The elements.
    pub data: Vec<u8>,
    /// The scales, empty where there are none.
    pub scales: Vec<u8>,
}

impl SampleWeight {
    /// A weight that follows from its seed.
    ///
    /// # Errors
    /// As [`encode`], or as [`WeightFormat::scale_grid`].
    pub fn new(
        shape: [usize; 2],
        format: WeightFormat,
        values: SampleValues,
        seed: u64,
    ) -> Result<Self, Failure> {
        let mut numbers = Numbers::new(seed);
        let mut data = Vec::new();
        for _ in 0..shape[0] {
            let row = (0..shape[1]).map(|_| match values {
                SampleValues::Exact => numbers.below(7) as f32 - 3.0,
                SampleValues::Random => numbers.within(2.0),
            });
            data.extend(encode(format, &row.collect::<Vec<_>>())?);
        }
        let [r, c] = format.scale_grid(shape)?;
        let mut scales = Vec::new();
        if let Some((stored, _)) = format.scaling() {
            scales = vec![0; r * c * stored.size()];
            for i in 0..r * c {
                let power = 2f32.powi(numbers.below(4) as i32 - 2);
                let scale = match (stored, values) {
                    (ScaleFormat::F32, SampleValues::Random) => power * (1.0 + numbers.within(0.4)),
                    (ScaleFormat::F32 | ScaleFormat::E8M0, _) => power,
                };
                stored.write(&mut scales, i, scale);
            }
        }
        Ok(Self {
            shape,
            format,
            data,
            scales,
        })
    }

    /// `count` rows from one on, which starts a block; those past the last are zeros.
    #[must_use]
    pub fn rows(&self, first: usize, count: usize) -> Self {
        let [rows, cols] = self.shape;
        let cut = |bytes: &[u8], size: usize, first: usize, count: usize, pad: &[u8]| {
            let end = bytes.len().min((first + count) * size);
            let mut cut = bytes[end.min(first * size)..end].to_vec();
            let missing = count * size - cut.len();
            cut.extend(pad.iter().cycle().take(missing));
            cut
        };
        let scales = match self.format.scaling() {
            None => Vec::new(),
            Some((stored, block)) => {
                let mut one = vec![0; stored.size()];
                stored.write(&mut one, 0, 1.0);
                let size = cols.div_ceil(block[1]) * stored.size();
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

    /// The weight as backends load it.
    ///
    /// # Errors
    /// No rows or columns.
    pub fn view(&self) -> Result<HostWeight<'_>, Failure> {
        let (data, scales) = (&self.data, &self.scales);
        Ok(HostWeight::new(self.shape, self.format, data, scales)?)
    }
}

/// All rows of stacked weights in f64, [N, K].
pub(crate) fn decoded(parts: &[HostWeight<'_>]) -> Vec<Vec<f64>> {
    let row = |w: &HostWeight<'_>, r| {
        let mut row = vec![0.0; w.cols()];
        w.decode_row(r, &mut row);
        row
    };
    let rows = |w| (0..HostWeight::rows(w)).map(move |r| row(w, r));
    parts.iter().flat_map(rows).collect()
}
