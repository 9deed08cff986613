//! Routing and routed experts with a fault.

use swiglu_core::{
    Element, Experts, Float, Gate, GatedActivation, GroupedMatmul, HostGate, HostRouter,
    HostWeight, Quantization, Result, Router, Routes, Routing, Tensor, TensorMut, Token, Tokens,
    bf16, score,
};

use super::{Fault, Mutant, fp4, inner, inner_mut, unclamped};
use crate::FullBackend;

/// The same tokens for the right backend.
fn inner_tokens<'a, B: FullBackend>(tokens: &Tokens<'a, Mutant<B>>) -> Tokens<'a, B> {
    Tokens {
        ids: tokens.ids.map(B::view),
        image: tokens.image.map(B::view),
        padding: tokens.padding.map(B::view),
    }
}

impl<B: FullBackend> Router for Mutant<B> {
    fn load_gate(&self, gate: &HostGate<'_>) -> Result<Gate<B::Weight, B::Buffer>> {
        self.inner.load_gate(gate)
    }

    fn route(
        &self,
        gate: &Gate<B::Weight, B::Buffer>,
        x: Tensor<'_, Self>,
        tokens: Tokens<'_, Self>,
        scratch: &mut B::Buffer,
        routes: &mut Routes<B::Buffer>,
    ) -> Result<()> {
        let right = inner_tokens::<B>(&tokens);
        self.inner
            .route(gate, inner(&x), right, B::view_mut(scratch), routes)?;
        if self.is_of_routing() && x.layout.rows > 0 {
            self.choose(gate, &x, &tokens, routes)?;
        }
        Ok(())
    }
}

impl<B: FullBackend> GroupedMatmul for Mutant<B> {
    fn alloc_experts(&self, shape: swiglu_core::ExpertsShape) -> Result<Experts<B::Weight>> {
        self.inner.alloc_experts(shape)
    }

    fn load_expert(
        &self,
        experts: &mut Experts<B::Weight>,
        gate: HostWeight<'_>,
        up: HostWeight<'_>,
        down: HostWeight<'_>,
    ) -> Result<()> {
        let [gate, up, down] = [gate, up, down].map(|weight| fp4::altered(self.fault, weight));
        let (gate, up, down) = (gate?, up?, down?);
        match self.fault {
            Fault::ExpertHalvesSwapped => self.inner.load_expert(experts, up, gate, down),
            _ => self.inner.load_expert(experts, gate, up, down),
        }
    }

    fn grouped_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: Tensor<'_, Self>,
        experts: &Experts<B::Weight>,
        routes: &Routes<B::Buffer>,
        scratch: &mut B::Buffer,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        let op = match self.fault {
            Fault::ExpertsSkipClamp => unclamped(op)?,
            _ => *op,
        };
        let altered = match self.fault {
            Fault::WeightAfterDown => Some(self.with_weights(routes, |_| 1.0)?),
            _ => None,
        };
        let routes = altered.as_ref().unwrap_or(routes);
        let scratch = B::view_mut(scratch);
        let (x, act) = (inner(&x), inner_mut(act));
        self.inner
            .grouped_matmul_act_and_mul(&op, quant, x, experts, routes, scratch, act)
    }

    fn grouped_matmul_sum(
        &self,
        quant: Option<&Quantization>,
        act: Tensor<'_, Self>,
        experts: &Experts<B::Weight>,
        routes: &Routes<B::Buffer>,
        shared: Option<Tensor<'_, Self>>,
        scratch: &mut B::Buffer,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        let right = (shared.as_ref().map(inner), inner_mut(y));
        self.sum(quant, inner(&act), experts, routes, right, scratch)
    }
}

impl<B: FullBackend> Mutant<B> {
    const fn is_of_routing(&self) -> bool {
        matches!(
            self.fault,
            Fault::BiasIgnored
                | Fault::BiasInTheWeights
                | Fault::ImageBiasIgnored
                | Fault::RouteScaleIgnored
                | Fault::NormalizeIgnored
                | Fault::EpsilonMissing
                | Fault::UniformHashWeights
                | Fault::TokenClamped
                | Fault::PaddingRouted
                | Fault::LogitsRounded
                | Fault::SoftplusUnstable
                | Fault::NanHidden
                | Fault::TiesToTheHigher
        )
    }

    /// The words of four bytes in a buffer.
    fn words<T: bytemuck::Pod>(&self, buffer: &B::Buffer, count: usize) -> Result<Vec<T>> {
        let mut words = vec![T::zeroed(); count];
        self.inner
            .download(buffer, bytemuck::cast_slice_mut(&mut words))?;
        Ok(words)
    }

    /// The choice of tokens with a fault, in place of the right one.
    fn choose(
        &self,
        gate: &Gate<B::Weight, B::Buffer>,
        x: &Tensor<'_, Self>,
        tokens: &Tokens<'_, Self>,
        routes: &mut Routes<B::Buffer>,
    ) -> Result<()> {
        let right = &gate.routing;
        let (experts, k, count) = (right.experts(), right.top_k(), x.layout.rows);
        let mut logits = self.inner.alloc(count * experts * 4)?;
        let to = TensorMut::contiguous(B::view_mut(&mut logits), Float::F32, count, experts);
        self.inner.matmul(inner(x), &gate.weight, to)?;
        let mut logits = self.words::<f32>(&logits, count * experts)?;
        for logit in &mut logits {
            *logit = match self.fault {
                Fault::LogitsRounded => <bf16 as Element>::from_f32(*logit).to_f32(),
                Fault::SoftplusUnstable if *logit < -16.6 => f32::NEG_INFINITY,
                Fault::NanHidden if logit.is_nan() => f32::NEG_INFINITY,
                _ => *logit,
            };
        }
        let floats = |buffer: &Option<B::Buffer>| match buffer {
            Some(buffer) => self.words::<f32>(buffer, experts).map(Some),
            None => Ok(None),
        };
        let (mut bias, mut bias_vl) = (floats(&gate.bias)?, floats(&gate.bias_vl)?);
        let rows = right.vocabulary().unwrap_or_default();
        let table = match &gate.table {
            Some(table) => Some(self.words::<i32>(table, rows * k)?),
            None => None,
        };
        match self.fault {
            Fault::BiasIgnored => {
                let both = [&mut bias, &mut bias_vl].into_iter().flatten();
                both.for_each(|bias| bias.fill(0.0));
            }
            Fault::ImageBiasIgnored => bias_vl = None,
            _ => {}
        }
        let (mut scale, mut normalize) = (right.scale(), right.normalize());
        match self.fault {
            Fault::RouteScaleIgnored => scale = 1.0,
            Fault::NormalizeIgnored => normalize = false,
            _ => {}
        }
        let routing = Routing::new(experts, k, scale, normalize, right.selection())?;
        let backwards = self.fault == Fault::TiesToTheHigher;
        if backwards {
            let both = [&mut bias, &mut bias_vl].into_iter().flatten();
            both.for_each(|bias| bias.reverse());
        }
        let router = HostRouter {
            routing,
            bias: bias.as_deref(),
            bias_vl: bias_vl.as_deref(),
            table: table.as_deref(),
        };
        let marks = |view: Option<&B::Buffer>| match view {
            Some(view) => self.words::<i32>(view, count),
            None => Ok(vec![0; count]),
        };
        let (numbers, image) = (marks(tokens.ids)?, marks(tokens.image)?);
        let padding = marks(tokens.padding)?;
        let (mut ids, mut weights) = (vec![0; count * k], vec![0.0; count * k]);
        for (t, logits) in logits.chunks_exact_mut(experts).enumerate() {
            let clamped = numbers[t].clamp(0, (rows as i32 - 1).max(0));
            let token = Token {
                id: match self.fault {
                    Fault::TokenClamped => clamped,
                    _ => numbers[t],
                },
                image: image[t] != 0,
                padding: padding[t] != 0 && self.fault != Fault::PaddingRouted,
            };
            let own = t * k..(t + 1) * k;
            let (ids, weights) = (&mut ids[own.clone()], &mut weights[own]);
            let hashed = table.is_some() && !(token.image && bias_vl.is_some());
            if backwards && !hashed {
                let mut other = logits.to_vec();
                other.reverse();
                router.route(&mut other, token, ids, weights);
                let known = ids.iter_mut().filter(|id| **id >= 0);
                known.for_each(|id| *id = experts as i32 - 1 - *id);
            } else {
                router.route(&mut logits.to_vec(), token, ids, weights);
            }
            self.spoil_token(&routing, logits, router.bias, hashed, ids, weights);
        }
        routes.upload(&*self.inner, &ids, &weights)
    }

    /// What faults make of one token's right choice.
    fn spoil_token(
        &self,
        routing: &Routing,
        logits: &[f32],
        bias: Option<&[f32]>,
        hashed: bool,
        ids: &mut [i32],
        weights: &mut [f32],
    ) {
        if ids.contains(&-1) {
            return;
        }
        let scores = |bias: &[f32]| {
            let of = |&id: &i32| score(logits[id as usize]) + bias.get(id as usize).unwrap_or(&0.0);
            ids.iter().map(of).collect::<Vec<f32>>()
        };
        match self.fault {
            Fault::BiasInTheWeights => {
                let biased = scores(bias.unwrap_or(&[]));
                let sum: f32 = if routing.normalize() {
                    biased.iter().sum()
                } else {
                    1.0
                };
                for (w, s) in weights.iter_mut().zip(biased) {
                    *w = s / sum * routing.scale();
                }
            }
            Fault::UniformHashWeights if hashed => {
                weights.fill(routing.scale() / routing.top_k() as f32);
            }
            Fault::EpsilonMissing
                if routing.normalize() && scores(&[]).iter().all(|s| *s == 0.0) =>
            {
                weights.fill(f32::NAN);
            }
            _ => {}
        }
    }

    /// The same routes with other weights.
    fn with_weights(
        &self,
        routes: &Routes<B::Buffer>,
        weight: impl Fn(f32) -> f32,
    ) -> Result<Routes<B::Buffer>> {
        let routed = routes.download(&*self.inner)?;
        let mut altered = Routes::new(&*self.inner, routes.routing(), routes.tokens())?;
        let weights: Vec<_> = routed.weights.into_iter().map(weight).collect();
        altered.upload(&*self.inner, &routed.ids, &weights)?;
        Ok(altered)
    }

    fn sum(
        &self,
        quant: Option<&Quantization>,
        act: Tensor<'_, B>,
        experts: &Experts<B::Weight>,
        routes: &Routes<B::Buffer>,
        (shared, mut y): (Option<Tensor<'_, B>>, TensorMut<'_, B>),
        scratch: &mut B::Buffer,
    ) -> Result<()> {
        let inner = &*self.inner;
        let shared = shared.filter(|_| self.fault != Fault::SharedLeftOut);
        let (rows, h) = (y.layout.rows, y.layout.cols);
        let faulty =
            matches!(self.fault, Fault::RoutesRounded | Fault::WeightAfterDown) && rows > 0;
        if !faulty {
            let scratch = B::view_mut(scratch);
            return inner.grouped_matmul_sum(quant, act, experts, routes, shared, scratch, y);
        }
        let mut sums = match self.fault {
            Fault::WeightAfterDown => self.weighted_sums(&act, experts, routes, h)?,
            _ => {
                let mut sums = inner.alloc(rows * h * 2)?;
                let to = TensorMut::contiguous(B::view_mut(&mut sums), Float::BF16, rows, h);
                let scratch = B::view_mut(scratch);
                inner.grouped_matmul_sum(quant, act, experts, routes, None, scratch, to)?;
                let rounded = self.words::<bf16>(&sums, rows * h)?;
                rounded.into_iter().map(bf16::to_f32).collect()
            }
        };
        if let Some(shared) = shared {
            let mut rows = vec![0; shared.layout.end("shared")? * shared.float.size()];
            inner.read(shared.view, &mut rows)?;
            let value = |at: usize| match shared.float {
                Float::F32 => bytemuck::pod_read_unaligned(&rows[4 * at..][..4]),
                Float::F16 => {
                    bytemuck::pod_read_unaligned::<swiglu_core::f16>(&rows[2 * at..][..2]).to_f32()
                }
                Float::BF16 => bytemuck::pod_read_unaligned::<bf16>(&rows[2 * at..][..2]).to_f32(),
            };
            for (t, sums) in sums.chunks_exact_mut(h).enumerate() {
                let row = shared.layout.row(t);
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, at)| *sum += value(at));
            }
        }
        let layout = y.layout;
        let mut bytes = vec![0; layout.end("y")? * y.float.size()];
        inner.read(B::as_view(&y.view), &mut bytes)?;
        for (t, sums) in sums.chunks_exact(h).enumerate() {
            for (at, sum) in layout.row(t).zip(sums) {
                let size = y.float.size();
                let to = &mut bytes[size * at..][..size];
                match y.float {
                    Float::F32 => to.copy_from_slice(&sum.to_le_bytes()),
                    Float::F16 => to.copy_from_slice(
                        &<swiglu_core::f16 as Element>::from_f32(*sum).to_le_bytes(),
                    ),
                    Float::BF16 => {
                        to.copy_from_slice(&<bf16 as Element>::from_f32(*sum).to_le_bytes());
                    }
                }
            }
        }
        inner.write(B::reborrow(&mut y.view), &bytes)
    }

    /// The sums of what experts give, each times its route's weight.
    fn weighted_sums(
        &self,
        act: &Tensor<'_, B>,
        experts: &Experts<B::Weight>,
        routes: &Routes<B::Buffer>,
        h: usize,
    ) -> Result<Vec<f32>> {
        let routed = routes.download(&*self.inner)?;
        let k = routes.routing().top_k();
        let mut sums = vec![0.0; routes.tokens() * h];
        for (e, weight) in experts.shape().range.clone().zip(&experts.down) {
            let rows = routed.offsets[e] as usize..routed.offsets[e + 1] as usize;
            for row in rows {
                let mut layout = act.layout;
                (layout.rows, layout.offset) = (1, act.layout.row(row).start);
                let from = Tensor::new(act.view, act.float, layout);
                let mut o = self.inner.alloc(4 * h)?;
                let to = TensorMut::contiguous(B::view_mut(&mut o), Float::F32, 1, h);
                self.inner.matmul(from, weight, to)?;
                let route = routed.sorted[row] as usize;
                let w = routed.weights[route];
                let to = &mut sums[route / k * h..][..h];
                for (sum, o) in to.iter_mut().zip(self.words::<f32>(&o, h)?) {
                    *sum += <bf16 as Element>::from_f32(o * w).to_f32();
                }
            }
        }
        Ok(sums)
    }
}
