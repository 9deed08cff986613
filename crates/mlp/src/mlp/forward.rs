//! How a pass runs: which of the backend's calls, and in whose memory.

use swiglu_core::{
    ActAndMul, Float, Matmul, QuantOptions, Quantization, Quantize, RowLayout, Tensor, TensorMut,
};

use super::DeepseekV4Mlp;
use crate::stage::Stage;
use crate::workspace::QuantizedSlots;
use crate::{Result, Workspace};

impl<B: ActAndMul + Quantize + Matmul> DeepseekV4Mlp<B> {
    /// Lets `run` write this rank's part of y, and adds up those of all ranks where that is wanted.
    pub(super) fn reduce(
        &self,
        mut y: TensorMut<'_, B>,
        workspace: &mut Workspace<B>,
        run: impl FnOnce(TensorMut<'_, B>, &mut Workspace<B>) -> Result<()>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let Some(ranks) = &self.ranks else {
            return run(y, workspace);
        };
        if y.float == Float::F32 {
            run(y.reborrow(), workspace)?;
            return Ok(ranks.all_reduce(backend, y)?);
        }
        // Taken out while the stages use the rest.
        let mut slot = std::mem::take(&mut workspace.partial);
        let shape = [y.layout.rows, y.layout.cols];
        let mut partial = slot.matrix(backend, Float::F32, shape)?;
        run(partial.reborrow(), workspace)?;
        ranks.all_reduce_into(backend, partial, y)?;
        workspace.partial = slot;
        Ok(())
    }

    /// The stages, in the workspace's memory, fused where the backend has kernels for it.
    pub(super) fn run(
        &self,
        x: Tensor<'_, B>,
        y: TensorMut<'_, B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let (rows, i) = (x.layout.rows, self.stages.intermediate);
        let (backend, op, float) = (&*self.backend, &self.stages.op, self.stages.float);
        if let Some(quant) = &self.stages.quant {
            return self.run_quantized(quant, x, y, workspace);
        }
        let mut gate_up = workspace.gate_up.matrix(backend, float, [rows, 2 * i])?;
        let mut act = workspace.act.matrix(backend, float, [rows, i])?;
        if let [both] = &self.gate_up[..] {
            backend.matmul_act_and_mul(op, x, both, gate_up, act.reborrow())?;
        } else {
            self.matmul_gate_up(x, gate_up.reborrow())?;
            backend.act_and_mul(op, gate_up.as_tensor().into(), act.reborrow())?;
        }
        Ok(backend.matmul(act.as_tensor(), &self.down, y)?)
    }

    fn run_quantized(
        &self,
        quant: &Quantization,
        x: Tensor<'_, B>,
        y: TensorMut<'_, B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let (rows, i) = (x.layout.rows, self.stages.intermediate);
        let (backend, op, float) = (&*self.backend, &self.stages.op, self.stages.float);
        let (gate_up, quantized) = (&mut workspace.gate_up, &mut workspace.quantized);
        // For the largest at once, so that the second does not outgrow the first.
        let scratch = self.first_scratch(quant, rows);
        let scratch = scratch.max(self.second_scratch(quant, rows, y.float));
        let widest = self.stages.hidden.max(i);
        quantized.matrix(backend, quant, [rows, widest], scratch)?;
        gate_up.matrix(backend, float, [rows, 2 * i])?;
        if let ([both], true) = (&self.gate_up[..], quant.materialize()) {
            // In the memory of a `gate_up` that is not written.
            let mut act = gate_up.matrix(backend, float, [rows, i])?;
            let (_, room) = quantized.matrix(backend, quant, [rows, widest], scratch)?;
            if backend.quantizing_matmul_act_and_mul(op, quant, x, both, room, act.reborrow())? {
                let room = (quantized, scratch);
                return self.quantizing_down(quant, act.as_tensor(), y, room);
            }
        }
        if let [both] = &self.gate_up[..] {
            // x's codes are in the scratch memory, which the second matmul may write again.
            let (mut act, mut room) = quantized.matrix(backend, quant, [rows, i], scratch)?;
            let (first, to) = (B::reborrow(&mut room), act.reborrow());
            if backend.quantizing_matmul_act_and_mul_quant(op, quant, x, both, first, to)? {
                return Ok(backend.matmul_quantized(
                    quant,
                    act.as_quantized(),
                    &self.down,
                    room,
                    y,
                )?);
            }
        }
        let mut gate_up = gate_up.matrix(backend, float, [rows, 2 * i])?;
        let weights = &self.gate_up;
        self.quantize_and_matmul(quant, x, (weights, scratch), gate_up.reborrow(), quantized)?;
        let (mut act, scratch) = quantized.matrix(backend, quant, [rows, i], scratch)?;
        let options = QuantOptions::default();
        let input = gate_up.as_tensor().into();
        backend.act_and_mul_quant(op, quant, input, act.reborrow(), options)?;
        Ok(backend.matmul_quantized(quant, act.as_quantized(), &self.down, scratch, y)?)
    }

    /// y = quant(act) · wᵀ, w being down.
    fn quantizing_down(
        &self,
        quant: &Quantization,
        act: Tensor<'_, B>,
        mut y: TensorMut<'_, B>,
        (slots, scratch): (&mut QuantizedSlots<B>, usize),
    ) -> Result<()> {
        let shape = [act.layout.rows, act.layout.cols];
        let (_, room) = slots.matrix(&*self.backend, quant, shape, scratch)?;
        let down = &self.down;
        if self
            .backend
            .quantizing_matmul(quant, act, down, room, y.reborrow())?
        {
            return Ok(());
        }
        let down = (std::slice::from_ref(&**down), scratch);
        self.quantize_and_matmul(quant, act, down, y, slots)
    }

    /// The stages, each by itself.
    pub(super) fn run_stages(
        &self,
        x: Tensor<'_, B>,
        [mut gate_up, mut act]: [TensorMut<'_, B>; 2],
        y: TensorMut<'_, B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let rows = x.layout.rows;
        let slots = &mut workspace.quantized;
        let op = &self.stages.op;
        let Some(quant) = &self.stages.quant else {
            self.matmul_gate_up(x, gate_up.reborrow())?;
            self.backend
                .act_and_mul(op, gate_up.as_tensor().into(), act.reborrow())?;
            return Ok(self.backend.matmul(act.as_tensor(), &self.down, y)?);
        };
        let first = self.first_scratch(quant, rows);
        let second = self.second_scratch(quant, rows, y.float);
        self.quantize_and_matmul(quant, x, (&self.gate_up, first), gate_up.reborrow(), slots)?;
        self.backend
            .act_and_mul(op, gate_up.as_tensor().into(), act.reborrow())?;
        let down = (std::slice::from_ref(&*self.down), second);
        self.quantize_and_matmul(quant, act.as_tensor(), down, y, slots)
    }

    /// gate_up = x · wᵀ: by one weight, or by gate into the first half and by up into the second.
    fn matmul_gate_up(&self, x: Tensor<'_, B>, mut gate_up: TensorMut<'_, B>) -> Result<()> {
        for (n, weight) in self.gate_up.iter().enumerate() {
            let part = part(&mut gate_up, n, self.gate_up.len());
            self.backend.matmul(x, weight, part)?;
        }
        Ok(())
    }

    /// y = quant(x) · wᵀ, by weights whose outputs lie side by side in y.
    fn quantize_and_matmul(
        &self,
        quant: &Quantization,
        x: Tensor<'_, B>,
        (weights, scratch): (&[B::Weight], usize),
        mut y: TensorMut<'_, B>,
        slots: &mut QuantizedSlots<B>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let RowLayout { rows, cols, .. } = x.layout;
        let (mut codes, mut scratch) = slots.matrix(backend, quant, [rows, cols], scratch)?;
        backend.quantize(quant, x, codes.reborrow())?;
        for (n, weight) in weights.iter().enumerate() {
            let part = part(&mut y, n, weights.len());
            let scratch = B::reborrow(&mut scratch);
            backend.matmul_quantized(quant, codes.as_quantized(), weight, scratch, part)?;
        }
        Ok(())
    }

    /// The bytes of scratch memory that the matmuls by gate and up take.
    fn first_scratch(&self, quant: &Quantization, rows: usize) -> usize {
        let stages = self.stages.quantized_gate_up(*quant, self.stages.float);
        let bytes = stages.map(|stage| self.scratch(&stage, rows));
        bytes.max().unwrap_or_default()
    }

    /// The bytes of scratch memory that the matmul by down takes.
    fn second_scratch(&self, quant: &Quantization, rows: usize, y: Float) -> usize {
        self.scratch(&self.stages.quantized_down(*quant, y), rows)
    }

    /// The bytes of scratch memory that a stage takes.
    fn scratch(&self, stage: &Stage, rows: usize) -> usize {
        self.backend.scratch(&stage.request, &stage.shape(rows))
    }
}

/// The columns of a matrix that are the n-th of so many equal parts.
fn part<'a, B: Matmul>(
    matrix: &'a mut TensorMut<'_, B>,
    n: usize,
    parts: usize,
) -> TensorMut<'a, B> {
    let mut part = matrix.reborrow();
    part.layout.cols /= parts.max(1);
    part.layout.offset = part.layout.offset.saturating_add(n * part.layout.cols);
    part
}
