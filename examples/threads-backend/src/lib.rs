//! A toy backend on plain threads, as its author would write it outside of swiglu's workspace. It
//! only activates: matmuls and quantization it leaves to others, by their traits' refusing
//! defaults. [`register`] hands it to the facade, and `tests/suite.rs` proves it with one line.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::thread;

use swiglu::{AnyBackend, reference};
use swiglu_core::{
    ActAndMul, Backend, Element, Float, GateUp, GatedActivation, Halves, Matmul, NoWeight,
    Quantize, Registry, Request, Result, Support, TensorMut, bf16, check, f16,
};

/// The platform's name, for `SWIGLU_PLATFORM` and the registry.
pub const NAME: &str = "threads";

/// Host memory and a number of threads, at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Threads(pub usize);

/// Makes the platform known: it is tried before the built-in ones.
pub fn register(registry: &mut Registry<AnyBackend>) {
    registry.register(NAME, |_| Ok(Arc::new(AnyBackend::new(Threads(2)))));
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
            _ => Support::No("this backend only activates".to_owned()),
        }
    }
}

/// Each thread takes rows one after another; the last may take fewer.
fn activate<T: Element>(
    threads: usize,
    op: &GatedActivation,
    input: &GateUp<'_, Threads>,
    output: TensorMut<'_, Threads>,
) -> Result<()> {
    let (halves, to) = (Halves::<T>::new(op, input)?, output.layout);
    let y = output.into_typed::<T>("output")?;
    let share = to.rows.div_ceil(threads.max(1)).max(1);
    let rest = y.get_mut(to.offset..).unwrap_or_default();
    thread::scope(|scope| {
        for (i, y) in rest.chunks_mut(share * to.stride).enumerate() {
            let rows = (i * share..to.rows.min((i + 1) * share)).zip(y.chunks_mut(to.stride));
            scope.spawn(move || {
                for (t, y) in rows {
                    for (y, (gate, up)) in y.iter_mut().zip(halves.pairs(t)) {
                        *y = reference::gated(op, gate, up);
                    }
                }
            });
        }
    });
    Ok(())
}

impl ActAndMul for Threads {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::act(&input, &output)?;
        match output.float {
            Float::F32 => activate::<f32>(self.0, op, &input, output),
            Float::F16 => activate::<f16>(self.0, op, &input, output),
            Float::BF16 => activate::<bf16>(self.0, op, &input, output),
        }
    }
}

impl Quantize for Threads {}

impl Matmul for Threads {
    type Weight = NoWeight;
}
