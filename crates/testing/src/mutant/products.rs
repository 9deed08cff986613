//! Products with a fault.

use swiglu_core::{
    BlockScales, DType, Element, GatedActivation, GatedMatmul, HostWeight, Matmul, Result, Support,
    Tensor, TensorMut, bf16, f16,
};

use super::{Fault, Mutant, unclamped};

impl<B: GatedMatmul> Matmul for Mutant<B> {
    type Weight = B::Weight;

    fn supports_weight(&self, dtype: DType) -> Support {
        self.inner.supports_weight(dtype)
    }

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<B::Weight> {
        let mut parts = parts.to_vec();
        if self.fault == Fault::PartsSwapped {
            parts.reverse();
        }
        let scaled = parts.iter().all(|p| p.scales().is_some());
        if self.fault != Fault::ScalesIgnored || !scaled || parts.is_empty() {
            return self.inner.load_weight(&parts);
        }
        let ones: Vec<Vec<u8>> = parts.iter().map(ones).collect();
        let unscaled = parts.iter().zip(&ones).map(|(p, data)| {
            let scales = p.scales().map(|s| BlockScales {
                data,
                dtype: s.dtype,
                block: s.block,
            });
            HostWeight::new(p.rows(), p.cols(), p.dtype(), p.data(), scales)
        });
        self.inner
            .load_weight(&unscaled.collect::<Result<Vec<_>>>()?)
    }

    fn weight_shape(&self, weight: &B::Weight) -> [usize; 2] {
        self.inner.weight_shape(weight)
    }

    fn weight_bytes(&self, weight: &B::Weight) -> usize {
        self.inner.weight_bytes(weight)
    }

    fn matmul(
        &self,
        mut x: Tensor<'_, B::Buffer>,
        weight: &B::Weight,
        mut y: TensorMut<'_, B::Buffer>,
    ) -> Result<()> {
        self.inner.check_matmul(&x, weight, &y)?;
        if self.fault == Fault::XStrideIgnored {
            x.layout.stride = x.layout.cols;
        }
        if self.fault != Fault::ProductTruncates {
            return self.inner.matmul(x, weight, y);
        }
        let (rows, cols) = (y.layout.rows, y.layout.cols);
        let mut sums = self.inner.alloc(4 * rows * cols)?;
        let to = TensorMut::contiguous(&mut sums, DType::F32, rows, cols);
        self.inner.matmul(Tensor { ..x }, weight, to)?;
        self.inner.matmul(x, weight, y.reborrow())?;
        let sums = self.read::<f32>(&sums)?;
        match y.dtype {
            DType::F16 => self.truncate::<f16>(&sums, y),
            DType::BF16 => self.truncate::<bf16>(&sums, y),
            _ => Ok(()),
        }
    }
}

/// The bytes of scales of 1 for a weight.
fn ones(weight: &HostWeight<'_>) -> Vec<u8> {
    let scale = |s: &BlockScales<'_>| match s.dtype {
        DType::E8M0 => vec![127; s.data.len()],
        _ => 1_f32.to_le_bytes().repeat(s.data.len() / 4),
    };
    weight.scales().map_or_else(Vec::new, scale)
}

impl<B: GatedMatmul> Mutant<B> {
    /// Takes the elements of y one representable value nearer to zero, where the sum was rounded
    /// away from it.
    fn truncate<T: Element>(&self, sums: &[f32], y: TensorMut<'_, B::Buffer>) -> Result<()> {
        let layout = y.layout;
        let mut data = self.read::<T>(y.buffer)?;
        for (t, sums) in sums.chunks_exact(layout.cols).enumerate() {
            for (y, sum) in data[layout.row(t)].iter_mut().zip(sums) {
                if y.to_f32().abs() > sum.abs() {
                    *y = T::from_bits(y.to_bits() - 1);
                }
            }
        }
        self.write(y.buffer, &data)
    }

    /// Rounds f32 values into the rows of a matrix.
    fn store<T: Element>(&self, values: &[f32], to: TensorMut<'_, B::Buffer>) -> Result<()> {
        let layout = to.layout;
        let mut data = self.read::<T>(to.buffer)?;
        for (t, row) in values.chunks_exact(layout.cols).enumerate() {
            for (y, x) in data[layout.row(t)].iter_mut().zip(row) {
                *y = T::from_f32(*x);
            }
        }
        self.write(to.buffer, &data)
    }

    fn unrounded_between(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, B::Buffer>,
        weight: &B::Weight,
        act: TensorMut<'_, B::Buffer>,
    ) -> Result<()> {
        let (rows, d) = (act.layout.rows, act.layout.cols);
        let mut sums = self.inner.alloc(8 * rows * d)?;
        let mut unrounded = TensorMut::contiguous(&mut sums, DType::F32, rows, 2 * d);
        self.inner.matmul(x, weight, unrounded.reborrow())?;
        let mut wide = self.inner.alloc(4 * rows * d)?;
        let to = TensorMut::contiguous(&mut wide, DType::F32, rows, d);
        self.inner.act_and_mul(op, unrounded.as_ref(), to)?;
        let wide = self.read::<f32>(&wide)?;
        match act.dtype {
            DType::F16 => self.store::<f16>(&wide, act),
            DType::BF16 => self.store::<bf16>(&wide, act),
            _ => self.store::<f32>(&wide, act),
        }
    }
}

impl<B: GatedMatmul> GatedMatmul for Mutant<B> {
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, B::Buffer>,
        weight: &B::Weight,
        gate_up: TensorMut<'_, B::Buffer>,
        act: TensorMut<'_, B::Buffer>,
    ) -> Result<()> {
        let op = match self.fault {
            Fault::FusedSkipsClamp => unclamped(op)?,
            Fault::FusedSkipsRounding => return self.unrounded_between(op, x, weight, act),
            _ => *op,
        };
        self.inner.matmul_act_and_mul(&op, x, weight, gate_up, act)
    }
}
