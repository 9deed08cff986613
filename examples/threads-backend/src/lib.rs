//! A toy backend on plain threads, as its author would write it outside of swiglu's workspace. It
//! only activates: what else there is, `swiglu-core`'s traits refuse for it.
#![forbid(unsafe_code)]

use std::{num::NonZero, sync::Arc, thread};

use swiglu::AnyBackend;
use swiglu_core::{
    ActAndMul, Backend, Element, Float, GateUp, GatedActivation, Halves, Matmul, NoWeight,
    Quantize, Registry, Request, Result, Support, TensorMut, bf16, check, f16, reference,
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

type Output<'a> = TensorMut<'a, Threads>;

impl ActAndMul for Threads {
    fn act_and_mul(&self, op: &GatedActivation, x: GateUp<'_, Self>, y: Output<'_>) -> Result<()> {
        check::act(&x, &y)?;
        match x.float() {
            Float::F32 => self.run::<f32>(*op, &x, y),
            Float::F16 => self.run::<f16>(*op, &x, y),
            Float::BF16 => self.run::<bf16>(*op, &x, y),
        }
    }
}

impl Quantize for Threads {}

impl Matmul for Threads {
    type Weight = NoWeight;
}

impl Threads {
    /// Each thread takes rows one after another; the last may take fewer.
    fn run<T: Element>(
        self,
        op: GatedActivation,
        x: &GateUp<'_, Self>,
        y: Output<'_>,
    ) -> Result<()> {
        let (halves, layout) = (Halves::<T>::new(&op, x)?, y.layout);
        let rows: Vec<_> = (0..layout.rows).collect();
        let share = layout.rows.div_ceil(self.0.get()).max(1);
        let y = y
            .into_typed::<T>("output")?
            .get_mut(layout.offset..)
            .unwrap_or_default();
        thread::scope(|scope| {
            for (y, rows) in y.chunks_mut(share * layout.stride).zip(rows.chunks(share)) {
                scope.spawn(move || {
                    for (y, &t) in y.chunks_mut(layout.stride).zip(rows) {
                        for (y, (gate, up)) in y.iter_mut().zip(halves.pairs(t)) {
                            *y = reference::gated(&op, gate, up);
                        }
                    }
                });
            }
        });
        Ok(())
    }
}
