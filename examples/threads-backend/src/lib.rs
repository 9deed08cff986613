//! A toy backend on plain threads, as its author would write it outside of swiglu's workspace. It
//! only activates: what else there is, `swiglu-core`'s traits refuse for it.
#![forbid(unsafe_code)]

use std::{num::NonZero, sync::Arc, thread};

use swiglu::AnyBackend;
use swiglu_core::{
    ActAndMul, Backend, Element, GateUp, GatedActivation, GroupedMatmul, Halves, Matmul, NoWeight,
    Quantize, Registry, Request, Result, Router, Support, TensorMut, check, reference, with_float,
};

/// A number of threads that work on host memory.
#[derive(Clone, Copy, Debug)]
pub struct Threads(pub NonZero<usize>);

/// Makes the platform known: it is tried before the built-in ones.
pub fn register(registry: &mut Registry<AnyBackend>) {
    registry.register("threads", |_options| {
        let count = thread::available_parallelism().map_err(|error| error.to_string())?;
        Ok(Arc::new(AnyBackend::new(Threads(count))))
    });
}

impl Backend for Threads {
    swiglu_core::host_memory!();
    fn platform(&self) -> &'static str {
        "threads"
    }
    fn description(&self) -> String {
        format!("{} threads of the standard library", self.0)
    }
    fn supports(&self, request: &Request) -> Support {
        match request {
            Request::Activation { .. } => Support::Native,
            _ => Support::No("it only activates".to_owned()),
        }
    }
}

type Op = GatedActivation;
type Input<'a> = GateUp<'a, Threads>;
type Output<'a> = TensorMut<'a, Threads>;

impl ActAndMul for Threads {
    fn act_and_mul(&self, op: &Op, input: Input<'_>, output: Output<'_>) -> Result<()> {
        check::act(&input, &output)?;
        with_float!(input.float(), T => run::<T>(self.0.get(), op, &input, output))
    }
}

impl Quantize for Threads {}

impl Matmul for Threads {
    type Weight = NoWeight;
}

impl Router for Threads {}

impl GroupedMatmul for Threads {}

/// Each thread takes rows one after another; the last may take fewer.
fn run<T: Element>(threads: usize, op: &Op, input: &Input<'_>, output: Output<'_>) -> Result<()> {
    let (halves, layout) = (Halves::<T>::new(op, input)?, output.layout);
    let share = layout.rows.div_ceil(threads).max(1);
    let y = output.into_typed::<T>("output")?;
    let y = y.get_mut(layout.offset..).unwrap_or_default();
    let mut rows: Vec<_> = y.chunks_mut(layout.stride).take(layout.rows).collect();
    thread::scope(|scope| {
        for (i, rows) in rows.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                for (t, row) in rows.iter_mut().enumerate() {
                    let each = row.iter_mut().zip(halves.pairs(i * share + t));
                    each.for_each(|(y, (gate, up))| *y = reference::gated(op, gate, up));
                }
            });
        }
    });
    Ok(())
}
