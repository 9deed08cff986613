//! A quantization as kernels' parameters, cut into launches.

use swiglu_core::{Float, Quantization};

use super::call::RawQuantized;
use crate::{
    activation::LAUNCH_THREADS,
    launch::params::{Divisor, QuantParams, Scalars},
    view::RawMatrix,
};

impl QuantParams {
    /// All rows, of a matrix of numbers: no activation, every row in use, one element a thread.
    /// The caller has checked the matrices.
    pub(super) fn new(quant: &Quantization, numbers: &RawMatrix, quantized: &RawQuantized) -> Self {
        let (codes, scales) = (&quantized.codes_layout, &quantized.scales_layout);
        let [scale_row, scale_word] = quantized.scale_steps();
        let params = Self {
            gate: numbers.first(),
            up: 0,
            codes: quantized.first(),
            scales: quantized.scales,
            route: 0,
            counts: 0,
            hits: 0,
            gate_stride: numbers.layout.stride as u64,
            up_stride: numbers.layout.stride as u64,
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
            word_log: quantized.word_log(),
            power_of_two: quantized.has_powers(),
            materialize: u32::from(quant.materialize()),
            floor: quant.floor(),
            scalars: Scalars::default(),
        };
        params.with_elements(quant, 1)
    }

    /// The same with so many elements a thread.
    pub(super) const fn with_elements(self, quant: &Quantization, elements: usize) -> Self {
        let group_threads = (quant.group() / elements) as u32;
        let row_threads = self.groups * group_threads;
        Self {
            row_threads,
            by_row: Divisor::new(row_threads),
            group_log: group_threads.ilog2(),
            ..self
        }
    }

    /// Whether every thread's elements and codes are whole vectors, of halves with one stride.
    pub(super) const fn takes_vectors(&self, float: Float, rows: usize) -> bool {
        let (size, codes) = (float.size() as u64, 16 / float.size() as u64);
        let mut elements = self.d as u64;
        let mut codes_at = self.codes;
        let mut one_stride = true;
        if rows > 1 {
            elements |= self.gate_stride;
            codes_at |= self.codes_stride;
            one_stride = self.gate_stride == self.up_stride;
        }
        one_stride
            && (self.gate | self.up | (elements * size)).is_multiple_of(16)
            && (codes_at | self.d as u64).is_multiple_of(codes)
    }

    /// The parameters of each launch.
    pub(super) fn launches(self, float: Float, rows: usize) -> impl Iterator<Item = Self> {
        let rows = rows as u64;
        let most = LAUNCH_THREADS / u64::from(self.row_threads);
        let size = float.size() as u64;
        let scale = if self.power_of_two == 1 { 1 } else { 4 };
        let after = |address: u64, bytes: u64| if address == 0 { 0 } else { address + bytes };
        (0..rows.div_ceil(most)).map(move |i| {
            let row = i * most;
            let count = (rows - row).min(most);
            Self {
                gate: self.gate + row * self.gate_stride * size,
                up: after(self.up, row * self.up_stride * size),
                codes: self.codes + row * self.codes_stride,
                scales: self.scales + row * self.scale_row * scale,
                route: after(self.route, 4 * row),
                threads: (count * u64::from(self.row_threads)) as u32,
                first_row: row as u32,
                ..self
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{RowLayout, ScaleLayout, ScaleOrder};

    fn params(rows: usize, d: usize, order: ScaleOrder, float: Float) -> QuantParams {
        let quant = Quantization::deepseek_v4();
        let numbers = RawMatrix {
            address: 0x1000,
            float,
            layout: RowLayout::contiguous(rows, d),
        };
        let quantized = RawQuantized {
            codes: 0x2000,
            codes_layout: RowLayout::contiguous(rows, d),
            scales: 0x3000,
            scales_layout: ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d)),
        };
        QuantParams::new(&quant, &numbers, &quantized).with_elements(&quant, 8)
    }

    #[test]
    fn scales_are_where_the_layout_has_them() {
        for order in ScaleOrder::ALL {
            let (rows, d) = (5, 128 * 6 + 1);
            let p = params(rows, d, order, Float::BF16);
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
        let mut p = params(rows, d, ScaleOrder::Packed, Float::BF16);
        assert_eq!((p.row_threads, p.group_log), (128, 4));
        (p.up, p.up_stride) = (0x9000, 3000);
        let (mut done, mut calls) = (0_u64, 0);
        for p in p.launches(Float::BF16, rows) {
            assert_eq!(p.gate, 0x1000 + done * 2 * d as u64);
            assert_eq!(p.up, 0x9000 + done * 2 * 3000);
            assert_eq!(p.codes, 0x2000 + done * d as u64);
            assert_eq!(p.scales, 0x3000 + done * 4);
            assert_eq!((p.hits, p.route), (0, 0));
            done += u64::from(p.threads / p.row_threads);
            calls += 1;
        }
        assert_eq!((done, calls), (rows as u64, 3));
    }

    #[test]
    fn vectors_need_every_address_whole_and_one_stride() {
        let vectors = |d, float| params(3, d, ScaleOrder::RowMajor, float).takes_vectors(float, 3);
        assert!(vectors(256, Float::BF16) && vectors(72, Float::F16) && vectors(12, Float::F32));
        assert!(!vectors(12, Float::BF16) && !vectors(3, Float::F32));
        let p = params(3, 128, ScaleOrder::RowMajor, Float::BF16);
        let changes: [fn(&mut QuantParams); 6] = [
            |p| p.gate = 0x1002,
            |p| p.up = 0x1002,
            |p| p.codes = 0x2004,
            |p| p.codes_stride = 129,
            |p| p.gate_stride = 132,
            |p| p.up_stride = 256,
        ];
        for change in changes {
            let mut odd = p;
            change(&mut odd);
            assert!(!odd.takes_vectors(Float::BF16, 3));
        }
        let mut apart = p;
        apart.up_stride = 256;
        assert!(apart.takes_vectors(Float::BF16, 1));
    }
}
