use swiglu_cpu::limits::{matrix_unit_rate, multiply_add_rate};
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

/// The same of bf16 in a matrix unit or by dot products, where the set has either.
///
/// # Errors
/// An instruction set that this machine lacks.
pub fn unit_limit(set: InstructionSet) -> Result<Option<f64>, Error> {
    let rates = (0..5).map(|_| matrix_unit_rate(set, 800_000_000));
    let rates: Option<Vec<f64>> = rates.collect::<Result<_, _>>()?;
    Ok(rates.map(median))
}
