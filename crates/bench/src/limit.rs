use swiglu_cpu::limits::multiply_add_rate;
use swiglu_cpu::{Error, InstructionSet};

use crate::median;

/// Operations of f32 a second of all threads, multiplications and additions: the median of five.
///
/// # Errors
/// An instruction set that this machine lacks.
pub fn fma_limit(set: InstructionSet) -> Result<f64, Error> {
    let rates = (0..5).map(|_| multiply_add_rate(set, 400_000_000));
    Ok(median(rates.collect::<Result<_, _>>()?))
}
