//! Experts on the device: as many in one buffer as fit a binding.
//!
//! ## Method
//! 1. The parts of an expert (gate and up, or down) lie one after another, then those of the next. Each part has a
//!    grid of scales of its own.
//! 2. Buffers are made when experts are announced, and filled one expert after another.
//! 3. Where an expert's scales ask for a higher power of two than its buffer's were multiplied by, the buffer is
//!    brought to that one: only a weight with subnormal scales asks.

use swiglu_core::{Error, Experts, ExpertsShape, HostWeight, WeightFormat};

use crate::device::Device;
use crate::launch::{Bound, Recorder};
use crate::pipelines::DeviceFormat;
use crate::weight::{Chunk, ChunkScales, Lift, STAGING, Weight, WeightForm};
use crate::{Buffer, Result};

/// One kind of an expert's weights: gate and up, or down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    pub(super) form: WeightForm,
    /// Parts of an expert, and their rows.
    pub(super) parts: usize,
    pub(super) part_rows: usize,
    /// Rows of a part's scales, and columns.
    pub(super) scale_rows: usize,
    block: [usize; 2],
    scale_cols: usize,
}

impl Stack {
    /// Of gate and up, and of down.
    ///
    /// # Errors
    /// A format that the kernels do not have.
    pub(super) fn of(shape: &ExpertsShape) -> swiglu_core::Result<[Self; 2]> {
        let (h, i) = (shape.hidden, shape.intermediate);
        Ok([
            Self::new(shape.gate_up, 2, [i, h])?,
            Self::new(shape.down, 1, [h, i])?,
        ])
    }

    /// Of a format, with so many parts of this shape.
    ///
    /// # Errors
    /// A format that the kernels do not have.
    pub(super) fn new(
        format: WeightFormat,
        parts: usize,
        [rows, cols]: [usize; 2],
    ) -> swiglu_core::Result<Self> {
        let form = WeightForm::of(format, cols)?;
        let block = match (form.format, format.scaling()) {
            (DeviceFormat::E4m3 | DeviceFormat::Fp4, Some((_, block))) => block,
            // Plain numbers, or decoded when they are loaded.
            _ => [rows.max(1), cols.max(1)],
        };
        let scale_cols = match form.format {
            DeviceFormat::Fp4 => form.scale_pitch(),
            _ => cols.div_ceil(block[1]),
        };
        Ok(Self {
            form,
            parts,
            part_rows: rows,
            scale_rows: rows.div_ceil(block[0]),
            block,
            scale_cols,
        })
    }

    const fn expert_bytes(&self) -> usize {
        self.parts * self.part_rows * self.form.row_bytes()
    }

    /// Bytes of an expert's scales.
    const fn expert_scale_bytes(&self) -> usize {
        let scales = self.parts * self.scale_rows * self.scale_cols;
        match self.form.format {
            DeviceFormat::E4m3 => 4 * scales,
            DeviceFormat::Fp4 => scales,
            DeviceFormat::F32 | DeviceFormat::F16 | DeviceFormat::BF16 => 0,
        }
    }

    /// The experts of a buffer.
    ///
    /// # Errors
    /// One expert that is too large for a binding.
    pub(super) fn per_buffer(&self, limit: u64) -> swiglu_core::Result<usize> {
        let bytes = self.expert_bytes().max(self.expert_scale_bytes());
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        match limit / bytes.max(1) {
            0 => {
                let expected = format!("at most {limit} bytes of an expert, as one binding has");
                Err(Error::argument("experts", expected, bytes))
            }
            count => Ok(count),
        }
    }

    /// Room for so many experts in one buffer.
    fn buffer(&self, device: &Device, experts: usize) -> Result<Weight> {
        let rows = experts * self.parts * self.part_rows;
        let int = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let scales = match self.expert_scale_bytes() {
            0 => None,
            bytes => Some(ChunkScales {
                data: Buffer::allocated(device, experts * bytes)?,
                // A block taller or wider than the weight is as good as one of its size.
                block: [
                    int(self.block[0]),
                    int(self.block[1].min(self.form.cols.next_multiple_of(16))),
                ],
                cols: int(self.scale_cols),
                skip: 0,
                factors: 0,
                exponents: 0,
            }),
        };
        Ok(Weight {
            rows,
            form: self.form,
            bytes: experts * (self.expert_bytes() + self.expert_scale_bytes()),
            lift: Lift::default(),
            has_nan_codes: false,
            chunks: vec![Chunk {
                first_row: 0,
                rows,
                data: Buffer::allocated(device, experts * self.expert_bytes())?,
                scales,
                bound: Bound::default(),
            }],
            exact_in_f16: false,
            scale_bytes: None,
            dense: None,
        })
    }

    fn buffers(&self, device: &Device, experts: usize) -> Result<Vec<Weight>> {
        let per_buffer = self.per_buffer(device.bindings().bytes)?;
        (0..experts)
            .step_by(per_buffer)
            .map(|first| self.buffer(device, per_buffer.min(experts - first)))
            .collect()
    }

    /// Writes a part of the expert at a place in its buffer.
    fn put(
        &self,
        recorder: &Recorder,
        to: &mut Weight,
        (expert, part): (usize, usize),
        host: &HostWeight<'_>,
    ) -> Result<()> {
        let device = recorder.device();
        let lift = to.lift.and(Lift::of(std::slice::from_ref(host)));
        if lift != to.lift {
            self.lift(recorder, to, lift)?;
        }
        let [Chunk { data, scales, .. }] = to.chunks.as_slice() else {
            return Ok(());
        };
        let number = expert * self.parts + part;
        let row_bytes = self.form.row_bytes();
        let per_write = (STAGING / row_bytes).max(1);
        let mut line = vec![
            0.0;
            if self.form.is_decoded() {
                self.form.cols
            } else {
                0
            }
        ];
        for row in (0..self.part_rows).step_by(per_write) {
            let count = per_write.min(self.part_rows - row);
            let mut staging = vec![0; count * row_bytes];
            for (i, out) in staging.chunks_exact_mut(row_bytes).enumerate() {
                self.form
                    .write_row((host, row + i), to.lift, &mut line, out);
            }
            to.has_nan_codes |= self.form.has_nan_codes(&staging);
            let at = (number * self.part_rows + row) * row_bytes;
            device.write_words(data.raw(), at, &staging)?;
        }
        let Some(scales) = scales else {
            return Ok(());
        };
        let count = self.scale_rows * self.scale_cols;
        if self.form.format == DeviceFormat::Fp4 {
            let mut bytes = vec![0; count];
            for (row, line) in bytes.chunks_exact_mut(self.scale_cols).enumerate() {
                self.form.write_scale_bytes(host, row, line);
            }
            let all = host
                .scales()
                .iter()
                .copied()
                .chain(to.scale_bytes.into_iter().flatten());
            to.scale_bytes = all
                .clone()
                .min()
                .zip(all.max())
                .map(|(least, most)| [least, most]);
            return device.write_words(scales.data.raw(), number * count, &bytes);
        }
        let [block_rows, block_cols] = self.block;
        let rows = (0..self.scale_rows).map(|r| r * block_rows);
        let values: Vec<f32> = rows
            .flat_map(|r| (0..self.scale_cols).map(move |c| (r, c * block_cols)))
            .map(|(r, c)| to.lift.lifted(host.scale(r, c)))
            .collect();
        let bytes = bytemuck::cast_slice(&values);
        device.write_words(scales.data.raw(), 4 * number * count, bytes)
    }

    /// Brings what a buffer holds to another power of two. FP4's scales are raised by the kernels.
    fn lift(&self, recorder: &Recorder, to: &mut Weight, lift: Lift) -> Result<()> {
        let by = to.lift.undone() / lift.undone();
        to.lift = lift;
        let [Chunk { data, scales, .. }] = to.chunks.as_slice() else {
            return Ok(());
        };
        let numbers = match (self.form.format, scales) {
            (DeviceFormat::E4m3, Some(scales)) => &scales.data,
            (DeviceFormat::F32, _) => data,
            _ => return Ok(()),
        };
        let mut values = vec![0.0_f32; numbers.len() / 4];
        recorder.read(numbers.raw(), 0, bytemuck::cast_slice_mut(&mut values))?;
        values.iter_mut().for_each(|value| *value *= by);
        let bytes = bytemuck::cast_slice(&values);
        recorder.device().write_words(numbers.raw(), 0, bytes)
    }
}

/// Room for experts.
///
/// # Errors
/// A format that the kernels do not have, an expert that is too large for a binding, or a failure of the device.
pub(crate) fn alloc(device: &Device, shape: ExpertsShape) -> Result<Experts<Weight>> {
    let [gate_up, down] = Stack::of(&shape)?;
    let count = shape.count();
    let mut experts = Experts::new(shape);
    experts.gate_up = gate_up.buffers(device, count)?;
    experts.down = down.buffers(device, count)?;
    Ok(experts)
}

/// Writes the next expert.
///
/// # Errors
/// As [`Experts::count_next`], or a failure of the device.
pub(crate) fn load(
    recorder: &Recorder,
    experts: &mut Experts<Weight>,
    [gate, up, down]: [&HostWeight<'_>; 3],
) -> Result<()> {
    let stacks = Stack::of(experts.shape())?;
    let place = experts.loaded();
    experts.count_next(gate, up, down)?;
    let limit = recorder.device().bindings().bytes;
    let buffers = [&mut experts.gate_up, &mut experts.down];
    let parts: [&[&HostWeight<'_>]; 2] = [&[gate, up], &[down]];
    for ((stack, buffers), parts) in stacks.iter().zip(buffers).zip(parts) {
        let per_buffer = stack.per_buffer(limit)?;
        if let Some(buffer) = buffers.get_mut(place / per_buffer) {
            for (part, host) in parts.iter().enumerate() {
                stack.put(recorder, buffer, (place % per_buffer, part), host)?;
            }
        }
    }
    Ok(())
}

/// Bytes of weights of one expert.
pub(crate) fn expert_bytes(shape: &ExpertsShape) -> usize {
    let bytes = |stack: Stack| stack.expert_bytes() + stack.expert_scale_bytes();
    Stack::of(shape).map_or(0, |stacks| stacks.map(bytes).iter().sum())
}
