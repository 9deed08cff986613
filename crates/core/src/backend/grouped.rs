//! Matmuls of many experts at once, each with the rows that were routed to it.

use std::ops::Range;

use crate::{
    ActAndMul, Element, Experts, ExpertsShape, Float, GatedActivation, HostRoutes, HostWeight,
    Matmul, MoeCall, Quantization, Quantize, Result, Router, Routes, RowLayout, ScaleFormat,
    Tensor, TensorMut, Tokens, bf16, check, reference, with_float,
};

/// A backend that multiplies by the weights of many experts. By default it does so expert by
/// expert, and what lies between the matmuls is computed on the host: calls wait and allocate there.
///
/// Both halves of a layer work on *rows*: routes sorted by expert, as [`Routes`] has them. Experts
/// outside of [`ExpertsShape::range`] and those without rows are not read, and rows that are not of
/// these experts are neither read nor written.
pub trait GroupedMatmul: ActAndMul + Quantize + Matmul {
    /// Room for experts, of which none is loaded yet.
    ///
    /// # Errors
    /// A format that the backend does not support, or a failure of the device.
    fn alloc_experts(&self, shape: ExpertsShape) -> Result<Experts<Self::Weight>> {
        Ok(Experts::new(shape))
    }

    /// Brings the next expert's weights to the device: gate and up \[I, H\], down \[H, I\]. What it was
    /// given is not needed afterwards, so that a checkpoint's experts pass one by one.
    ///
    /// # Errors
    /// As [`Experts::count_next`] and [`Matmul::load_weight`].
    fn load_expert(
        &self,
        experts: &mut Experts<Self::Weight>,
        gate: HostWeight<'_>,
        up: HostWeight<'_>,
        down: HostWeight<'_>,
    ) -> Result<()> {
        experts.count_next(&gate, &up, &down)?;
        experts.gate_up.push(self.load_gate_up(gate, up)?);
        experts.down.push(self.load_weight(&[down])?);
        Ok(())
    }

    /// The bytes of weights of one expert, all that a matmul with its rows reads.
    fn expert_bytes(&self, experts: &Experts<Self::Weight>) -> usize {
        let first = experts
            .gate_up
            .first()
            .into_iter()
            .chain(experts.down.first());
        first.map(|weight| self.weight_bytes(weight)).sum()
    }

    /// Enqueues the first half, for each row of a token t routed to expert e with weight w:
    ///
    /// ```text
    /// act[row] = R(op(R(Q(x[t]) · gate_upₑᵀ)) · w)
    /// ```
    ///
    /// x \[T, H\], act \[T · k, I\] of bf16, R the rounding to bf16, Q the quantization or nothing.
    /// The weight is applied **before** the rounding. With a quantization what act holds is for
    /// [`Self::grouped_matmul_sum`] with the same one, and for nobody else.
    ///
    /// # Errors
    /// As [`check::grouped_act_and_mul`], [`crate::Error::Unsupported`] where [`crate::Backend::supports`]
    /// says no, or a failure of the device.
    #[allow(clippy::too_many_arguments)] // What a half of a layer is.
    fn grouped_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: Tensor<'_, Self>,
        experts: &Experts<Self::Weight>,
        routes: &Routes<Self::Buffer>,
        scratch: Self::ViewMut<'_>,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::grouped_act_and_mul(self, op, quant, &x, experts, routes, &scratch, &act)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        let routed = routes.download(self)?;
        let rows = rows_of(&routed, &experts.shape().range);
        let (h, i) = (x.layout.cols, act.layout.cols);
        let x_rows = read_rows(self, &x)?;
        let k = routes.routing().top_k();
        let gathered = rows.clone().flat_map(|row| {
            let token = routed.sorted[row] as usize / k;
            &x_rows[token * h..(token + 1) * h]
        });
        let mut gathered: Vec<f32> = gathered.copied().collect();
        if let Some(quant) = quant {
            widen_quantized(quant, &mut gathered, h);
        }
        let gate_ups = by_expert(
            self,
            // Codes are widened to bf16.
            (&gathered, h, quant.map_or(x.float, |_| Float::BF16)),
            (&experts.gate_up, 2 * i),
            (&routed, experts),
        )?;
        let mut acts = Vec::with_capacity(rows.len() * i);
        for (row, pairs) in rows.clone().zip(gate_ups.chunks_exact(2 * i)) {
            let w = routed.weights[routed.sorted[row] as usize];
            acts.extend((0..i).map(|j| {
                let (gate, up) = op.positions(i, j);
                reference::gated_routed(op, pairs[gate], pairs[up], w).to_f32()
            }));
        }
        if let Some(quant) = quant {
            widen_quantized(quant, &mut acts, i);
        }
        write_rows(self, &acts, act, rows)
    }

    /// Enqueues the second half and the sum:
    ///
    /// ```text
    /// y[t] = R(sum of R(Q(act[row]) · downₑᵀ) over the rows of t, experts ascending, in f32 + shared[t])
    /// ```
    ///
    /// act \[T · k, I\] as [`Self::grouped_matmul_act_and_mul`] with the same quantization gave it,
    /// shared and y \[T, H\]. Each expert's output is rounded to bf16, and the sum once to y's type. Without
    /// `shared` it is the sum of the routes alone: with a y of f32 what ranks add up.
    ///
    /// # Errors
    /// As [`check::grouped_sum`], [`crate::Error::Unsupported`] where [`crate::Backend::supports`] says
    /// no, or a failure of the device.
    #[allow(clippy::too_many_arguments)] // What a half of a layer is.
    fn grouped_matmul_sum(
        &self,
        quant: Option<&Quantization>,
        act: Tensor<'_, Self>,
        experts: &Experts<Self::Weight>,
        routes: &Routes<Self::Buffer>,
        shared: Option<Tensor<'_, Self>>,
        scratch: Self::ViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        // What was quantized has been widened by the first half.
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
        let h = y.layout.cols;
        let mut sums = vec![0.0_f32; y.layout.rows * h];
        OutputRows::new(self, &act, experts, routes)?.add_to(&mut sums, h);
        if let Some(shared) = shared {
            let shared = read_rows(self, &shared)?;
            sums.iter_mut().zip(shared).for_each(|(sum, s)| *sum += s);
        }
        let all = 0..y.layout.rows;
        write_rows(self, &sums, y, all)
    }

    /// Enqueues both halves and the sum: [`Self::grouped_matmul_act_and_mul`], and
    /// [`Self::grouped_matmul_sum`] of its act. The same bits; a backend that knows that one follows the
    /// other may begin the second while the first still runs.
    ///
    /// # Errors
    /// As of both.
    #[allow(clippy::too_many_arguments)] // What both halves of a layer are.
    fn grouped_mlp(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: Tensor<'_, Self>,
        experts: &Experts<Self::Weight>,
        routes: &Routes<Self::Buffer>,
        shared: Option<Tensor<'_, Self>>,
        mut scratch: Self::ViewMut<'_>,
        mut act: TensorMut<'_, Self>,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        let first = Self::reborrow(&mut scratch);
        self.grouped_matmul_act_and_mul(op, quant, x, experts, routes, first, act.reborrow())?;
        self.grouped_matmul_sum(quant, act.as_tensor(), experts, routes, shared, scratch, y)
    }

    /// Enqueues a layer, x and y \[T, H\]: [`Matmul::matmul_act_and_mul`] and [`Matmul::matmul`] of the shared expert,
    /// [`Router::route`], and [`Self::grouped_mlp`]. The same bits; a backend may let the router run
    /// beside the shared expert.
    ///
    /// # Errors
    /// As of these.
    fn moe(
        &self,
        call: MoeCall<'_, Self>,
        x: Tensor<'_, Self>,
        tokens: Tokens<'_, Self>,
        y: TensorMut<'_, Self>,
    ) -> Result<()>
    where
        Self: Router,
    {
        call.one_by_one(self, x, tokens, y)
    }
}

/// R(rows · wₑᵀ) of each touched expert's rows, one matmul an expert: the rows of these experts, one
/// after another.
fn by_expert<B: Matmul>(
    backend: &B,
    (rows, cols, float): (&[f32], usize, Float),
    (weights, outputs): (&[B::Weight], usize),
    (routed, experts): (&HostRoutes, &Experts<B::Weight>),
) -> Result<Vec<bf16>> {
    let range = &experts.shape().range;
    let own = rows_of(routed, range);
    let mut results = vec![bf16::ZERO; own.len() * outputs];
    for (e, weight) in range.clone().zip(weights) {
        let of = rows_of(routed, &(e..e + 1));
        let count = of.len();
        if count == 0 {
            continue;
        }
        let from = of.start - own.start;
        let x = &rows[from * cols..(from + count) * cols];
        let bytes = with_float!(float, T => {
            let x: Vec<T> = x.iter().map(|&x| <T as Element>::from_f32(x)).collect();
            bytemuck::cast_slice(&x).to_vec()
        });
        let mut x = backend.alloc(bytes.len())?;
        backend.upload(&mut x, &bytes)?;
        let mut y = backend.alloc(count * outputs * 2)?;
        let to = TensorMut::contiguous(B::view_mut(&mut y), Float::BF16, count, outputs);
        let x = Tensor::contiguous(B::view(&x), float, count, cols);
        backend.matmul(x, weight, to)?;
        let to = &mut results[from * outputs..(from + count) * outputs];
        backend.download(&y, bytemuck::cast_slice_mut(to))?;
    }
    Ok(results)
}

/// What the experts of some rows give, R(act · downₑᵀ), on the host.
pub(crate) struct OutputRows {
    routed: HostRoutes,
    top_k: usize,
    /// Which rows there are.
    own: Range<usize>,
    /// \[rows, H\].
    values: Vec<bf16>,
}

impl OutputRows {
    pub(crate) fn new<B: Matmul>(
        backend: &B,
        act: &Tensor<'_, B>,
        experts: &Experts<B::Weight>,
        routes: &Routes<B::Buffer>,
    ) -> Result<Self> {
        let routed = routes.download(backend)?;
        let own = rows_of(&routed, &experts.shape().range);
        let (h, i) = (experts.shape().hidden, act.layout.cols);
        let acts = read_rows(backend, act)?;
        let values = by_expert(
            backend,
            (&acts[own.start * i..own.end * i], i, Float::BF16),
            (&experts.down, h),
            (&routed, experts),
        )?;
        Ok(Self {
            routed,
            top_k: routes.routing().top_k(),
            own,
            values,
        })
    }

    /// Each token's sum, its experts ascending, on what `sums` \[T, H\] hold.
    pub(crate) fn add_to<A>(&self, sums: &mut [A], h: usize)
    where
        A: From<f32> + std::ops::AddAssign,
    {
        let tokens = self.routed.rows.chunks_exact(self.top_k);
        for (sums, rows) in sums.chunks_exact_mut(h).zip(tokens) {
            let rows = rows.iter().filter_map(|&row| usize::try_from(row).ok());
            for row in rows.filter(|row| self.own.contains(row)) {
                let o = &self.values[(row - self.own.start) * h..][..h];
                for (sum, o) in sums.iter_mut().zip(o) {
                    *sum += A::from(o.to_f32());
                }
            }
        }
    }
}

/// The rows of some experts.
fn rows_of(routed: &HostRoutes, experts: &Range<usize>) -> Range<usize> {
    routed.offsets[experts.start] as usize..routed.offsets[experts.end] as usize
}

/// The rows of a matrix on a device, one after another.
pub(crate) fn read_rows<B: crate::Backend>(backend: &B, t: &Tensor<'_, B>) -> Result<Vec<f32>> {
    fn widened<T: Element>(bytes: &[u8], layout: &RowLayout) -> Vec<f32> {
        let data: &[T] = bytemuck::cast_slice(bytes);
        let rows = (0..layout.rows).flat_map(|row| &data[layout.row(row)]);
        rows.map(|x| x.to_f32()).collect()
    }
    let size = t.float.size();
    let mut bytes = crate::HostBuffer::zeroed(t.layout.end("rows")? * size)?;
    backend.read(t.view, bytes.bytes_mut())?;
    Ok(with_float!(t.float, T => widened::<T>(bytes.bytes(), &t.layout)))
}

/// Rounds values into some rows of a matrix on a device; what else its view holds stays.
pub(crate) fn write_rows<B: crate::Backend>(
    backend: &B,
    values: &[f32],
    mut to: TensorMut<'_, B>,
    rows: Range<usize>,
) -> Result<()> {
    fn put<T: Element>(values: &[f32], bytes: &mut [u8], layout: &RowLayout, rows: Range<usize>) {
        let data: &mut [T] = bytemuck::cast_slice_mut(bytes);
        for (row, values) in rows.zip(values.chunks_exact(layout.cols.max(1))) {
            for (y, &x) in data[layout.row(row)].iter_mut().zip(values) {
                *y = T::from_f32(x);
            }
        }
    }
    let (layout, float) = (to.layout, to.float);
    let mut bytes = crate::HostBuffer::zeroed(layout.end("rows")? * float.size())?;
    backend.read(B::as_view(&to.view), bytes.bytes_mut())?;
    with_float!(float, T => put::<T>(values, bytes.bytes_mut(), &layout, rows));
    backend.write(B::reborrow(&mut to.view), bytes.bytes())
}

/// Rows to FP8 and back to bf16, which is exact where scales are powers of two.
fn widen_quantized(quant: &Quantization, rows: &mut [f32], cols: usize) {
    let mut codes = vec![0; cols];
    let mut scales = vec![0.0; quant.groups(cols)];
    for row in rows.chunks_exact_mut(cols) {
        reference::quantize_row(quant, row, &mut codes, |g, scale| {
            let mut stored = [0; 4];
            quant.format().write(&mut stored, 0, scale);
            scales[g] = match quant.format() {
                ScaleFormat::F32 => scale,
                ScaleFormat::E8M0 => ScaleFormat::E8M0.read(&stored, 0),
            };
        });
        for (j, (x, code)) in row.iter_mut().zip(&codes).enumerate() {
            let wide = crate::E4M3(*code).to_f32() * scales[j / quant.group()];
            *x = bf16::from_f32(wide).to_f32();
        }
    }
}
