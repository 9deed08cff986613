//! A made-up layer of routed experts: its weights, its calls, and what it must give, computed token by
//! token from the weights alone.

use swiglu_core::{
    Experts, ExpertsShape, Float, Gate, GatedActivation, HostGate, HostRoutes, HostWeight,
    Quantization, Request, Routes, Routing, RowLayout, Selection, Shape, Tensor, TensorMut, Tokens,
    WeightFormat, bf16, reference,
};

use crate::inputs::{Numbers, SampleValues, SampleWeight};
use crate::{Failure, FullBackend, Harness};

/// What a layer is.
#[derive(Clone, Debug)]
pub(crate) struct ExpertsCase {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) routing: Routing,
    pub(crate) format: WeightFormat,
    pub(crate) op: GatedActivation,
    pub(crate) quant: Option<Quantization>,
    pub(crate) seed: u64,
}

/// A layer's tensors.
pub(crate) struct ExpertsData {
    gate: Vec<bf16>,
    bias: Vec<f32>,
    bias_vl: Vec<f32>,
    table: Vec<i32>,
    /// Gate, up and down of each expert.
    pub(crate) experts: Vec<[SampleWeight; 3]>,
}

/// What there is to know of tokens, on the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    pub(crate) ids: Vec<i32>,
    pub(crate) image: Option<Vec<i32>>,
    pub(crate) padding: Option<Vec<i32>>,
}

/// What a backend made of a call.
pub(crate) struct LayerOutcome {
    pub(crate) routes: HostRoutes,
    /// \[T, H\], the sum of the routes.
    pub(crate) routed: Vec<f32>,
    /// \[T, H\], with what the shared expert gave.
    pub(crate) y: Vec<bf16>,
    /// \[T · k, I\] as the first half left it, NaN where it wrote nothing.
    pub(crate) act: Vec<bf16>,
}

/// A layer on a backend.
pub(crate) struct LoadedLayer<B: FullBackend> {
    pub(crate) gate: Gate<B::Weight, B::Buffer>,
    pub(crate) experts: Experts<B::Weight>,
}

impl ExpertsCase {
    /// A small layer that no vector divides.
    pub(crate) fn ragged(format: WeightFormat, routing: Routing) -> Result<Self, Failure> {
        Ok(Self {
            hidden: 160,
            intermediate: 96,
            routing,
            format,
            op: GatedActivation::silu_and_mul_with_clamp(0.5, 1.0, 0.0)?,
            quant: None,
            seed: 1,
        })
    }

    pub(crate) fn data(&self) -> Result<ExpertsData, Failure> {
        let Self {
            hidden: h,
            intermediate: i,
            ..
        } = *self;
        let (e, k) = (self.routing.experts(), self.routing.top_k());
        let mut numbers = Numbers::new(self.seed ^ 0x5eed);
        let wide = 1.0 / (h as f32).sqrt();
        let mut experts = Vec::new();
        for expert in 0..e {
            let weight = |n: usize, shape| {
                let seed = self.seed.wrapping_mul(1009) + (3 * expert + n) as u64;
                SampleWeight::new(shape, self.format, SampleValues::Random, seed)
            };
            experts.push([weight(0, [i, h])?, weight(1, [i, h])?, weight(2, [h, i])?]);
        }
        let rows = self.routing.vocabulary().unwrap_or_default();
        let mut table = Vec::new();
        for _ in 0..rows {
            // k different experts of each row.
            let mut all: Vec<i32> = (0..e as i32).collect();
            for slot in 0..k {
                let other = slot + numbers.below((e - slot) as u64) as usize;
                all.swap(slot, other);
            }
            table.extend(&all[..k]);
        }
        Ok(ExpertsData {
            gate: (0..e * h)
                .map(|_| bf16::from_f32(numbers.normal() * wide))
                .collect(),
            bias: (0..e).map(|_| numbers.normal() * 0.2).collect(),
            bias_vl: (0..e).map(|_| numbers.normal() * 0.2).collect(),
            table,
            experts,
        })
    }

    /// Rows whose gates and ups lie on both sides of the limit.
    pub(crate) fn rows(&self, tokens: usize, seed: u64) -> Vec<bf16> {
        let limit = self.op.limit().map_or(10.0, |limit| limit.get());
        // The deviation of a weight is about 1.3.
        let spread = limit * 0.6 / (1.3 * (self.hidden as f32).sqrt());
        let mut numbers = Numbers::new(seed);
        let mut value = || bf16::from_f32(numbers.normal() * spread);
        (0..tokens * self.hidden).map(|_| value()).collect()
    }

    /// The same with so large rows that routers tell experts apart.
    pub(crate) fn loud_rows(&self, tokens: usize, seed: u64) -> Vec<bf16> {
        let mut numbers = Numbers::new(seed);
        let mut value = || bf16::from_f32(numbers.normal());
        (0..tokens * self.hidden).map(|_| value()).collect()
    }

    pub(crate) fn marks(&self, tokens: usize) -> Marks {
        let rows = self.routing.vocabulary().unwrap_or(1);
        Marks {
            ids: (0..tokens).map(|t| (7 * t % rows) as i32).collect(),
            ..Marks::default()
        }
    }

    pub(crate) fn gated_request(&self) -> Request {
        Request::GroupedGatedMatmul {
            op: self.op,
            quant: self.quant,
            routing: self.routing,
            x: Float::BF16,
            weight: self.format,
        }
    }

    pub(crate) fn sum_request(&self, y: Float) -> Request {
        Request::GroupedMatmulSum {
            quant: self.quant,
            routing: self.routing,
            weight: self.format,
            y,
        }
    }

    pub(crate) fn route_request(&self) -> Request {
        Request::Route {
            routing: self.routing,
            x: Float::BF16,
            weight: WeightFormat::Float(Float::BF16),
        }
    }
}

impl ExpertsData {
    pub(crate) fn host_gate(&self, case: &ExpertsCase) -> Result<HostGate<'_>, Failure> {
        let shape = [case.routing.experts(), case.hidden];
        let format = WeightFormat::Float(Float::BF16);
        let weight = HostWeight::new(shape, format, bytemuck::cast_slice(&self.gate), &[])?;
        let hashes = case.routing.vocabulary().is_some();
        Ok(HostGate::new(
            case.routing,
            weight,
            (!hashes).then(|| self.bias.clone()),
            Some(self.bias_vl.clone()),
            hashes.then(|| self.table.clone()),
        )?)
    }

    /// Loads the router and the experts of a range.
    pub(crate) fn load<B: FullBackend>(
        &self,
        h: &Harness<B>,
        case: &ExpertsCase,
        range: std::ops::Range<usize>,
    ) -> Result<LoadedLayer<B>, Failure> {
        let mut experts = h.backend.alloc_experts(ExpertsShape {
            range: range.clone(),
            hidden: case.hidden,
            intermediate: case.intermediate,
            gate_up: case.format,
            down: case.format,
        })?;
        for [gate, up, down] in &self.experts[range] {
            let (gate, up, down) = (gate.view()?, up.view()?, down.view()?);
            h.backend.load_expert(&mut experts, gate, up, down)?;
        }
        Ok(LoadedLayer {
            gate: h.backend.load_gate(&self.host_gate(case)?)?,
            experts,
        })
    }

    /// The logits of a row, correctly rounded.
    pub(crate) fn logits(&self, row: &[bf16]) -> Vec<f32> {
        let dot = |gate: &[bf16]| {
            let terms = gate.iter().zip(row);
            let sum: f64 = terms
                .map(|(g, x)| f64::from(g.to_f32()) * f64::from(x.to_f32()))
                .sum();
            sum as f32
        };
        self.gate.chunks_exact(row.len()).map(dot).collect()
    }

    /// The experts of a token, their weights, and the smallest gap between scores that decided.
    pub(crate) fn choice(
        &self,
        case: &ExpertsCase,
        logits: &[f32],
        marks: &Marks,
        t: usize,
    ) -> (Vec<i32>, Vec<f32>, f64) {
        let k = case.routing.top_k();
        let none = (vec![-1; k], vec![0.0; k], f64::INFINITY);
        let marked = |marks: &Option<Vec<i32>>| marks.as_ref().is_some_and(|m| m[t] != 0);
        if marked(&marks.padding) {
            return none;
        }
        let softplus = |l: f64| if l > 0.0 { l } else { 0.0 } + (-l.abs()).exp().ln_1p();
        let scores: Vec<f64> = logits
            .iter()
            .map(|&l| {
                if l.is_nan() {
                    f64::NAN
                } else {
                    softplus(l.into()).sqrt()
                }
            })
            .collect();
        let image = marked(&marks.image);
        let mut gap = f64::INFINITY;
        let ids: Vec<usize> = match case.routing.vocabulary().filter(|_| !image) {
            Some(rows) => match usize::try_from(marks.ids[t]).ok().filter(|&id| id < rows) {
                None => return none,
                Some(row) => self.table[row * k..(row + 1) * k]
                    .iter()
                    .map(|&id| id as usize)
                    .collect(),
            },
            None => {
                let bias = if image { &self.bias_vl } else { &self.bias };
                let biased = |e: usize| scores[e] + f64::from(bias[e]);
                let mut order: Vec<usize> = (0..scores.len()).collect();
                order.sort_by(|&a, &b| {
                    let (x, y) = (biased(a), biased(b));
                    let by_value = match (x.is_nan(), y.is_nan()) {
                        (true, true) => std::cmp::Ordering::Equal,
                        (true, false) => std::cmp::Ordering::Less,
                        (false, true) => std::cmp::Ordering::Greater,
                        (false, false) => y.total_cmp(&x),
                    };
                    by_value.then(a.cmp(&b))
                });
                for pair in order[..(k + 1).min(order.len())].windows(2) {
                    let between = biased(pair[0]) - biased(pair[1]);
                    if between > 0.0 {
                        gap = gap.min(between);
                    }
                }
                order.truncate(k);
                order
            }
        };
        let sum: f64 = ids.iter().map(|&e| scores[e]).sum::<f64>() + 1e-20;
        let weight = |&e: &usize| {
            let s = if case.routing.normalize() {
                scores[e] / sum
            } else {
                scores[e]
            };
            (s * f64::from(case.routing.scale())) as f32
        };
        let weights = ids.iter().map(weight).collect();
        (ids.iter().map(|&e| e as i32).collect(), weights, gap)
    }

    /// What an expert gives for a row with a route's weight, as bf16.
    pub(crate) fn expert(&self, case: &ExpertsCase, e: usize, row: &[bf16], w: f32) -> Vec<bf16> {
        let [gate, up, down] = &self.experts[e];
        let read = |values: &[bf16]| match &case.quant {
            None => values.iter().map(|x| f64::from(x.to_f32())).collect(),
            Some(quant) => quantized(quant, values),
        };
        let times = |w: &SampleWeight, x: &[f64]| {
            let Ok(weight) = w.view() else {
                return Vec::new();
            };
            let mut line = vec![0.0; w.shape[1]];
            let dot = |r| {
                weight.decode_row(r, &mut line);
                let sum: f64 = line.iter().zip(x).map(|(w, x)| w * x).sum();
                bf16::from_f64(sum)
            };
            (0..w.shape[0]).map(dot).collect::<Vec<bf16>>()
        };
        let x: Vec<f64> = read(row);
        let (gates, ups) = (times(gate, &x), times(up, &x));
        let act = gates.iter().zip(&ups);
        let act: Vec<bf16> = act
            .map(|(&g, &u)| reference::gated_routed(&case.op, g, u, w))
            .collect();
        times(down, &read(&act))
    }
}

/// Values through FP8 and back.
fn quantized(quant: &Quantization, values: &[bf16]) -> Vec<f64> {
    let values: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
    let (mut codes, mut scales) = (vec![0; values.len()], Vec::new());
    reference::quantize_row(quant, &values, &mut codes, |_, scale| scales.push(scale));
    let wide = |(j, code): (usize, &u8)| {
        let scale = f64::from(scales[j / quant.group()]);
        f64::from(swiglu_core::E4M3(*code).to_f32()) * scale
    };
    codes.iter().enumerate().map(wide).collect()
}

impl<B: FullBackend> Harness<B> {
    /// A buffer of NaN, whatever floats it is taken for.
    pub(crate) fn nans(&self, bytes: usize) -> Result<B::Buffer, Failure> {
        self.upload_bytes(&vec![0xff; bytes])
    }

    /// Lets tokens choose.
    pub(crate) fn route(
        &self,
        case: &ExpertsCase,
        layer: &LoadedLayer<B>,
        x: &[bf16],
        marks: &Marks,
    ) -> Result<Routes<B::Buffer>, Failure> {
        let tokens = x.len() / case.hidden;
        let rows = RowLayout::contiguous(tokens, case.hidden);
        let x = self.upload(x)?;
        let words = |marks: Option<&[i32]>| match marks {
            None => Ok(None),
            Some(marks) => self.upload_bytes(bytemuck::cast_slice(marks)).map(Some),
        };
        let ids = words(Some(&marks.ids))?;
        let image = words(marks.image.as_deref())?;
        let padding = words(marks.padding.as_deref())?;
        let view = B::view;
        let marks = Tokens {
            ids: ids.as_ref().map(view),
            image: image.as_ref().map(view),
            padding: padding.as_ref().map(view),
        };
        let shape = Shape {
            rows: tokens,
            cols: case.routing.experts(),
            depth: case.hidden,
        };
        let mut scratch = self.nans(self.backend.scratch(&case.route_request(), &shape))?;
        let mut routes = Routes::new(&self.backend, &case.routing, tokens)?;
        let x = Tensor::new(B::view(&x), Float::BF16, rows);
        let scratch = B::view_mut(&mut scratch);
        self.backend
            .route(&layer.gate, x, marks, scratch, &mut routes)?;
        Ok(routes)
    }

    /// Runs both halves of a layer's experts on routes.
    pub(crate) fn experts(
        &self,
        case: &ExpertsCase,
        layer: &LoadedLayer<B>,
        x: &[bf16],
        routes: &Routes<B::Buffer>,
        shared: &[bf16],
    ) -> Result<LayerOutcome, Failure> {
        let (h, i) = (case.hidden, case.intermediate);
        let tokens = x.len() / h;
        let backend = &self.backend;
        let rows = RowLayout::contiguous(tokens, h);
        let x = self.upload(x)?;
        let act_rows = RowLayout::contiguous(routes.count(), i);
        let mut act = self.nans(2 * act_rows.rows * i)?;
        let shape = Shape {
            rows: tokens,
            cols: 2 * i,
            depth: h,
        };
        let mut scratch = self.nans(backend.scratch(&case.gated_request(), &shape))?;
        backend.grouped_matmul_act_and_mul(
            &case.op,
            case.quant.as_ref(),
            Tensor::new(B::view(&x), Float::BF16, rows),
            &layer.experts,
            routes,
            B::view_mut(&mut scratch),
            TensorMut::new(B::view_mut(&mut act), Float::BF16, act_rows),
        )?;
        let shared = self.upload(shared)?;
        let sum = |float: Float, shared: Option<Tensor<'_, B>>| {
            let shape = Shape {
                rows: tokens,
                cols: h,
                depth: i,
            };
            let mut scratch = self.nans(backend.scratch(&case.sum_request(float), &shape))?;
            let mut y = self.nans(tokens * h * float.size())?;
            backend.grouped_matmul_sum(
                case.quant.as_ref(),
                Tensor::new(B::view(&act), Float::BF16, act_rows),
                &layer.experts,
                routes,
                shared,
                B::view_mut(&mut scratch),
                TensorMut::new(B::view_mut(&mut y), float, rows),
            )?;
            Ok::<_, Failure>(y)
        };
        let routed = sum(Float::F32, None)?;
        let y = sum(
            Float::BF16,
            Some(Tensor::new(B::view(&shared), Float::BF16, rows)),
        )?;
        Ok(LayerOutcome {
            routes: routes.download(backend)?,
            routed: self.first(&routed, tokens * h)?,
            y: self.first(&y, tokens * h)?,
            act: self.first(&act, act_rows.rows * i)?,
        })
    }

    fn first<T: bytemuck::Pod>(&self, buffer: &B::Buffer, count: usize) -> Result<Vec<T>, Failure> {
        let mut data = vec![T::zeroed(); count];
        self.backend
            .download(buffer, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }
}

/// A routing of a small layer: 3 of 7 experts.
pub(crate) fn few(selection: Selection) -> Result<Routing, Failure> {
    Ok(Routing::new(7, 3, 2.5, true, selection)?)
}
