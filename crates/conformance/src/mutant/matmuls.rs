//! Matmuls with a fault.

use swiglu_core::{
    Backend, Element, Float, GatedActivation, HostWeight, Matmul, Quantization, Quantized, Result,
    Tensor, TensorMut, bf16, check, f16, with_float,
};

use super::quant::inner_quantized;
use super::{Fault, Mutant, fp4, inner, inner_mut, unclamped};
use crate::FullBackend;

impl<B: FullBackend> Matmul for Mutant<B> {
    type Weight = B::Weight;

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<B::Weight> {
        let mut parts = parts.to_vec();
        match self.fault {
            Fault::PartsSwapped => parts.reverse(),
            Fault::ScalesIgnored => {
                let unscaled = parts.iter().map(without_scales);
                parts = unscaled.collect::<Result<_>>()?;
            }
            _ => {
                let altered = parts.into_iter().map(|part| fp4::altered(self.fault, part));
                parts = altered.collect::<Result<_>>()?;
            }
        }
        self.inner.load_weight(&parts)
    }

    fn weight_shape(&self, weight: &B::Weight) -> [usize; 2] {
        self.inner.weight_shape(weight)
    }

    fn weight_bytes(&self, weight: &B::Weight) -> usize {
        self.inner.weight_bytes(weight)
    }

    fn matmul(
        &self,
        mut x: Tensor<'_, Self>,
        weight: &B::Weight,
        mut y: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::matmul(&x, self.weight_shape(weight), &y)?;
        if self.fault == Fault::XStrideIgnored {
            x.layout.stride = x.layout.cols;
        }
        if self.fault != Fault::MatmulTruncates {
            return self.inner.matmul(inner(&x), weight, inner_mut(y));
        }
        let (rows, cols) = (y.layout.rows, y.layout.cols);
        let mut sums = self.inner.alloc(4 * rows * cols)?;
        let to = TensorMut::contiguous(B::view_mut(&mut sums), Float::F32, rows, cols);
        self.inner.matmul(inner(&x), weight, to)?;
        self.inner
            .matmul(inner(&x), weight, inner_mut(y.reborrow()))?;
        let sums = self.read::<f32>(&sums)?;
        match y.float {
            Float::F16 => self.truncate::<f16>(&sums, y),
            Float::BF16 => self.truncate::<bf16>(&sums, y),
            Float::F32 => Ok(()),
        }
    }

    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Self>,
        weight: &B::Weight,
        gate_up: TensorMut<'_, Self>,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        let op = match self.fault {
            Fault::FusedSkipsClamp => unclamped(op)?,
            Fault::FusedSkipsRounding => return self.unrounded_between(op, &x, weight, act),
            _ => *op,
        };
        self.inner
            .matmul_act_and_mul(&op, inner(&x), weight, inner_mut(gate_up), inner_mut(act))
    }

    fn matmul_quantized(
        &self,
        quant: &Quantization,
        x: Quantized<'_, Self>,
        weight: &B::Weight,
        scratch: Self::ViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        let (x, scratch) = (inner_quantized(&x), inner_scratch::<B>(scratch));
        self.inner
            .matmul_quantized(quant, x, weight, scratch, inner_mut(y))
    }
}

/// The same memory for the right backend. A function of its own, as the compiler does not look
/// through [`Mutant`]'s view where the trait's method is bounded.
fn inner_scratch<B: Backend>(view: &mut B::Buffer) -> B::ViewMut<'_> {
    B::view_mut(view)
}

/// The weight with scales of 1.
fn without_scales<'a>(weight: &HostWeight<'a>) -> Result<HostWeight<'a>> {
    let Some((stored, _)) = weight.format().scaling() else {
        return Ok(weight.clone());
    };
    let mut ones = vec![0; weight.scales().len()];
    for i in 0..ones.len() / stored.size() {
        stored.write(&mut ones, i, 1.0);
    }
    let shape = [weight.rows(), weight.cols()];
    HostWeight::owned(shape, weight.format(), weight.data().to_vec(), ones)
}

impl<B: FullBackend> Mutant<B> {
    /// Takes the elements of y one representable value nearer to zero, where the sum was rounded
    /// away from it.
    fn truncate<T: Element>(&self, sums: &[f32], y: TensorMut<'_, Self>) -> Result<()> {
        let layout = y.layout;
        let mut data = self.read::<T>(y.view)?;
        for (t, sums) in sums.chunks_exact(layout.cols).enumerate() {
            for (y, sum) in data[layout.row(t)].iter_mut().zip(sums) {
                if y.to_f32().abs() > sum.abs() {
                    *y = T::from_bits(y.to_bits() - 1);
                }
            }
        }
        self.write(y.view, &data)
    }

    /// Rounds f32 values into the rows of a matrix.
    fn store<T: Element>(&self, values: &[f32], to: TensorMut<'_, Self>) -> Result<()> {
        let layout = to.layout;
        let mut data = self.read::<T>(to.view)?;
        for (t, row) in values.chunks_exact(layout.cols).enumerate() {
            for (y, x) in data[layout.row(t)].iter_mut().zip(row) {
                *y = T::from_f32(*x);
            }
        }
        self.write(to.view, &data)
    }

    fn unrounded_between(
        &self,
        op: &GatedActivation,
        x: &Tensor<'_, Self>,
        weight: &B::Weight,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        let (rows, d) = (act.layout.rows, act.layout.cols);
        let mut sums = self.inner.alloc(8 * rows * d)?;
        let to = TensorMut::contiguous(B::view_mut(&mut sums), Float::F32, rows, 2 * d);
        self.inner.matmul(inner(x), weight, to)?;
        let mut wide = self.inner.alloc(4 * rows * d)?;
        let unrounded = Tensor::contiguous(B::view(&sums), Float::F32, rows, 2 * d);
        let to = TensorMut::contiguous(B::view_mut(&mut wide), Float::F32, rows, d);
        self.inner.act_and_mul(op, unrounded.into(), to)?;
        let wide = self.read::<f32>(&wide)?;
        with_float!(act.float, T => self.store::<T>(&wide, act))
    }
}
