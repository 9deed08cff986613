//! A quantization cut into launches, and where its scales lie.

use swiglu_core::{
    ActShape, DType, Error as CoreError, Quantization, RowLayout, ScaleLayout, ScaleOrder,
};

use crate::{
    RawMatrix, Result,
    params::{Divisor, QuantParams, Scalars},
    plan::{MOST, aligned},
};

/// A matrix of E4M3 codes and their scales in bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawQuantized {
    /// Address of the codes' buffer.
    pub codes: u64,
    /// \[T, d\].
    pub codes_layout: RowLayout,
    /// Address of the first scale, aligned to its size.
    pub scales: u64,
    /// \[T, G\].
    pub scales_layout: ScaleLayout,
}

impl RawQuantized {
    /// Checks the shapes, the strides and the addresses' alignment.
    pub(crate) fn check(&self, quant: &Quantization, shape: ActShape) -> Result<()> {
        let ActShape { rows, d } = shape;
        let (codes, scales) = (&self.codes_layout, &self.scales_layout);
        if (codes.rows, codes.cols) != (rows, d) {
            let expected = format!("shape [{rows}, {d}]");
            return Err(CoreError::argument("codes", expected, codes).into());
        }
        codes.end("codes")?;
        let wanted = (quant.format(), rows, quant.groups(d));
        if (scales.format, scales.rows, scales.groups) != wanted {
            let (format, rows, groups) = wanted;
            let expected = format!("[{rows}, {groups}] {format} scales");
            return Err(CoreError::argument("scales", expected, scales).into());
        }
        scales.bytes()?;
        if !self.scales.is_multiple_of(scales.format.size() as u64) {
            let expected = format!("an address aligned to {} bytes", scales.format.size());
            let got = format!("{:#x}", self.scales);
            return Err(CoreError::argument("scales", expected, got).into());
        }
        Ok(())
    }
}

/// Checks that a matrix's address is aligned to its elements.
pub(crate) fn check_aligned(argument: &'static str, matrix: &RawMatrix) -> Result<()> {
    if aligned(matrix.address, matrix.dtype) {
        return Ok(());
    }
    let expected = format!("an address aligned to {} bytes", matrix.dtype.size());
    let got = format!("{:#x}", matrix.address);
    Err(CoreError::argument(argument, expected, got).into())
}

impl QuantParams {
    /// All rows, of a matrix of numbers of this type and stride: no activation, every row in use,
    /// one element a thread. The caller has checked the matrices.
    pub(crate) fn new(
        quant: &Quantization,
        numbers: &RawMatrix,
        quantized: &RawQuantized,
    ) -> Result<Self> {
        let (codes, scales) = (&quantized.codes_layout, &quantized.scales_layout);
        // So that a thread's column, in the last group's rest too, is a u32.
        if codes.cols >= 1 << 31 {
            let expected = "fewer than 2^31 columns";
            return Err(CoreError::argument("codes", expected, codes.cols).into());
        }
        let stride = scales.stride as u64;
        let (scale_row, scale_word, word_log) = match scales.order {
            ScaleOrder::RowMajor => (stride, 1, 0),
            ScaleOrder::ColumnMajor => (1, stride, 0),
            ScaleOrder::Packed => (4, 4 * stride, 2),
        };
        let params = Self {
            gate: numbers.first(),
            up: 0,
            codes: quantized.codes + codes.offset as u64,
            scales: quantized.scales,
            route: 0,
            counts: 0,
            hits: 0,
            input_stride: numbers.layout.stride as u64,
            codes_stride: codes.stride as u64,
            scale_row,
            scale_word,
            threads: 0,
            row_threads: 0,
            by_row: Divisor::new(1),
            batch_rows: 1,
            first_row: 0,
            by_batch: Divisor::new(1),
            d: codes.cols as u32,
            groups: scales.groups as u32,
            group_log: 0,
            word_log,
            power_of_two: u32::from(scales.format == swiglu_core::ScaleFormat::Ue8m0),
            materialize: u32::from(quant.materialize()),
            floor: quant.floor(),
            scalars: Scalars::default(),
        };
        Ok(params.with_elements(quant, 1))
    }

    /// The same with so many elements a thread.
    pub(crate) fn with_elements(self, quant: &Quantization, elements: usize) -> Self {
        let group_threads = (quant.group() / elements) as u32;
        let row_threads = self.groups * group_threads;
        Self {
            row_threads,
            by_row: Divisor::new(row_threads),
            group_log: group_threads.ilog2(),
            ..self
        }
    }

    /// Whether every thread's elements and codes are whole vectors.
    pub(crate) fn takes_vectors(&self, dtype: DType, rows: usize) -> bool {
        let (size, codes) = (dtype.size() as u64, 16 / dtype.size() as u64);
        let mut elements = u64::from(self.d);
        let mut codes_at = self.codes;
        if rows > 1 {
            elements |= self.input_stride;
            codes_at |= self.codes_stride;
        }
        (self.gate | self.up | (elements * size)).is_multiple_of(16)
            && (codes_at | u64::from(self.d)).is_multiple_of(codes)
    }

    /// Calls `launch` with the parameters of each launch.
    pub(crate) fn launches(
        self,
        dtype: DType,
        rows: usize,
        mut launch: impl FnMut(&Self) -> Result<()>,
    ) -> Result<()> {
        let rows = rows as u64;
        let most = MOST / u64::from(self.row_threads);
        let input = self.input_stride * dtype.size() as u64;
        let scale = if self.power_of_two == 1 { 1 } else { 4 };
        let after = |address: u64, bytes: u64| if address == 0 { 0 } else { address + bytes };
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(most);
            launch(&Self {
                gate: self.gate + row * input,
                up: after(self.up, row * input),
                codes: self.codes + row * self.codes_stride,
                scales: self.scales + row * self.scale_row * scale,
                route: after(self.route, 4 * row),
                threads: (count * u64::from(self.row_threads)) as u32,
                first_row: row as u32,
                ..self
            })?;
            row += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(rows: usize, d: usize, order: ScaleOrder, dtype: DType) -> QuantParams {
        let quant = Quantization::deepseek_v4();
        let numbers = RawMatrix {
            address: 0x1000,
            dtype,
            layout: RowLayout::contiguous(rows, d),
        };
        let quantized = RawQuantized {
            codes: 0x2000,
            codes_layout: RowLayout::contiguous(rows, d),
            scales: 0x3000,
            scales_layout: ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d)),
        };
        QuantParams::new(&quant, &numbers, &quantized)
            .unwrap()
            .with_elements(&quant, 8)
    }

    #[test]
    fn scales_are_where_the_layout_has_them() {
        for order in ScaleOrder::ALL {
            let (rows, d) = (5, 128 * 6 + 1);
            let p = params(rows, d, order, DType::BF16);
            let quant = Quantization::deepseek_v4();
            let layout = ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d));
            for (row, group) in (0..5).flat_map(|r| (0..7).map(move |g| (r, g))) {
                let word = (group as u64 >> p.word_log) * p.scale_word;
                let byte = group as u64 & ((1 << p.word_log) - 1);
                let at = row as u64 * p.scale_row + word + byte;
                assert_eq!(at, layout.position(row, group) as u64);
            }
        }
    }

    #[test]
    fn rows_beyond_one_launch_follow_in_the_next() {
        let (rows, d) = (1 << 25, 1000);
        let p = params(rows, d, ScaleOrder::Packed, DType::BF16);
        assert_eq!((p.row_threads, p.group_log), (128, 4));
        let (mut done, mut calls) = (0_u64, 0);
        p.launches(DType::BF16, rows, |p| {
            assert_eq!(p.gate, 0x1000 + done * 2 * d as u64);
            assert_eq!(p.codes, 0x2000 + done * d as u64);
            assert_eq!(p.scales, 0x3000 + done * 4);
            assert_eq!((p.up, p.route), (0, 0));
            done += u64::from(p.threads / p.row_threads);
            calls += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!((done, calls), (rows as u64, 3));
    }

    #[test]
    fn vectors_need_every_address_whole() {
        let vectors = |d, dtype| params(3, d, ScaleOrder::RowMajor, dtype).takes_vectors(dtype, 3);
        assert!(vectors(256, DType::BF16) && vectors(72, DType::F16) && vectors(12, DType::F32));
        assert!(!vectors(12, DType::BF16) && !vectors(3, DType::F32));
        let p = params(3, 128, ScaleOrder::RowMajor, DType::BF16);
        for odd in [
            QuantParams { gate: 0x1002, ..p },
            QuantParams { up: 0x1002, ..p },
            QuantParams { codes: 0x2004, ..p },
            QuantParams {
                codes_stride: 129,
                ..p
            },
            QuantParams {
                input_stride: 132,
                ..p
            },
        ] {
            assert!(!odd.takes_vectors(DType::BF16, 3));
        }
    }
}
