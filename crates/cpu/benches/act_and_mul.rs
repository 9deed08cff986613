//! The clamped activation on this machine's CPU: type by shape, in bytes moved per second.
//!
//! `cargo bench -p swiglu-cpu`
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use swiglu_core::{Element, GatedActivation, Rows, RowsMut, bf16, f16};

/// T × d: one token, some, and more than caches hold.
const SHAPES: [(usize, usize); 4] = [(1, 2048), (64, 3072), (512, 3072), (4096, 3072)];

fn of_type<T: Element>(c: &mut Criterion) {
    let op = GatedActivation::deepseek_v4();
    let mut group = c.benchmark_group(format!("{}/{}", op.name(), T::DTYPE));
    for (rows, d) in SHAPES {
        let mut random = fastrand::Rng::with_seed(1);
        let mut value = || T::from_f32((random.f32() - 0.5) * 40.0);
        let input: Vec<T> = (0..rows * 2 * d).map(|_| value()).collect();
        let mut output = vec![T::default(); rows * d];
        let (from, to) = GatedActivation::contiguous(input.len(), d).unwrap();
        group.throughput(Throughput::Bytes((rows * 3 * d * size_of::<T>()) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{d}")), |b| {
            b.iter(|| {
                let input = Rows::new(&input, from).unwrap();
                let output = RowsMut::new(&mut output, to).unwrap();
                swiglu_cpu::act_and_mul(&op, input, output).unwrap();
            });
        });
    }
    group.finish();
}

fn act_and_mul(c: &mut Criterion) {
    of_type::<bf16>(c);
    of_type::<f16>(c);
    of_type::<f32>(c);
}

criterion_group!(benches, act_and_mul);
criterion_main!(benches);
