use swiglu_core::{Accuracy, Element, Float, Function, GatedActivation, Rounding, reference};

use crate::Failure;

/// ‖got - expected‖ / ‖expected‖: NaN where either holds a NaN.
pub fn relative_error<T: Element>(got: &[T], expected: &[T]) -> f64 {
    let square = |x: f64| x * x;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (got, expected) in got.iter().zip(expected) {
        let [got, expected] = [got, expected].map(|x| f64::from(x.to_f32()));
        difference += square(got - expected);
        norm += square(expected);
    }
    (difference / norm).sqrt()
}

/// How a result stands to the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agreement {
    /// Within the contract, this many representable values away.
    Ulps(u32),
    /// Further away, by no more than may be lost where numbers are subnormal.
    Underflow,
    /// Not what the contract allows.
    Off,
}

/// How many results were looked at, how many were the reference's own, and how far off the others
/// were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) compared: usize,
    pub(crate) exact: usize,
    /// Of the results that no underflow excuses.
    pub(crate) worst_ulps: u32,
}

impl Tally {
    /// At least 99.9 % of the results must be correctly rounded.
    pub(crate) fn check(self, op: &GatedActivation, float: Float) -> Result<(), Failure> {
        let wrong = self.compared - self.exact;
        if wrong * 1000 <= self.compared {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{op} in {float}: {wrong} of {} results are not correctly rounded, more than 0.1 %",
            self.compared
        )))
    }
}

/// How far a result may be from the reference in ulps.
fn ulps(op: &GatedActivation, float: Float, expected: &Accuracy) -> u32 {
    match (float, op.rounding()) {
        (Float::F32, _) | (_, Rounding::Official) => expected.ulps(float),
        // An intermediate that falls on the other side of a tie is one ulp off, which the product
        // turns into up to two.
        (Float::F16 | Float::BF16, Rounding::Eager) => 2,
    }
}

/// How large the factor that up becomes can be, with what is added to it.
fn up_factor<T: Element>(op: &GatedActivation, up: T) -> f64 {
    let up = f64::from(up.to_f32()).abs();
    let limit = op.limit().map(|limit| f64::from(limit.get()));
    let up = match (limit, op.function()) {
        (Some(limit), _) => up.min(limit),
        (
            None,
            Function::Situ {
                up_bound: Some(b), ..
            },
        ) => up.min(f64::from(b)),
        (None, _) => up,
    };
    up + f64::from(op.up_offset()).abs()
}

/// What `Eager` may lose: f(g) is rounded to T, and on the other side of a tie it is the next of T's
/// subnormal numbers.
fn lost_between<T: Element>(op: &GatedActivation, up: T) -> f64 {
    match op.rounding() {
        Rounding::Official => 0.0,
        Rounding::Eager => f64::from(T::from_bits(1).to_f32()) * up_factor(op, up),
    }
}

/// What is lost where subnormal numbers are taken for zero: operands, exp and the function's value
/// before they meet an up half that would lift them.
fn flushed<T: Element>(op: &GatedActivation, gate: T, up: T) -> f64 {
    let smallest = f64::from(f32::MIN_POSITIVE);
    let (gate, limit) = (
        f64::from(gate.to_f32()),
        op.limit()
            .map_or(f64::INFINITY, |limit| f64::from(limit.get())),
    );
    // Beyond 128 everything has underflown.
    let below = (-gate).clamp(0.0, 128.0);
    // x/bound underflows before bound lifts it again.
    let (below, of_up) = match op.function() {
        Function::Situ { beta, up_bound } => {
            let beta = f64::from(beta);
            (below + beta, beta * f64::from(up_bound.unwrap_or(0.0)))
        }
        _ => (below, 0.0),
    };
    let above = gate.clamp(0.0, limit);
    smallest * ((1.0 + below) * up_factor(op, up) + of_up + 1.0 + below + above)
}

/// Whether an infinite up half may meet a zero, or a zero of the reference's be none: f(g) that `Eager`
/// rounds, or that is flushed.
fn meets_zero<T: Element>(op: &GatedActivation, gate: T, up: T, expected: &Accuracy) -> bool {
    let smallest = match (expected.flushes_subnormals, op.rounding()) {
        (true, _) => f32::MIN_POSITIVE,
        (false, Rounding::Eager) => T::from_bits(1).to_f32(),
        (false, Rounding::Official) => return false,
    };
    let of_one = reference::gated(op, gate.to_f32(), 1.0_f32);
    !up.is_nan()
        && T::from_f64(up_factor(op, up)).to_f32().is_infinite()
        && (of_one.abs() <= 128.0 * smallest || overflows(op, gate))
}

/// Whether PyTorch's exp(-x) overflows, which `Eager` may follow to the bit: x/(1 + inf) is -0.
fn overflows<T: Element>(op: &GatedActivation, gate: T) -> bool {
    op.rounding() == Rounding::Eager && T::FLOAT != Float::F32 && gate.to_f32() < -88.72
}

/// One result against the reference.
fn agreement<T: Element>(
    op: &GatedActivation,
    (gate, up): (T, T),
    (got, want): (T, T),
    expected: &Accuracy,
) -> Agreement {
    if got.is_nan() {
        return match got.to_bits() == canonical_nan::<T>() {
            true if want.is_nan() => Agreement::Ulps(0),
            true if meets_zero(op, gate, up, expected) => Agreement::Underflow,
            _ => Agreement::Off,
        };
    }
    if want.is_nan() {
        let may_be_none = got.to_f32().is_infinite() && meets_zero(op, gate, up, expected);
        return if may_be_none {
            Agreement::Underflow
        } else {
            Agreement::Off
        };
    }
    let negative = |x: T| x.to_f32().is_sign_negative();
    if !expected.flushes_subnormals && negative(got) != negative(want) {
        return Agreement::Off;
    }
    let ulps_off = got.ulps_between(want);
    if ulps_off <= ulps(op, T::FLOAT, expected) {
        return Agreement::Ulps(ulps_off);
    }
    if overflows(op, gate) && got.to_f32() == 0.0 {
        return Agreement::Underflow;
    }
    if !(got.to_f32().is_finite() && want.to_f32().is_finite()) {
        return Agreement::Off;
    }
    // Rounding is monotonic: what lies between the ends rounds to what lies between theirs.
    let mut lost = lost_between(op, up);
    if expected.flushes_subnormals {
        lost += flushed(op, gate, up);
    }
    let end = |x: f64| T::from_f64(f64::from(want.to_f32()) + x).to_f32();
    match (end(-lost)..=end(lost)).contains(&got.to_f32()) {
        true => Agreement::Underflow,
        false => Agreement::Off,
    }
}

/// The bits of the one NaN that is ever written. Poison is a NaN too, with other bits.
fn canonical_nan<T: Element>() -> u32 {
    T::from_f32(f32::NAN).to_bits()
}

/// Results against the reference; what the results are of is told by their index.
pub(crate) fn against_reference<T: Element>(
    op: &GatedActivation,
    pairs: &[(T, T)],
    got: &[T],
    expected: &Accuracy,
    tally: &mut Tally,
) -> Result<(), Failure> {
    for (at, (&(gate, up), &got)) in pairs.iter().zip(got).enumerate() {
        let want = reference::gated(op, gate, up);
        let agreement = agreement(op, (gate, up), (got, want), expected);
        if agreement == Agreement::Off {
            return Err(mismatch(op, at, (gate, up), (got, want)));
        }
        tally.compared += 1;
        tally.exact += usize::from(agreement == Agreement::Ulps(0));
        if let Agreement::Ulps(ulps) = agreement {
            tally.worst_ulps = tally.worst_ulps.max(ulps);
        }
    }
    Ok(())
}

/// The smallest normal number of a type.
fn smallest_normal<T: Element>() -> f32 {
    match T::FLOAT {
        Float::F16 => 2f32.powi(-14),
        Float::F32 | Float::BF16 => f32::MIN_POSITIVE,
    }
}

/// As [`against_reference`], where flushing takes subnormal results to zero and nothing else: pairs of
/// normal numbers whose result is one must be within the ulps.
pub(crate) fn against_reference_where_normal<T: Element>(
    op: &GatedActivation,
    pairs: &[(T, T)],
    got: &[T],
    expected: &Accuracy,
) -> Result<(), Failure> {
    let least = smallest_normal::<T>();
    let is_normal = |x: T| x.to_f32() == 0.0 || x.to_f32().abs() >= least;
    for (at, (&(gate, up), &got)) in pairs.iter().zip(got).enumerate() {
        let want = reference::gated(op, gate, up);
        let strict = !expected.flushes_subnormals || is_normal(gate) && is_normal(up);
        let held_to = match strict && (want.is_nan() || want.to_f32().abs() >= least) {
            true => &Accuracy {
                flushes_subnormals: false,
                ..*expected
            },
            false => expected,
        };
        if agreement(op, (gate, up), (got, want), held_to) == Agreement::Off {
            return Err(mismatch(op, at, (gate, up), (got, want)));
        }
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

/// As [`same_bits`], with NaN too: what one kernel gives on both ways.
pub(crate) fn identical<T: Element>(
    op: &GatedActivation,
    pairs: &[(T, T)],
    got: &[T],
    want: &[T],
) -> Result<(), Failure> {
    for (at, (&pair, (&got, &want))) in pairs.iter().zip(got.iter().zip(want)).enumerate() {
        if got.to_bits() != want.to_bits() {
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

/// The gates and the ups of rows of 2d elements, each one after another.
pub(crate) fn halves_of_rows<T: Element>(
    op: &GatedActivation,
    rows: &[T],
    d: usize,
) -> [Vec<T>; 2] {
    let (gates, ups) = pairs_of_rows(op, rows, d).into_iter().unzip();
    [gates, ups]
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
        T::FLOAT,
        shown(gate),
        shown(up),
        shown(got),
        shown(want),
    ))
}
