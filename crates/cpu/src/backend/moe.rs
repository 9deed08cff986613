use swiglu_core::{
    Element, Experts, Float, Gate, GatedActivation, GroupedMatmul, HostBuffer, HostRouter,
    Quantization, Quantize, QuantizedMut, Request, Result, Router, Routes, RowLayout, ScaleLayout,
    ScaleOrder, Shape, Tensor, TensorMut, Tokens, bf16, check, with_float,
};

use std::sync::PoisonError;

use super::{CpuBackend, known, rows_mut};
use crate::matmul::{self, Activated, Epilogue, Group, Input, Rounded, RouteWeights};
use crate::moe::{self, Rows, Scratch};
use crate::weight::PackedWeight;

impl Router for CpuBackend {
    fn route(
        &self,
        gate: &Gate<PackedWeight, HostBuffer>,
        x: Tensor<'_, Self>,
        tokens: Tokens<'_, Self>,
        scratch: &mut [u8],
        routes: &mut Routes<HostBuffer>,
    ) -> Result<()> {
        check::route(self, gate, &x, &tokens, &&*scratch, routes)?;
        let (rows, experts) = (x.layout.rows, gate.routing.experts());
        if rows == 0 {
            return Ok(());
        }
        let request = Request::Route {
            routing: gate.routing,
            x: x.float,
            weight: swiglu_core::WeightFormat::Float(Float::BF16),
        };
        let shape = Shape {
            rows,
            cols: experts,
            depth: x.layout.cols,
        };
        let [memory, ..] = Scratch::of(&request, &shape).split(scratch);
        let to = TensorMut::contiguous(&mut *memory, Float::F32, rows, experts);
        self.multiply_and_round("logits", &x, &gate.weight, to)?;
        let logits: &mut [f32] = &mut bytemuck::cast_slice_mut(memory)[..rows * experts];
        let router = HostRouter {
            routing: gate.routing,
            bias: gate.bias.as_ref().map(words),
            bias_vl: gate.bias_vl.as_ref().map(words),
            table: gate.table.as_ref().map(words),
        };
        let to = [
            &mut routes.ids,
            &mut routes.weights,
            &mut routes.offsets,
            &mut routes.sorted,
            &mut routes.rows,
        ];
        let to = to.map(HostBuffer::bytes_mut);
        let marks = [tokens.ids, tokens.image, tokens.padding];
        self.in_pool(|| moe::choose(&router, logits, marks, to));
        Ok(())
    }
}

/// A buffer as words of four bytes.
fn words<T: bytemuck::Pod>(buffer: &HostBuffer) -> &[T] {
    bytemuck::cast_slice(buffer.bytes())
}

fn rows_of(routes: &Routes<HostBuffer>) -> Rows<'_> {
    Rows {
        weights: words(&routes.weights),
        offsets: words(&routes.offsets),
        sorted: words(&routes.sorted),
        of_tokens: words(&routes.rows),
        top_k: routes.routing().top_k(),
    }
}

impl GroupedMatmul for CpuBackend {
    fn grouped_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: Tensor<'_, Self>,
        experts: &Experts<PackedWeight>,
        routes: &Routes<HostBuffer>,
        scratch: &mut [u8],
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::grouped_act_and_mul(self, op, quant, &x, experts, routes, &scratch, &act)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        let activation = known(op)?;
        let shape = experts.shape();
        let request = Request::GroupedGatedMatmul {
            op: *op,
            quant: quant.copied(),
            routing: *routes.routing(),
            x: x.float,
            weight: shape.gate_up,
        };
        let sizes = Shape {
            rows: x.layout.rows,
            cols: 2 * shape.intermediate,
            depth: shape.hidden,
        };
        let [_, widened, codes, scales] = Scratch::of(&request, &sizes).split(scratch);
        let x: Tensor<'_, Self> = match quant {
            // For a shorter time than the caller's.
            None => Tensor::new(x.view, x.float, x.layout),
            Some(quant) => {
                let all = RowLayout::contiguous(x.layout.rows, x.layout.cols);
                let mut to = TensorMut::new(&mut *widened, Float::BF16, all);
                self.widen_quantized(quant, x, [codes, scales], to.reborrow())?;
                Tensor::new(&*widened, Float::BF16, all)
            }
        };
        let rows = rows_of(routes);
        let (act, layout) = rows_mut::<bf16>("act", act)?;
        let input = Input::new(&x)?;
        let groups = rows.touched(&shape.range).map(|(e, range)| Group {
            x: input.of_routes(&rows.sorted[range.clone()], rows.top_k),
            weight: &experts.gate_up[e],
            first_row: range.start,
        });
        let activated = Activated::new(&activation, (&mut *act, layout)).times(RouteWeights {
            weights: rows.weights,
            routes: rows.sorted,
        });
        self.multiply_groups(groups, &activated);
        let own = rows.of(&shape.range);
        if let (Some(quant), false) = (quant, own.is_empty()) {
            // In place: each row is read before it is written.
            let layout = RowLayout {
                rows: own.len(),
                offset: layout.row(own.start).start,
                ..layout
            };
            let from = Tensor::from_slice(act, layout);
            let target = self.quantize_into(quant, from, [codes, scales])?;
            self.dequantize(
                quant,
                target.as_quantized(),
                TensorMut::from_slice(act, layout),
            )?;
        }
        Ok(())
    }

    fn grouped_matmul_sum(
        &self,
        quant: Option<&Quantization>,
        act: Tensor<'_, Self>,
        experts: &Experts<PackedWeight>,
        routes: &Routes<HostBuffer>,
        shared: Option<Tensor<'_, Self>>,
        scratch: &mut [u8],
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::grouped_sum(
            self,
            quant,
            &act,
            experts,
            routes,
            shared.as_ref(),
            &scratch,
            &y,
        )?;
        if y.layout.rows == 0 {
            return Ok(());
        }
        let shape = experts.shape();
        let request = Request::GroupedMatmulSum {
            quant: quant.copied(),
            routing: *routes.routing(),
            weight: shape.down,
            y: y.float,
        };
        let sizes = Shape {
            rows: y.layout.rows,
            cols: shape.hidden,
            depth: shape.intermediate,
        };
        let [outputs, ..] = Scratch::of(&request, &sizes).split(scratch);
        let rows = rows_of(routes);
        let own = rows.of(&shape.range);
        let input = Input::new(&act)?;
        let groups = rows.touched(&shape.range).map(|(e, range)| Group {
            x: input.some(&range),
            weight: &experts.down[e],
            first_row: range.start - own.start,
        });
        let to: &mut [bf16] = bytemuck::cast_slice_mut(&mut *outputs);
        let all = RowLayout::contiguous(own.len(), shape.hidden);
        self.multiply_groups(groups, &Rounded::new((to, all)));
        let outputs: &[bf16] = bytemuck::cast_slice(outputs);
        if let Some(shared) = &shared {
            // An address between two elements is an error, here as elsewhere.
            with_float!(shared.float, T => aligned::<T>(shared)?);
        }
        let whole = |t: Tensor<'_, Self>| t.view.len() - t.view.len() % t.float.size();
        let shared = shared
            .as_ref()
            .map(|t| (&t.view[..whole(*t)], t.float, &t.layout));
        with_float!(y.float, Y => {
            let (y, layout) = rows_mut::<Y>("y", y)?;
            self.in_pool(|| moe::sum(&rows, &own, outputs, shared, (y, &layout)));
        });
        Ok(())
    }
}

fn aligned<T: Element>(shared: &Tensor<'_, CpuBackend>) -> Result<()> {
    shared.typed::<T>("shared").map(drop)
}

impl CpuBackend {
    /// Runs the matmuls of experts.
    fn multiply_groups<'a>(
        &self,
        groups: impl Iterator<Item = Group<'a>> + Send,
        epilogue: &dyn Epilogue,
    ) {
        let resources = self.resources();
        let kept = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = kept().pop().unwrap_or_default();
        self.in_pool(|| matmul::multiply_groups(&resources, groups, epilogue, &mut scratch));
        kept().push(scratch);
    }

    /// Quantizes rows into codes and scales, without gaps.
    fn quantize_into<'a>(
        &self,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        [codes, scales]: [&'a mut [u8]; 2],
    ) -> Result<QuantizedMut<'a, Self>> {
        let (rows, cols) = (x.layout.rows, x.layout.cols);
        let groups = quant.groups(cols);
        let mut target = QuantizedMut {
            codes,
            layout: RowLayout::contiguous(rows, cols),
            scales,
            scale_layout: ScaleLayout::contiguous(
                quant.format(),
                ScaleOrder::RowMajor,
                rows,
                groups,
            ),
        };
        self.quantize(quant, x, target.reborrow())?;
        Ok(target)
    }

    /// x as a quantization leaves it, in bf16, which is exact where scales are powers of two.
    fn widen_quantized(
        &self,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        [codes, scales]: [&mut [u8]; 2],
        to: TensorMut<'_, Self>,
    ) -> Result<()> {
        let target = self.quantize_into(quant, x, [codes, scales])?;
        self.dequantize(quant, target.as_quantized(), to)
    }
}
