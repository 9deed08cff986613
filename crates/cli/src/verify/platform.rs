use std::sync::Arc;

use swiglu::{
    Accuracy, ActAndMul, AnyBackend, Backend, GateUp, GatedActivation, Operator, Request, Result,
    Support, Tensor, TensorMut, reference::Reference,
};

/// A platform of the registry as the suite's checks want it, with host memory for its own: where
/// the device cannot read that, every call copies there and back.
pub struct Platform {
    backend: Arc<AnyBackend>,
    /// The one operator that is asked for.
    only: Option<Operator>,
}

impl Platform {
    pub const fn new(backend: Arc<AnyBackend>, only: Option<Operator>) -> Self {
        Self { backend, only }
    }
}

impl Backend for Platform {
    swiglu::host_memory!();

    fn platform(&self) -> &'static str {
        self.backend.platform()
    }

    fn description(&self) -> String {
        self.backend.description()
    }

    fn accuracy(&self) -> Accuracy {
        self.backend.accuracy()
    }

    fn supports(&self, request: &Request) -> Support {
        match request {
            Request::Activation { op, .. } if self.only.is_some_and(|o| o != op.operator()) => {
                Support::No("not asked for".to_owned())
            }
            _ => self.backend.supports(request),
        }
    }
}

/// The same matrix for the registry's calls.
const fn on_host<'a>(t: Tensor<'a, Platform>) -> Tensor<'a, Reference> {
    Tensor::new(t.view, t.float, t.layout)
}

impl ActAndMul for Platform {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let input = match input {
            GateUp::Merged(input) => on_host(input).into(),
            GateUp::Split { gate, up } => GateUp::Split {
                gate: on_host(gate),
                up: on_host(up),
            },
        };
        let output = TensorMut::new(output.view, output.float, output.layout);
        self.backend.act_and_mul(op, input, output)
    }
}
