use swiglu_core::{Clamp, DType, Element, Function, GatedActivation, Rounding, reference};

use crate::{Expectations, Failure};

/// How many results were looked at, and how many were the reference's own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    compared: usize,
    exact: usize,
}

impl Tally {
    /// At least 99.9 % of the results must be correctly rounded.
    pub(crate) fn check(self, op: &GatedActivation, dtype: DType) -> Result<(), Failure> {
        let wrong = self.compared - self.exact;
        if wrong * 1000 <= self.compared {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{op} in {dtype}: {wrong} of {} results are not correctly rounded, more than 0.1 %",
            self.compared
        )))
    }
}

/// How far a result may be from the reference in ulps.
fn ulps(op: &GatedActivation, dtype: DType, expected: &Expectations) -> u32 {
    match (dtype, op.rounding()) {
        (DType::F32, _) => expected.f32_ulps,
        (_, Rounding::Official) => 1,
        // An intermediate that falls on the other side of a tie is one ulp off, which the product
        // turns into up to two.
        (_, Rounding::Eager) => 2,
    }
}

/// What f32 arithmetic loses absolutely: exp and the function's value underflow before they meet
/// an up half that would lift them, and shaders may flush.
fn underflow<T: Element>(op: &GatedActivation, gate: T, up: T, expected: &Expectations) -> f64 {
    let (gate, up) = (f64::from(gate.to_f32()), f64::from(up.to_f32()).abs());
    let up = match (op.clamp(), op.function()) {
        (Clamp::Before(l) | Clamp::After(l), _) => up.min(f64::from(l.get())),
        (
            Clamp::None,
            Function::Situ {
                up_bound: Some(b), ..
            },
        ) => up.min(f64::from(b)),
        (Clamp::None, _) => up,
    } + f64::from(op.up_offset()).abs();
    // Beyond 128 everything has underflown.
    let below = (-gate).clamp(0.0, 128.0);
    if expected.flushes_subnormals {
        let above = match op.clamp() {
            Clamp::None => gate.max(0.0),
            Clamp::Before(l) | Clamp::After(l) => gate.clamp(0.0, f64::from(l.get())),
        };
        f64::from(f32::MIN_POSITIVE) * ((1.0 + below) * up + 1.0 + below + above)
    } else {
        f64::from(f32::from_bits(1)) * (1.0 + below) * up
    }
}

/// One result against the reference.
fn agrees<T: Element>(
    op: &GatedActivation,
    (gate, up): (T, T),
    (got, want): (T, T),
    expected: &Expectations,
) -> bool {
    if want.is_nan() || got.is_nan() {
        return want.is_nan() && got.is_nan();
    }
    let negative = |x: T| x.to_f32().is_sign_negative();
    if !expected.flushes_subnormals && negative(got) != negative(want) {
        return false;
    }
    if got.ulps_between(want) <= ulps(op, T::DTYPE, expected) {
        return true;
    }
    // Eager may be PyTorch to the bit, whose exp(-x) overflows there: x/(1 + inf) is -0.
    let overflows = T::DTYPE != DType::F32 && gate.to_f32() < -88.72;
    if op.rounding() == Rounding::Eager && overflows && got.to_f32() == 0.0 {
        return true;
    }
    let error = (f64::from(got.to_f32()) - f64::from(want.to_f32())).abs();
    error.is_finite() && error <= underflow(op, gate, up, expected)
}

/// Results against the reference; what the results are of is told by their index.
pub(crate) fn against_reference<T: Element>(
    op: &GatedActivation,
    pairs: &[(T, T)],
    got: &[T],
    expected: &Expectations,
    tally: &mut Tally,
) -> Result<(), Failure> {
    for (at, (&(gate, up), &got)) in pairs.iter().zip(got).enumerate() {
        let want = reference::gated(op, gate, up);
        if !agrees(op, (gate, up), (got, want), expected) {
            return Err(mismatch(op, at, (gate, up), (got, want)));
        }
        tally.compared += 1;
        tally.exact += usize::from(got == want || (got.is_nan() && want.is_nan()));
    }
    Ok(())
}

/// Results that must be the same bit for bit; any NaN equals any other.
pub(crate) fn same_bits<T: Element>(
    op: &GatedActivation,
    pairs: &[(T, T)],
    got: &[T],
    want: &[T],
) -> Result<(), Failure> {
    for (at, (&pair, (&got, &want))) in pairs.iter().zip(got.iter().zip(want)).enumerate() {
        if got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan()) {
            return Err(mismatch(op, at, pair, (got, want)));
        }
    }
    Ok(())
}

/// The pairs of gate and up in rows of 2d elements, in the order of the outputs.
pub(crate) fn pairs_of_rows<T: Element>(op: &GatedActivation, rows: &[T], d: usize) -> Vec<(T, T)> {
    let of_row = |row: &[T]| -> Vec<(T, T)> {
        (0..d)
            .map(|j| op.positions(d, j))
            .map(|(g, u)| (row[g], row[u]))
            .collect()
    };
    rows.chunks_exact(2 * d).flat_map(of_row).collect()
}

/// A value with its bits.
pub(crate) fn shown<T: Element>(x: T) -> String {
    format!("{:e} ({:#x})", x.to_f32(), x.to_bits())
}

fn mismatch<T: Element>(
    op: &GatedActivation,
    at: usize,
    (gate, up): (T, T),
    (got, want): (T, T),
) -> Failure {
    Failure::new(format!(
        "{op} in {}, output {at} of gate {} and up {}: got {}, expected {}",
        T::DTYPE,
        shown(gate),
        shown(up),
        shown(got),
        shown(want),
    ))
}
