//! Quantization with a fault.

use swiglu_core::{
    ActAndMulQuant, DType, E4M3, Element, GatedActivation, GatedMatmul, QuantOptions, Quantization,
    Quantized, QuantizedMatmul, QuantizedMut, Result, ScaleFormat, ScaleLayout, ScaleOrder, Scales,
    Support, Tensor, TensorMut, bf16, f16,
};

use super::{Fault, Mutant, unclamped};

impl<B: GatedMatmul> ActAndMulQuant for Mutant<B> {
    fn supports_quant(&self, quant: &Quantization, dtype: DType) -> Support {
        self.inner.supports_quant(quant, dtype)
    }

    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, B::Buffer>,
        mut output: QuantizedMut<'_, B::Buffer>,
        mut options: QuantOptions<'_, B::Buffer>,
    ) -> Result<()> {
        let checked = self
            .inner
            .check_act_quant(op, quant, &input, &output, &options);
        match (checked, self.fault) {
            (Err(_), Fault::QuantArgumentsUnchecked) => return Ok(()),
            (checked, _) => checked?,
        };
        let op = match self.fault {
            Fault::QuantSkipsClamp => unclamped(op)?,
            _ => *op,
        };
        let quant = self.altered(quant)?;
        match self.fault {
            Fault::CountsIgnored => options.batch = None,
            Fault::RouteIgnored => options.route = None,
            Fault::RouteAfterRounding => {
                if let (Some(route), None) = (options.route, &options.batch) {
                    return self.routed(&op, &quant, input, output, route);
                }
            }
            _ => {}
        }
        let before = match (self.fault, &options.hits) {
            (Fault::HitsOverwritten, Some(hits)) => self.read_bytes(hits)?,
            _ => Vec::new(),
        };
        let poison = self.read_bytes(output.scales.buffer)?;
        let hits = options.hits.as_deref_mut();
        let inner = QuantOptions {
            route: options.route,
            batch: options.batch,
            hits,
        };
        self.inner
            .act_and_mul_quant(&op, &quant, input, output.reborrow(), inner)?;
        if let Some(hits) = options.hits.filter(|_| !before.is_empty()) {
            let after = self.read_bytes(hits)?;
            let word = |bytes: &[u8]| {
                bytes
                    .iter()
                    .rev()
                    .fold(0_u32, |w, b| w << 8 | u32::from(*b))
            };
            let counted = after.chunks_exact(4).zip(before.chunks_exact(4));
            let counted = counted.map(|(a, b)| word(a).wrapping_sub(word(b)).to_le_bytes());
            self.inner
                .upload(hits, &counted.flatten().collect::<Vec<_>>())?;
        }
        self.spoil(&mut output, &poison)
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, B::Buffer>,
        output: QuantizedMut<'_, B::Buffer>,
    ) -> Result<()> {
        match input.dtype {
            DType::F32 => self.quantize_as::<f32>(quant, input, output),
            DType::F16 => self.quantize_as::<f16>(quant, input, output),
            _ => self.quantize_as::<bf16>(quant, input, output),
        }
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, B::Buffer>,
        output: TensorMut<'_, B::Buffer>,
    ) -> Result<()> {
        if self.fault != Fault::WidenedWithoutScales {
            return self.inner.dequantize(quant, input, output);
        }
        let layout = input.scales.layout;
        let bytes = match layout.format {
            ScaleFormat::Ue8m0 => vec![127; layout.bytes()?],
            ScaleFormat::F32 => 1_f32.to_le_bytes().repeat(layout.bytes()? / 4),
        };
        let mut ones = self.inner.alloc(bytes.len())?;
        self.inner.upload(&mut ones, &bytes)?;
        let scales = Scales {
            buffer: &ones,
            layout,
        };
        self.inner
            .dequantize(quant, Quantized { scales, ..input }, output)
    }
}

impl<B: GatedMatmul> QuantizedMatmul for Mutant<B> {
    fn supports_quantized(&self, quant: &Quantization, weight: DType) -> Support {
        self.inner.supports_quantized(quant, weight)
    }

    fn matmul_quantized(
        &self,
        quant: &Quantization,
        x: Quantized<'_, B::Buffer>,
        weight: &B::Weight,
        widened: TensorMut<'_, B::Buffer>,
        y: TensorMut<'_, B::Buffer>,
    ) -> Result<()> {
        self.inner.matmul_quantized(quant, x, weight, widened, y)
    }
}

/// The bytes of a scale.
fn scale_at(layout: &ScaleLayout, row: usize, group: usize) -> std::ops::Range<usize> {
    let size = layout.format.size();
    let at = layout.position(row, group) * size;
    at..at + size
}

impl<B: GatedMatmul> Mutant<B> {
    fn read_bytes(&self, buffer: &B::Buffer) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.inner.len(buffer)];
        self.inner.download(buffer, &mut bytes)?;
        Ok(bytes)
    }

    /// The quantization that the fault makes of this one.
    fn altered(&self, quant: &Quantization) -> Result<Quantization> {
        match self.fault {
            Fault::FloorIgnored => quant.with_floor(1e-30),
            Fault::MaterializeReversed => Ok(quant.with_materialize(!quant.materialize())),
            _ => Ok(*quant),
        }
    }

    fn quantize_as<T: Element>(
        &self,
        quant: &Quantization,
        input: Tensor<'_, B::Buffer>,
        mut output: QuantizedMut<'_, B::Buffer>,
    ) -> Result<()> {
        self.inner.check_quant(quant, &input, &output)?;
        let quant = self.altered(quant)?;
        let poison = self.read_bytes(output.scales.buffer)?;
        let (x, from) = (input.buffer, input.layout);
        if self.fault == Fault::NanMissesTheScale {
            let zero = |x: T| if x.is_nan() { T::default() } else { x };
            let x: Vec<T> = self.read::<T>(x)?.into_iter().map(zero).collect();
            let input = Tensor {
                buffer: &self.buffer(&x)?,
                ..input
            };
            return self.inner.quantize(&quant, input, output);
        }
        self.inner.quantize(&quant, input, output.reborrow())?;
        if self.fault == Fault::QuotientByReciprocal && quant.format() == ScaleFormat::F32 {
            let x = self.read::<T>(x)?;
            let mut codes = self.read_bytes(output.codes.buffer)?;
            let scales = self.read_bytes(output.scales.buffer)?;
            for t in 0..from.rows {
                let to = &mut codes[output.codes.layout.row(t)];
                for (j, (code, y)) in to.iter_mut().zip(&x[from.row(t)]).enumerate() {
                    let place = scale_at(&output.scales.layout, t, j / quant.group());
                    let scale: f32 = bytemuck::pod_read_unaligned(&scales[place]);
                    *code = E4M3::from_f32_saturating(y.to_f32() * (1.0 / scale)).0;
                }
            }
            self.inner.upload(output.codes.buffer, &codes)?;
        }
        self.spoil(&mut output, &poison)
    }

    /// What the fault makes of codes and scales that are right; `before` is what the scales'
    /// buffer held.
    fn spoil(&self, output: &mut QuantizedMut<'_, B::Buffer>, before: &[u8]) -> Result<()> {
        let (codes, layout) = (output.codes.layout, output.scales.layout);
        let groups = layout.groups;
        if self.fault == Fault::SaturatesToNan {
            let mut bytes = self.read_bytes(output.codes.buffer)?;
            for t in 0..codes.rows {
                for code in bytes[codes.row(t)]
                    .iter_mut()
                    .filter(|c| **c & 0x7f == 0x7e)
                {
                    *code += 1;
                }
            }
            return self.inner.upload(output.codes.buffer, &bytes);
        }
        let right = self.read_bytes(output.scales.buffer)?;
        let mut wrong = right.clone();
        let rows = 0..layout.rows;
        match (self.fault, layout.order) {
            (Fault::LastGroupSharesItsScale, _) if groups > 1 => {
                for t in rows {
                    let last = scale_at(&layout, t, groups - 1);
                    wrong[last].copy_from_slice(&right[scale_at(&layout, t, groups - 2)]);
                }
            }
            (Fault::ScaleOrderIgnored, ScaleOrder::ColumnMajor) => {
                let size = layout.format.size();
                for (t, g) in rows.flat_map(|t| (0..groups).map(move |g| (t, g))) {
                    let to = &mut wrong[(t * groups + g) * size..][..size];
                    to.copy_from_slice(&right[scale_at(&layout, t, g)]);
                }
            }
            (Fault::PackedPaddingLeft, ScaleOrder::Packed) => {
                for (t, g) in
                    rows.flat_map(|t| (groups..groups.next_multiple_of(4)).map(move |g| (t, g)))
                {
                    let place = scale_at(&layout, t, g);
                    wrong[place.clone()].copy_from_slice(&before[place]);
                }
            }
            _ => return Ok(()),
        }
        self.inner.upload(output.scales.buffer, &wrong)
    }

    /// y rounded, times the route weight, rounded again, and quantized.
    fn routed(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, B::Buffer>,
        output: QuantizedMut<'_, B::Buffer>,
        route: &B::Buffer,
    ) -> Result<()> {
        match input.dtype {
            DType::F32 => self.routed_as::<f32>(op, quant, input, output, route),
            DType::F16 => self.routed_as::<f16>(op, quant, input, output, route),
            _ => self.routed_as::<bf16>(op, quant, input, output, route),
        }
    }

    fn routed_as<T: Element>(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, B::Buffer>,
        output: QuantizedMut<'_, B::Buffer>,
        route: &B::Buffer,
    ) -> Result<()> {
        let (rows, d) = (output.codes.layout.rows, output.codes.layout.cols);
        let mut y = self.buffer(&vec![T::default(); rows * d])?;
        let to = TensorMut::contiguous(&mut y, T::DTYPE, rows, d);
        self.inner.act_and_mul(op, input, to)?;
        let mut values = self.read::<T>(&y)?;
        let weights = self.read::<f32>(route)?;
        for (row, weight) in values.chunks_exact_mut(d).zip(weights) {
            for y in row {
                *y = T::from_f32(y.to_f32() * weight);
            }
        }
        self.write(&mut y, &values)?;
        let from = Tensor::contiguous(&y, T::DTYPE, rows, d);
        self.inner.quantize(quant, from, output)
    }
}
