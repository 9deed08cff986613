use swiglu_core::{
    ActAndMul, Error, Float, GatedActivation, HostWeight, Matmul, Quantization, Quantize,
    QuantizedMut, Request, RowLayout, ScaleLayout, ScaleOrder, Support, Tensor, TensorMut,
};

use crate::inputs::{SampleValues, SampleWeight, weight_formats};
use crate::{Failure, FullBackend, Harness};

/// The answer to a request that does not run must be an error that says so.
fn refused<V>(request: &Request, outcome: Result<V, Error>) -> Result<(), Failure> {
    match outcome {
        Err(Error::Unsupported { .. }) => Ok(()),
        Err(error) => Err(Failure::new(format!(
            "{request} is not supported, and the error of the call is another: {error}"
        ))),
        Ok(_) => Err(Failure::new(format!(
            "{request} is not supported, and the call runs all the same"
        ))),
    }
}

/// What the backend says no to ([`swiglu_core::Backend::supports`]) is refused by the call too: nothing runs
/// with another meaning.
///
/// # Errors
/// The first call that runs, or whose error is another.
pub fn what_is_not_supported_is_refused<B: FullBackend>(h: &Harness<B>) -> Result<(), Failure> {
    let no = |request: &Request| matches!(h.backend.supports(request), Support::No(_));
    let quant = Quantization::deepseek_v4();
    for float in Float::ALL {
        for op in GatedActivation::ALL {
            let request = Request::Activation { op, float };
            if no(&request) {
                refused(&request, activate(h, &op, float))?;
            }
            let request = Request::ActivationQuant { op, quant, float };
            if no(&request) {
                refused(&request, quantize(h, &quant, float, Some(&op)))?;
            }
        }
        let request = Request::Quantize { quant, float };
        if no(&request) {
            refused(&request, quantize(h, &quant, float, None))?;
        }
    }
    for weight in weight_formats() {
        let request = |(x, y)| Request::Matmul { x, weight, y };
        let pairs = Float::ALL.map(|x| Float::ALL.map(|y| (x, y)));
        let mut requests = pairs.into_iter().flatten().map(request);
        if requests.all(|request| no(&request)) {
            let stored = SampleWeight::new([2, 64], weight, SampleValues::Exact, 1)?;
            let loaded = load(h, &stored.view()?);
            refused(&request((Float::BF16, Float::BF16)), loaded)?;
        }
    }
    Ok(())
}

fn activate<B: ActAndMul>(
    h: &Harness<B>,
    op: &GatedActivation,
    float: Float,
) -> swiglu_core::Result<()> {
    let input = h.backend.alloc(16 * float.size())?;
    let mut output = h.backend.alloc(8 * float.size())?;
    let input = Tensor::contiguous(B::view(&input), float, 1, 16).into();
    let output = TensorMut::contiguous(B::view_mut(&mut output), float, 1, 8);
    h.backend.act_and_mul(op, input, output)
}

fn quantize<B: Quantize>(
    h: &Harness<B>,
    quant: &Quantization,
    float: Float,
    op: Option<&GatedActivation>,
) -> swiglu_core::Result<()> {
    let d = quant.group();
    let input = h.backend.alloc(2 * d * float.size())?;
    let (mut codes, mut scales) = (h.backend.alloc(d)?, h.backend.alloc(4)?);
    let scale_layout = ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, 1, 1);
    let output = QuantizedMut {
        codes: B::view_mut(&mut codes),
        layout: RowLayout::contiguous(1, d),
        scales: B::view_mut(&mut scales),
        scale_layout,
    };
    match op {
        None => {
            let input = Tensor::contiguous(B::view(&input), float, 1, d);
            h.backend.quantize(quant, input, output)
        }
        Some(op) => {
            let input = Tensor::contiguous(B::view(&input), float, 1, 2 * d).into();
            let options = swiglu_core::QuantOptions::default();
            h.backend
                .act_and_mul_quant(op, quant, input, output, options)
        }
    }
}

fn load<B: Matmul>(h: &Harness<B>, weight: &HostWeight<'_>) -> swiglu_core::Result<()> {
    let parts = std::slice::from_ref(weight);
    h.backend.load_weight(parts).map(|_| ())
}
