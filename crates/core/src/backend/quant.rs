use crate::{
    ActAndMul, ActShape, DType, Error, GatedActivation, Matmul, Quantization, Result, Rounding,
    ScaleLayout, Scales, ScalesMut, Support, Tensor, TensorMut,
};

/// Rows in batches of equal capacity, of which only the first few are in use.
#[derive(Debug)]
pub struct Batch<'a, Buffer> {
    /// Rows of each batch; T is a multiple.
    pub rows: usize,
    /// One i32 for each batch, on the device: its rows in use, taken as 0 below 0 and as
    /// [`Self::rows`] above it.
    pub counts: &'a Buffer,
}

/// What a fused activation and quantization does besides.
#[derive(Debug)]
pub struct QuantOptions<'a, Buffer> {
    /// One f32 for each row, T in all, that multiplies it before it is rounded.
    pub route: Option<&'a Buffer>,
    /// Which rows are in use. The others are neither read nor written, nor are their scales.
    pub batch: Option<Batch<'a, Buffer>>,
    /// Three u32 that the call adds to, wrapping: how often gate > L, up > L and up < -L. With the clamp
    /// after the function it is f(gate) > L. NaN does not count, and without a clamp nothing does.
    pub hits: Option<&'a mut Buffer>,
}

impl<Buffer> Default for QuantOptions<'_, Buffer> {
    fn default() -> Self {
        Self {
            route: None,
            batch: None,
            hits: None,
        }
    }
}

/// A matrix of [`DType::F8E4M3`] codes with their scales, to be read.
#[derive(Debug)]
pub struct Quantized<'a, Buffer> {
    /// The codes, \[T, d\].
    pub codes: Tensor<'a, Buffer>,
    /// The scales, \[T, G\].
    pub scales: Scales<'a, Buffer>,
}

/// A matrix of [`DType::F8E4M3`] codes with their scales, to be written.
#[derive(Debug)]
pub struct QuantizedMut<'a, Buffer> {
    /// The codes, \[T, d\].
    pub codes: TensorMut<'a, Buffer>,
    /// The scales, \[T, G\].
    pub scales: ScalesMut<'a, Buffer>,
}

impl<Buffer> QuantizedMut<'_, Buffer> {
    /// The same matrix, borrowed for one call.
    pub const fn reborrow(&mut self) -> QuantizedMut<'_, Buffer> {
        QuantizedMut {
            codes: self.codes.reborrow(),
            scales: self.scales.reborrow(),
        }
    }

    /// The same matrix, to be read.
    pub const fn as_ref(&self) -> Quantized<'_, Buffer> {
        Quantized {
            codes: self.codes.as_ref(),
            scales: self.scales.as_ref(),
        }
    }
}

/// A backend that quantizes what its activations give. The arithmetic is [`Quantization`]'s.
///
/// Every method has a default that refuses, so a backend without it writes
/// `impl ActAndMulQuant for Mine {}`.
pub trait ActAndMulQuant: ActAndMul {
    /// Whether this quantization runs, on its own and fused with every supported activation.
    fn supports_quant(&self, quant: &Quantization, dtype: DType) -> Support {
        let _ = (quant, dtype);
        Support::No("this backend does not quantize".to_owned())
    }

    /// Enqueues `output = quant(op(input))` in one pass: input \[T, 2d\], output \[T, d\] and its
    /// scales \[T, G\]. With [`Quantization::materialize`], codes and scales are bit for bit those
    /// of [`ActAndMul::act_and_mul`] followed by [`Self::quantize`].
    ///
    /// # Errors
    /// As [`Self::check_act_quant`], [`Error::Unsupported`] where [`Self::supports_quant`] or
    /// [`crate::Backend::supports`] says no, or a failure of the device.
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, Self::Buffer>,
        output: QuantizedMut<'_, Self::Buffer>,
        options: QuantOptions<'_, Self::Buffer>,
    ) -> Result<()> {
        let _ = (op, output, options);
        Err(self.no_quant(quant, input.dtype))
    }

    /// Enqueues `output = quant(input)`: both \[T, d\], the input f32, f16 or bf16.
    ///
    /// # Errors
    /// As [`Self::check_quant`], [`Error::Unsupported`] where [`Self::supports_quant`] says no, or
    /// a failure of the device.
    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self::Buffer>,
        output: QuantizedMut<'_, Self::Buffer>,
    ) -> Result<()> {
        let _ = output;
        Err(self.no_quant(quant, input.dtype))
    }

    /// Enqueues `output = code · scale`, rounded once to the output's type: both \[T, d\]. In f32,
    /// and in bf16 too, this is exact under [`crate::ScaleFormat::Ue8m0`].
    ///
    /// # Errors
    /// As [`Self::check_quantized`], [`Error::Unsupported`] where [`Self::supports_quant`] says no,
    /// or a failure of the device.
    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self::Buffer>,
        output: TensorMut<'_, Self::Buffer>,
    ) -> Result<()> {
        let _ = input;
        Err(self.no_quant(quant, output.dtype))
    }

    /// The error of a call that [`Self::supports_quant`] says no to.
    fn no_quant(&self, quant: &Quantization, dtype: DType) -> Error {
        let reason = match self.supports_quant(quant, dtype) {
            Support::No(reason) => reason,
            Support::Native | Support::Emulated(_) => "the call is missing".to_owned(),
        };
        Error::Unsupported {
            platform: self.platform().to_owned(),
            what: quant.to_string(),
            dtype,
            reason,
        }
    }

    /// Checks a call of [`Self::act_and_mul_quant`].
    ///
    /// # Errors
    /// An argument's name with what was expected of it: as [`ActShape::of_input`] and
    /// [`Self::check_quantized`]; a route weight or `materialize` = false with
    /// [`Rounding::Eager`], which has no place for either; options whose buffers are too short.
    fn check_act_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: &Tensor<'_, Self::Buffer>,
        output: &QuantizedMut<'_, Self::Buffer>,
        options: &QuantOptions<'_, Self::Buffer>,
    ) -> Result<ActShape> {
        let shape = ActShape::of_input(input.dtype, &input.layout)?;
        let len = self.len(input.buffer) / input.dtype.size();
        input.layout.check("input", len)?;
        self.check_quantized(quant, shape, &output.as_ref())?;
        quant.check_rounding(op.rounding())?;
        if op.rounding() == Rounding::Eager && options.route.is_some() {
            let expected = "none in eager rounding, which does not define its place";
            return Err(Error::argument("route", expected, "a route weight"));
        }
        let holds = |argument, buffer, count: usize| {
            let (expected, got) = (count.saturating_mul(4), self.len(buffer));
            if got < expected {
                let expected = format!("at least {expected} bytes");
                return Err(Error::argument(argument, expected, format!("{got} bytes")));
            }
            Ok(())
        };
        if let Some(route) = options.route {
            holds("route", route, shape.rows)?;
        }
        if let Some(batch) = &options.batch {
            if batch.rows == 0 || !shape.rows.is_multiple_of(batch.rows) {
                let expected = format!("a divisor of {} rows", shape.rows);
                return Err(Error::argument("batch", expected, batch.rows));
            }
            holds("counts", batch.counts, shape.rows / batch.rows)?;
        }
        if let Some(hits) = &options.hits {
            holds("hits", hits, 3)?;
        }
        Ok(shape)
    }

    /// Checks a call of [`Self::quantize`].
    ///
    /// # Errors
    /// A type that is storage only, and as [`crate::RowLayout::check`] and
    /// [`Self::check_quantized`].
    fn check_quant(
        &self,
        quant: &Quantization,
        input: &Tensor<'_, Self::Buffer>,
        output: &QuantizedMut<'_, Self::Buffer>,
    ) -> Result<ActShape> {
        let shape = self.check_values("input", input)?;
        self.check_quantized(quant, shape, &output.as_ref())?;
        Ok(shape)
    }

    /// Checks a call of [`Self::dequantize`].
    ///
    /// # Errors
    /// As [`Self::check_quant`].
    fn check_dequant(
        &self,
        quant: &Quantization,
        input: &Quantized<'_, Self::Buffer>,
        output: &TensorMut<'_, Self::Buffer>,
    ) -> Result<ActShape> {
        let shape = self.check_values("output", &output.as_ref())?;
        self.check_quantized(quant, shape, input)?;
        Ok(shape)
    }

    /// Checks a matrix of f32, f16 or bf16 of at least one column.
    ///
    /// # Errors
    /// A type that is storage only, no columns, and as [`crate::RowLayout::check`].
    fn check_values(
        &self,
        argument: &'static str,
        matrix: &Tensor<'_, Self::Buffer>,
    ) -> Result<ActShape> {
        if !DType::COMPUTE.contains(&matrix.dtype) {
            return Err(Error::argument(argument, "f32, f16 or bf16", matrix.dtype));
        }
        if matrix.layout.cols == 0 {
            return Err(Error::argument(argument, "at least one column", 0));
        }
        let len = self.len(matrix.buffer) / matrix.dtype.size();
        matrix.layout.check(argument, len)?;
        Ok(ActShape {
            rows: matrix.layout.rows,
            d: matrix.layout.cols,
        })
    }

    /// Checks codes and scales against the shape that they should have.
    ///
    /// # Errors
    /// Codes that are not [`DType::F8E4M3`], codes or scales of another shape, scales in another
    /// format than the quantization's, strides or buffers that are too short.
    fn check_quantized(
        &self,
        quant: &Quantization,
        shape: ActShape,
        matrix: &Quantized<'_, Self::Buffer>,
    ) -> Result<()> {
        let Quantized { codes, scales } = matrix;
        if codes.dtype != DType::F8E4M3 {
            return Err(Error::argument("codes", DType::F8E4M3.name(), codes.dtype));
        }
        let ActShape { rows, d } = shape;
        if (codes.layout.rows, codes.layout.cols) != (rows, d) {
            let got = format!("[{}, {}]", codes.layout.rows, codes.layout.cols);
            return Err(Error::argument(
                "codes",
                format!("shape [{rows}, {d}]"),
                got,
            ));
        }
        codes.layout.check("codes", self.len(codes.buffer))?;
        let ScaleLayout {
            format,
            rows: r,
            groups: g,
            ..
        } = scales.layout;
        if format != quant.format() {
            return Err(Error::argument("scales", quant.format().name(), format));
        }
        let groups = quant.groups(d);
        if (r, g) != (rows, groups) {
            let expected = format!("shape [{rows}, {groups}]");
            return Err(Error::argument("scales", expected, format!("[{r}, {g}]")));
        }
        scales.layout.check(self.len(scales.buffer))
    }
}

/// A backend that multiplies quantized rows by a weight.
pub trait QuantizedMatmul: Matmul + ActAndMulQuant {
    /// Whether [`Self::matmul_quantized`] runs on codes as they are, or widens them first.
    fn supports_quantized(&self, quant: &Quantization, weight: DType) -> Support {
        match (
            self.supports_quant(quant, DType::BF16),
            self.supports_weight(weight),
        ) {
            (Support::No(reason), _) | (_, Support::No(reason)) => Support::No(reason),
            _ => Support::Emulated("codes are widened before the product".to_owned()),
        }
    }

    /// Enqueues `y = (code · scale) · wᵀ`, accumulated in f32 and rounded once: x \[T, K\],
    /// w \[N, K\], y \[T, N\]. `widened` \[T, K\] is room for the products of codes and scales; a
    /// backend that does without may leave it unwritten.
    ///
    /// # Errors
    /// As [`ActAndMulQuant::dequantize`] and [`Matmul::matmul`].
    fn matmul_quantized(
        &self,
        quant: &Quantization,
        x: Quantized<'_, Self::Buffer>,
        weight: &Self::Weight,
        mut widened: TensorMut<'_, Self::Buffer>,
        y: TensorMut<'_, Self::Buffer>,
    ) -> Result<()> {
        self.check_matmul(&widened.as_ref(), weight, &y)?;
        self.dequantize(quant, x, widened.reborrow())?;
        self.matmul(widened.as_ref(), weight, y)
    }
}
