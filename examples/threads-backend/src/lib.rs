//! A toy backend on plain threads, as its author would write it outside of swiglu's workspace. It
//! only activates: what it does not run, the traits of `swiglu-core` refuse for it. `register`
//! hands it to the facade, and `tests/suite.rs` proves it with one line.
#![forbid(unsafe_code)]

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use swiglu_core::{
    ActAndMul, Backend, Element, Float, GateUp, GatedActivation, Halves, Matmul, NoWeight,
    Quantize, Registry, Request, Result, Support, TensorMut, bf16, check, f16, reference,
};

/// The platform's name, for `SWIGLU_PLATFORM` and the registry.
pub const NAME: &str = "threads";

/// A number of threads that work on host memory.
#[derive(Clone, Copy, Debug)]
pub struct Threads(pub NonZero<usize>);

impl Threads {
    /// As many threads as the machine runs at once, or why there are none.
    pub fn open() -> std::result::Result<Self, String> {
        let count = thread::available_parallelism();
        count.map(Self).map_err(|error| error.to_string())
    }

    /// Each thread takes rows one after another; the last may take fewer.
    fn run<T: Element>(
        self,
        op: &GatedActivation,
        input: &GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let (layout, halves) = (output.layout, Halves::<T>::new(op, input)?);
        let mut rows = output.into_typed::<T>("output")?.get_mut(layout.offset..);
        let rows = rows.take().unwrap_or_default().chunks_mut(layout.stride);
        let mut rows: Vec<_> = rows.take(layout.rows).enumerate().collect();
        let share = rows.len().div_ceil(self.0.get()).max(1);
        thread::scope(|scope| {
            for rows in rows.chunks_mut(share) {
                scope.spawn(move || {
                    for (t, row) in rows {
                        for (y, (gate, up)) in row.iter_mut().zip(halves.pairs(*t)) {
                            *y = reference::gated(op, gate, up);
                        }
                    }
                });
            }
        });
        Ok(())
    }
}

/// Makes the platform known: it is tried before the built-in ones.
pub fn register(registry: &mut Registry<swiglu::AnyBackend>) {
    registry.register(NAME, |_| {
        Ok(Arc::new(swiglu::AnyBackend::new(Threads::open()?)))
    });
}

impl Backend for Threads {
    swiglu_core::host_memory!();

    fn platform(&self) -> &'static str {
        NAME
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

impl ActAndMul for Threads {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::act(&input, &output)?;
        match input.float() {
            Float::F32 => self.run::<f32>(op, &input, output),
            Float::F16 => self.run::<f16>(op, &input, output),
            Float::BF16 => self.run::<bf16>(op, &input, output),
        }
    }
}

impl Quantize for Threads {}

impl Matmul for Threads {
    type Weight = NoWeight;
}
