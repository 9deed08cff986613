//! Quantization with a fault.

use swiglu_core::{
    ActAndMul, Batch, E4M3, Element, GateUp, GatedActivation, QuantOptions, Quantization, Quantize,
    Quantized, QuantizedMut, Result, ScaleFormat, ScaleLayout, ScaleOrder, Tensor, TensorMut,
    check, with_float,
};

use super::{Fault, Mutant, inner, inner_input, inner_mut, split_wrong, unclamped};

/// The same matrix for the right backend.
pub(super) fn inner_quantized<'a, B: swiglu_core::Backend>(
    q: &Quantized<'a, Mutant<B>>,
) -> Quantized<'a, B> {
    Quantized {
        codes: B::view(q.codes),
        layout: q.layout,
        scales: B::view(q.scales),
        scale_layout: q.scale_layout,
    }
}

/// As [`inner_quantized`], to be written.
fn inner_quantized_mut<'a, B: swiglu_core::Backend>(
    q: QuantizedMut<'a, Mutant<B>>,
) -> QuantizedMut<'a, B> {
    QuantizedMut {
        codes: B::view_mut(q.codes),
        layout: q.layout,
        scales: B::view_mut(q.scales),
        scale_layout: q.scale_layout,
    }
}

impl<B: ActAndMul + Quantize> Quantize for Mutant<B> {
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        mut output: QuantizedMut<'_, Self>,
        mut options: QuantOptions<'_, Self>,
    ) -> Result<()> {
        let checked = check::act_quant(op, quant, &input, &output, &options);
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
                    return self.routed(&op, &quant, &input, output, route);
                }
            }
            _ => {}
        }
        let before = match (self.fault, &options.hits) {
            (Fault::HitsOverwritten, Some(hits)) => self.read_bytes(hits)?,
            _ => Vec::new(),
        };
        let poison = self.read_bytes(output.scales)?;
        let right = QuantOptions {
            route: options.route.map(B::view),
            batch: options.batch.map(|batch| Batch {
                rows: batch.rows,
                counts: B::view(batch.counts),
            }),
            hits: options.hits.as_deref_mut().map(B::view_mut),
        };
        let input = inner_input(&split_wrong(self.fault, input));
        let to = inner_quantized_mut(output.reborrow());
        self.inner
            .act_and_mul_quant(&op, &quant, input, to, right)?;
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
        input: Tensor<'_, Self>,
        output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        with_float!(input.float, T => self.quantize_as::<T>(quant, &input, output))
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let right = inner_quantized(&input);
        if self.fault != Fault::WidenedWithoutScales {
            return self.inner.dequantize(quant, right, inner_mut(output));
        }
        let layout = input.scale_layout;
        let mut bytes = vec![0; layout.bytes()?];
        for i in 0..bytes.len() / layout.format.size() {
            layout.format.write(&mut bytes, i, 1.0);
        }
        let mut ones = self.inner.alloc(bytes.len())?;
        self.inner.upload(&mut ones, &bytes)?;
        let scales = B::view(&ones);
        let wrong = Quantized {
            codes: B::view(input.codes),
            scales,
            ..right
        };
        self.inner.dequantize(quant, wrong, inner_mut(output))
    }
}

/// The bytes of a scale.
fn scale_at(layout: &ScaleLayout, row: usize, group: usize) -> std::ops::Range<usize> {
    let size = layout.format.size();
    let at = layout.position(row, group) * size;
    at..at + size
}

impl<B: ActAndMul + Quantize> Mutant<B> {
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
        input: &Tensor<'_, Self>,
        mut output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        check::quantize(quant, input, &output)?;
        let quant = self.altered(quant)?;
        let poison = self.read_bytes(output.scales)?;
        let (x, from) = (input.view, input.layout);
        if self.fault == Fault::NanMissesTheScale {
            let zero = |x: T| if x.is_nan() { T::default() } else { x };
            let x: Vec<T> = self.read::<T>(x)?.into_iter().map(zero).collect();
            let buffer = self.buffer(&x)?;
            let input = Tensor::new(B::view(&buffer), input.float, from);
            return self
                .inner
                .quantize(&quant, input, inner_quantized_mut(output));
        }
        let to = inner_quantized_mut(output.reborrow());
        self.inner.quantize(&quant, inner(input), to)?;
        if self.fault == Fault::QuotientByReciprocal && quant.format() == ScaleFormat::F32 {
            let x = self.read::<T>(x)?;
            let mut codes = self.read_bytes(output.codes)?;
            let scales = self.read_bytes(output.scales)?;
            for t in 0..from.rows {
                let to = &mut codes[output.layout.row(t)];
                for (j, (code, y)) in to.iter_mut().zip(&x[from.row(t)]).enumerate() {
                    let place = scale_at(&output.scale_layout, t, j / quant.group());
                    let scale: f32 = bytemuck::pod_read_unaligned(&scales[place]);
                    *code = E4M3::from_f32_saturating(y.to_f32() * (1.0 / scale)).0;
                }
            }
            self.inner.upload(output.codes, &codes)?;
        }
        self.spoil(&mut output, &poison)
    }

    /// What the fault makes of codes and scales that are right; `before` is what the scales'
    /// buffer held.
    fn spoil(&self, output: &mut QuantizedMut<'_, Self>, before: &[u8]) -> Result<()> {
        let (codes, layout) = (output.layout, output.scale_layout);
        let groups = layout.groups;
        if self.fault == Fault::SaturatesToNan {
            let mut bytes = self.read_bytes(output.codes)?;
            for t in 0..codes.rows {
                for code in bytes[codes.row(t)]
                    .iter_mut()
                    .filter(|c| **c & 0x7f == 0x7e)
                {
                    *code += 1;
                }
            }
            return self.inner.upload(output.codes, &bytes);
        }
        let right = self.read_bytes(output.scales)?;
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
        self.inner.upload(output.scales, &wrong)
    }

    /// y rounded, times the route weight, rounded again, and quantized.
    fn routed(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: &GateUp<'_, Self>,
        output: QuantizedMut<'_, Self>,
        route: &B::Buffer,
    ) -> Result<()> {
        with_float!(input.float(), T => self.routed_as::<T>(op, quant, input, output, route))
    }

    fn routed_as<T: Element>(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: &GateUp<'_, Self>,
        output: QuantizedMut<'_, Self>,
        route: &B::Buffer,
    ) -> Result<()> {
        let (rows, d) = (output.layout.rows, output.layout.cols);
        let mut y = self.buffer(&vec![T::default(); rows * d])?;
        let to = TensorMut::contiguous(B::view_mut(&mut y), T::FLOAT, rows, d);
        self.inner.act_and_mul(op, inner_input(input), to)?;
        let mut values = self.read::<T>(&y)?;
        let weights = self.read::<f32>(route)?;
        for (row, weight) in values.chunks_exact_mut(d).zip(weights) {
            for y in row {
                *y = T::from_f32(y.to_f32() * weight);
            }
        }
        self.write(&mut y, &values)?;
        let from = Tensor::contiguous(B::view(&y), T::FLOAT, rows, d);
        self.inner
            .quantize(quant, from, inner_quantized_mut(output))
    }
}
