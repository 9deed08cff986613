//! A quantization over bare device memory, and what is checked of it.

use swiglu_core::{
    ActShape, Error as CoreError, GatedActivation, Quantization, Rounding, RowLayout, ScaleFormat,
    ScaleLayout, ScaleOrder,
};

use crate::{
    activation::{Batches, RawGateUp},
    error::Result,
    view::{RawMatrix, check_aligned},
};

/// A matrix of E4M3 codes and their scales in bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawQuantized {
    /// Address of the codes' memory.
    pub codes: u64,
    /// \[T, d\].
    pub codes_layout: RowLayout,
    /// Address of the first scale, aligned to its size.
    pub scales: u64,
    /// \[T, G\].
    pub scales_layout: ScaleLayout,
}

impl RawQuantized {
    /// Address of the first code.
    pub(crate) const fn first(&self) -> u64 {
        self.codes + self.codes_layout.offset as u64
    }

    /// Places from a row's scale to the next one's, and from a word of a row's scales to the next.
    pub(crate) const fn scale_steps(&self) -> [u64; 2] {
        let stride = self.scales_layout.stride as u64;
        match self.scales_layout.order {
            ScaleOrder::RowMajor => [stride, 1],
            ScaleOrder::ColumnMajor => [1, stride],
            ScaleOrder::Packed => [4, 4 * stride],
        }
    }

    /// The binary logarithm of the scales in a word.
    pub(crate) const fn word_log(&self) -> u32 {
        match self.scales_layout.order {
            ScaleOrder::RowMajor | ScaleOrder::ColumnMajor => 0,
            ScaleOrder::Packed => 2,
        }
    }

    /// 1 where scales are powers of two as bytes, 0 where they are f32s.
    pub(crate) const fn has_powers(&self) -> u32 {
        match self.scales_layout.format {
            ScaleFormat::E8M0 => 1,
            ScaleFormat::F32 => 0,
        }
    }

    /// Checks shapes and strides, as core does for memory whose length it knows.
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
        Ok(())
    }

    /// Checks what shapes say nothing of: alignment, and the kernels' own limit.
    pub(crate) fn check_places(&self) -> Result<()> {
        // So that a thread's column, in the last group's rest too, is a u32.
        if self.codes_layout.cols >= 1 << 31 {
            let expected = "fewer than 2^31 columns";
            return Err(CoreError::argument("codes", expected, self.codes_layout.cols).into());
        }
        check_aligned("scales", self.scales, self.scales_layout.format.size())
    }
}

/// Checks a matrix of numbers and one of codes against each other.
pub(super) fn check_numbers(
    argument: &'static str,
    quant: &Quantization,
    numbers: &RawMatrix,
    quantized: &RawQuantized,
) -> Result<()> {
    let layout = &numbers.layout;
    if layout.cols == 0 {
        return Err(CoreError::argument(argument, "at least one column", 0).into());
    }
    layout.end(argument)?;
    let (rows, d) = (layout.rows, layout.cols);
    quantized.check(quant, ActShape { rows, d })
}

/// A fused activation and quantization over bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawQuantCall {
    /// \[T, 2d\], or \[T, d\] twice.
    pub input: RawGateUp,
    /// \[T, d\].
    pub output: RawQuantized,
    /// Address of an f32 for each row, that multiplies it before it is rounded.
    pub route: Option<u64>,
    /// Whether only some rows of each batch are in use.
    pub batches: Option<Batches>,
    /// Address of three u32 that the call adds to: see [`swiglu_core::QuantOptions::hits`].
    pub hits: Option<u64>,
}

impl RawQuantCall {
    /// Checks shapes and strides, and what Eager rounding leaves undefined.
    pub(crate) fn check(&self, op: &GatedActivation, quant: &Quantization) -> Result<()> {
        let shape = self.input.check()?;
        self.output.check(quant, shape)?;
        quant.check_rounding(op.rounding())?;
        if op.rounding() == Rounding::Eager && self.route.is_some() {
            let expected = "none in eager rounding, which does not define its place";
            return Err(CoreError::argument("route", expected, "a route weight").into());
        }
        Ok(())
    }

    /// Checks what shapes say nothing of: alignment, and batches.
    pub(crate) fn check_places(&self) -> Result<()> {
        self.input.check_aligned()?;
        self.output.check_places()?;
        if let Some(batches) = &self.batches {
            batches.check(self.output.codes_layout.rows)?;
        }
        for (argument, address) in [("route", self.route), ("hits", self.hits)] {
            if let Some(address) = address {
                check_aligned(argument, address, 4)?;
            }
        }
        Ok(())
    }
}
