//! Random cases drawn one after another from the seed.

use swiglu_core::{Element, GatedActivation, Quantization, ScaleOrder};

use super::{ActCase, BatchCase, SEED, seed};
use crate::inputs::{Numbers, special_values};
use crate::{Failure, Harness};

/// Any bits, special values, and values of ordinary size, in like shares.
fn element<T: Element>(numbers: &mut Numbers, special: &[T]) -> T {
    match numbers.below(3) {
        0 => T::from_bits((numbers.bits() >> 32) as u32 >> (32 - 8 * T::FLOAT.size())),
        1 => one_of(numbers, special),
        _ => T::from_f32(numbers.within(25.0)),
    }
}

fn one_of<V: Copy>(numbers: &mut Numbers, values: &[V]) -> V {
    values[numbers.below(values.len() as u64) as usize]
}

fn below(numbers: &mut Numbers, bound: u64) -> usize {
    numbers.below(bound) as usize
}

fn on_random_cases<C>(
    cases: u32,
    mut draw: impl FnMut(&mut Numbers) -> C,
    check: impl Fn(C) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let seed = seed();
    let mut numbers = Numbers::new(seed);
    let told = |failure: Failure| Failure::new(format!("{failure}; {SEED}={seed}"));
    (0..cases).try_for_each(|_| check(draw(&mut numbers)).map_err(told))
}

pub(super) fn on_activations<T: Element, B>(
    _: &Harness<B>,
    cases: u32,
    ops: &[GatedActivation],
    check: impl Fn(ActCase<T>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let special = special_values::<T>(10.0);
    let draw = |numbers: &mut Numbers| {
        let op = one_of(numbers, ops);
        let (rows, d) = (below(numbers, 6), 1 + below(numbers, 69));
        let gaps = [(); 4].map(|()| below(numbers, 20));
        let values = (0..rows * 2 * d).map(|_| element(numbers, &special));
        let values = values.collect();
        ActCase {
            op,
            rows,
            d,
            gaps,
            values,
        }
    };
    on_random_cases(cases, draw, check)
}

pub(super) fn on_batches<B>(
    _: &Harness<B>,
    cases: u32,
    (ops, kinds): (&[GatedActivation], &[(Quantization, ScaleOrder)]),
    check: impl Fn(BatchCase) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let draw = |numbers: &mut Numbers| {
        let batches = 1 + below(numbers, 4);
        BatchCase {
            op: one_of(numbers, ops),
            kind: one_of(numbers, kinds),
            batch: 1 + below(numbers, 4),
            counts: (0..batches).map(|_| numbers.below(7) as i32 - 1).collect(),
            d: 1 + below(numbers, 299),
            gap: below(numbers, 20),
            offset: below(numbers, 9),
            routed: numbers.below(2) == 1,
            seed: numbers.bits(),
        }
    };
    on_random_cases(cases, draw, check)
}
