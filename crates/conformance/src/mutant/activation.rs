//! The activation with a fault.

use swiglu_core::{
    ActAndMul, Clamp, Element, Float, Function, GateUp, GatedActivation, Layout, Result, Rounding,
    Tensor, TensorMut, check, with_float,
};

use super::{Fault, Mutant, inner, inner_input, inner_mut, split_wrong, unclamped};
use crate::harness::poison;

/// Elements of a vector whose tail a fault gets wrong.
const VECTOR: usize = 8;

impl<B: ActAndMul> ActAndMul for Mutant<B> {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        match (check::act(&input, &output), self.fault) {
            (Err(_), Fault::ArgumentsUnchecked) => return Ok(()),
            (checked, _) => checked?,
        };
        match input {
            GateUp::Merged(input) => {
                with_float!(input.float, T => self.act::<T>(op, input, output))
            }
            GateUp::Split { .. } => {
                let input = split_wrong(self.fault, input);
                let op = altered(self.fault, op)?;
                self.inner
                    .act_and_mul(&op, inner_input(&input), inner_mut(output))
            }
        }
    }
}

/// The operation that the fault makes of this one.
fn altered(fault: Fault, op: &GatedActivation) -> Result<GatedActivation> {
    let (alpha, limit) = match (op.function(), op.clamp()) {
        (Function::Silu { alpha }, Clamp::Before(limit)) => (alpha, limit.get()),
        _ => return Ok(rounded_otherwise(fault, op)),
    };
    let [with_alpha, with_beta] = match fault {
        Fault::BetaIgnored => [alpha, 0.0],
        Fault::AlphaIgnored => [1.0, op.up_offset()],
        Fault::NoClamp | Fault::UpClampedAboveOnly => return unclamped(op),
        Fault::ClampAfter if alpha == 1.0 && op.up_offset() == 0.0 => {
            let step = GatedActivation::swiglustep_and_mul(limit)?;
            return Ok(step.with_rounding(op.rounding()));
        }
        _ => return Ok(rounded_otherwise(fault, op)),
    };
    // An operator of its own has the layout of its own.
    if op.layout() == Layout::Interleaved {
        return GatedActivation::swigluoai_and_mul(limit, with_alpha)
            .map(|o| o.with_rounding(op.rounding()));
    }
    GatedActivation::silu_and_mul_with_clamp(limit, with_alpha, with_beta)
        .map(|o| o.with_rounding(op.rounding()))
}

fn rounded_otherwise(fault: Fault, op: &GatedActivation) -> GatedActivation {
    match fault {
        Fault::OneRoundingTooMany => op.with_rounding(Rounding::Eager),
        Fault::OneRoundingTooFew => op.with_rounding(Rounding::Official),
        _ => *op,
    }
}

/// What the fault makes of a pair before the operation.
fn pair<T: Element>(fault: Fault, op: &GatedActivation, (gate, up): (T, T)) -> (T, T) {
    let Clamp::Before(limit) = op.clamp() else {
        return match fault {
            Fault::HalvesSwapped => (up, gate),
            _ => (gate, up),
        };
    };
    let limit = limit.get();
    let [top, bottom] = [limit, -limit].map(T::from_f32);
    let above = |x: T| if x.to_f32() > limit { top } else { x };
    let swallowed = |x: T| if x.is_nan() { top } else { x };
    match fault {
        Fault::HalvesSwapped => (up, gate),
        Fault::GateClampedOnBothSides if gate.to_f32() < -limit => (bottom, up),
        Fault::UpClampedAboveOnly => (above(gate), above(up)),
        Fault::NanSwallowed => (swallowed(gate), swallowed(up)),
        _ => (gate, up),
    }
}

/// To `bits` significant bits, to nearest, ties to even.
fn rounded_to(x: f32, bits: u32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    let drop = 24 - bits;
    let raw = x.to_bits();
    let up = (1 << (drop - 1)) - 1 + ((raw >> drop) & 1);
    f32::from_bits((raw + up) >> drop << drop)
}

/// What the fault makes of a result.
fn result<T: Element>(fault: Fault, y: T) -> T {
    match fault {
        Fault::SubnormalsFlushed if y.to_f32().abs() < f32::MIN_POSITIVE => T::default(),
        Fault::ZeroLosesItsSign if y.to_f32() == 0.0 => T::default(),
        Fault::NanIsNotCanonical if y.is_nan() => poison(),
        _ => y,
    }
}

/// Whether the fault is in what is read or written, and not in the arguments alone.
const fn is_in_memory(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::GateClampedOnBothSides
            | Fault::UpClampedAboveOnly
            | Fault::NanSwallowed
            | Fault::LayoutsMixedUp
            | Fault::HalvesSwapped
            | Fault::TailNotWritten
            | Fault::TailBeginsLate
            | Fault::TailReadsItsNeighbour
            | Fault::RoundedTwice
            | Fault::ExpUnderflows
            | Fault::WritesPastTheRow
            | Fault::WritesForNoRows
            | Fault::InputIndexWraps
            | Fault::OutputIndexWraps
            | Fault::SubnormalsFlushed
            | Fault::ZeroLosesItsSign
            | Fault::NanIsNotCanonical
    )
}

impl<B: ActAndMul> Mutant<B> {
    fn act<T: Element>(
        &self,
        op: &GatedActivation,
        mut input: Tensor<'_, Self>,
        mut output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let runs = altered(self.fault, op)?;
        if is_in_memory(self.fault) {
            return self.act_in_memory::<T>(op, &runs, &input, output);
        }
        match self.fault {
            Fault::InputStrideIgnored => input.layout.stride = input.layout.cols,
            Fault::OutputStrideIgnored => output.layout.stride = output.layout.cols,
            Fault::InputOffsetIgnored => input.layout.offset = 0,
            Fault::OutputOffsetIgnored => output.layout.offset = 0,
            _ => {}
        }
        let (input, output) = (inner(&input).into(), inner_mut(output));
        self.inner.act_and_mul(&runs, input, output)
    }

    /// Rows without gaps, read and changed as the fault does.
    fn gathered<T: Element>(
        &self,
        op: &GatedActivation,
        input: &Tensor<'_, Self>,
    ) -> Result<Vec<T>> {
        let x = self.read::<T>(input.view)?;
        let d = input.layout.cols / 2;
        let mut rows = Vec::with_capacity(input.layout.rows * 2 * d);
        for t in 0..input.layout.rows {
            let start = match self.fault {
                Fault::InputIndexWraps => input.layout.row(t).start & 0xffff,
                _ => input.layout.row(t).start,
            };
            let from = &x[start..start + 2 * d];
            let mut row = from.to_vec();
            for j in 0..d {
                let tail = !d.is_multiple_of(VECTOR) && j >= d - d % VECTOR;
                let of = match self.fault {
                    Fault::TailReadsItsNeighbour if tail => j.saturating_sub(1),
                    _ => j,
                };
                let (mut g, mut u) = op.positions(d, of);
                if self.fault == Fault::LayoutsMixedUp {
                    (g, u) = match op.layout() {
                        Layout::Concatenated => (2 * of, 2 * of + 1),
                        Layout::Interleaved => (of, d + of),
                    };
                }
                let (to_gate, to_up) = op.positions(d, j);
                (row[to_gate], row[to_up]) = pair(self.fault, op, (from[g], from[u]));
            }
            rows.extend(row);
        }
        Ok(rows)
    }

    fn act_in_memory<T: Element>(
        &self,
        op: &GatedActivation,
        runs: &GatedActivation,
        input: &Tensor<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let (to, d) = (output.layout, output.layout.cols);
        let rows = self.gathered::<T>(op, input)?;
        let results = self.results::<T>(runs, &rows, d)?;
        let mut y = self.read::<T>(output.view)?;
        if self.fault == Fault::WritesForNoRows
            && to.rows == 0
            && let Some(first) = y.first_mut()
        {
            *first = T::default();
        }
        for (t, row) in results.chunks_exact(d).enumerate() {
            let start = match self.fault {
                Fault::OutputIndexWraps => to.row(t).start & 0xffff,
                _ => to.row(t).start,
            };
            for (j, &result) in row.iter().enumerate() {
                let unwritten = match self.fault {
                    Fault::TailNotWritten => d % 2 == 1 && j == d - 1,
                    Fault::TailBeginsLate => d % VECTOR != 0 && j == d - d % VECTOR,
                    _ => false,
                };
                if !unwritten {
                    y[start + j] = self::result(self.fault, result);
                }
            }
            if self.fault == Fault::WritesPastTheRow
                && let Some(beyond) = y.get_mut(to.row(t).end)
            {
                *beyond = T::default();
            }
        }
        self.write(output.view, &y)
    }

    /// The operation on rows without gaps.
    fn results<T: Element>(&self, op: &GatedActivation, rows: &[T], d: usize) -> Result<Vec<T>> {
        if self.fault == Fault::RoundedTwice
            && T::FLOAT != Float::F32
            && op.rounding() == Rounding::Official
        {
            let significant = if T::FLOAT == Float::F16 { 11 } else { 8 };
            let wide: Vec<f32> = rows.iter().map(|x| x.to_f32()).collect();
            let results = self.plain(op, &wide, d)?;
            let twice = |y: f32| T::from_f32(rounded_to(y, significant + 3));
            return Ok(results.into_iter().map(twice).collect());
        }
        let is_plain = op.clamp() == Clamp::None && op.rounding() == Rounding::Official;
        if self.fault == Fault::ExpUnderflows
            && is_plain
            && matches!(op.function(), Function::Silu { .. })
        {
            let mut of_one: Vec<f32> = rows.iter().map(|x| x.to_f32()).collect();
            let ups =
                |row: &[f32]| -> Vec<f32> { (0..d).map(|j| row[op.positions(d, j).1]).collect() };
            let mut factors = Vec::with_capacity(rows.len() / 2);
            for row in of_one.chunks_exact_mut(2 * d) {
                factors.extend(ups(row));
                (0..d).for_each(|j| row[op.positions(d, j).1] = 1.0);
            }
            let flushed = |f: f32| match f.abs() < f32::MIN_POSITIVE {
                true => 0.0 * f,
                false => f,
            };
            let values = self.plain(op, &of_one, d)?.into_iter().map(flushed);
            let product = |(f, up): (f32, f32)| T::from_f32(f * up);
            return Ok(values.zip(factors).map(product).collect());
        }
        self.plain(op, rows, d)
    }

    fn plain<T: Element>(&self, op: &GatedActivation, rows: &[T], d: usize) -> Result<Vec<T>> {
        let count = rows.len() / (2 * d);
        let x = self.buffer(rows)?;
        let mut y = self.buffer(&vec![T::default(); count * d])?;
        let input = Tensor::contiguous(B::view(&x), T::FLOAT, count, 2 * d);
        let output = TensorMut::contiguous(B::view_mut(&mut y), T::FLOAT, count, d);
        self.inner.act_and_mul(op, input.into(), output)?;
        self.read(&y)
    }
}
