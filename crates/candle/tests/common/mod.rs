//! What the tests share: inputs that go beyond the limits, and the operations composed of candle's.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

pub mod mlp;

use candle_core::{D, DType, Device, Result, Tensor};
use swiglu_candle::{GatedActivation, Rounding};
use swiglu_core::{Clamp, Function, Layout, Order};

/// The types that are computed on.
pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Numbers from -25 to 25, a third of them beyond ±10 and two thirds beyond ±7.
pub fn random(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(seed);
    let len = shape.iter().product();
    let values: Vec<f32> = (0..len)
        .map(|_| {
            let x = 2.0 * rng.f32() - 1.0;
            25.0 * x * x * x.signum() + x
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// The elements as f64.
pub fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Gate and up of a tensor \[.., 2d\], as the operation finds them.
pub fn halves(op: &GatedActivation, input: &Tensor) -> Result<[Tensor; 2]> {
    let d = input.dim(D::Minus1)? / 2;
    let [first, second] = match op.layout() {
        Layout::Concatenated => [
            input.narrow(D::Minus1, 0, d)?,
            input.narrow(D::Minus1, d, d)?,
        ],
        Layout::Interleaved => {
            let mut dims = input.dims().to_vec();
            let last = dims.len() - 1;
            dims[last] = d;
            dims.push(2);
            let pairs = input.contiguous()?.reshape(dims)?;
            [0, 1].map(|i| {
                pairs
                    .narrow(D::Minus1, i, 1)
                    .and_then(|x| x.squeeze(D::Minus1))
                    .unwrap()
            })
        }
    };
    Ok(match op.order() {
        Order::GateFirst => [first, second],
        Order::UpFirst => [second, first],
    })
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// The function of the gate, and what the up half goes through, in the tensors' own type.
fn function(op: &GatedActivation, gate: &Tensor, up: &Tensor) -> Result<[Tensor; 2]> {
    let same = up.clone();
    Ok(match op.function() {
        Function::Silu { alpha } => [(gate * sigmoid(&(gate * f64::from(alpha))?)?)?, same],
        Function::Gelu => [gate.gelu_erf()?, same],
        Function::GeluTanh => [gate.gelu()?, same],
        Function::FatRelu { threshold } => {
            let above = gate.gt(f64::from(threshold))?;
            [above.where_cond(gate, &gate.zeros_like()?)?, same]
        }
        Function::Situ { beta, up_bound } => {
            let (beta, bound) = (f64::from(beta), f64::from(up_bound.unwrap()));
            let bent = ((gate / beta)?.tanh()? * beta)?;
            [(bent * sigmoid(gate)?)?, ((up / bound)?.tanh()? * bound)?]
        }
        other => panic!("{other:?} is new"),
    })
}

/// Through f32, as candle's way from f64 to 16 bits takes some numbers for halfway that are not.
fn rounded(x: &Tensor, dtype: DType) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.to_dtype(dtype)
}

/// The operation composed of candle's in f64, rounded to `dtype` where the operation's mode says.
pub fn composed(op: &GatedActivation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let dtype = gate.dtype();
    let round = |x: Tensor| -> Result<Tensor> {
        match op.rounding() {
            Rounding::Official => Ok(x),
            Rounding::Eager => rounded(&x, dtype)?.to_dtype(DType::F64),
        }
    };
    let (mut gate, mut up) = (gate.to_dtype(DType::F64)?, up.to_dtype(DType::F64)?);
    let limit = op.limit().map(|limit| f64::from(limit.get()));
    if let (Clamp::Before(_), Some(limit)) = (op.clamp(), limit) {
        gate = gate.minimum(limit)?;
    }
    if let Some(limit) = limit {
        up = up.clamp(-limit, limit)?;
    }
    let [mut gate, up] = function(op, &gate, &up)?;
    if matches!(op.rounding(), Rounding::Eager) {
        gate = round(gate)?;
    }
    if let (Clamp::After(_), Some(limit)) = (op.clamp(), limit) {
        gate = gate.minimum(limit)?;
    }
    let up = round((up + f64::from(op.up_offset()))?)?;
    rounded(&(gate * up)?, dtype)
}

/// One unit in the last place of a number of this type.
pub fn ulp(x: f64, dtype: DType) -> f64 {
    let (digits, least) = match dtype {
        DType::F32 => (23, -126),
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
        other => panic!("{other:?}"),
    };
    let exponent = if x == 0.0 {
        least
    } else {
        x.abs().log2().floor() as i32
    };
    f64::powi(2.0, exponent.max(least) - digits)
}

/// Holds `got` to the promise: 16 bits within one ulp and equal in 99.9 %, f32 within 4 ulp.
pub fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
    let most = if got.dtype() == DType::F32 { 4.0 } else { 1.0 };
    assert_within(most, got, expected, what);
}

/// As [`assert_close`], within so many ulp.
pub fn assert_within(most: f64, got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    assert_eq!(got.dtype(), expected.dtype(), "{what}");
    let dtype = got.dtype();
    let (got, expected) = (values(got), values(expected));
    let mut equal = 0;
    for (j, (g, e)) in got.iter().zip(&expected).enumerate() {
        equal += usize::from(g == e);
        let off = (g - e).abs();
        assert!(
            off <= most * ulp(*e, dtype),
            "{what}: element {j} is {g}, expected {e}"
        );
    }
    if dtype != DType::F32 {
        assert!(
            equal * 1000 >= got.len() * 999,
            "{what}: {equal} of {} equal",
            got.len()
        );
    }
}

/// Asserts that two tensors hold the same bits.
pub fn assert_same(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    assert_eq!(got.dtype(), expected.dtype(), "{what}");
    assert_eq!(values(got), values(expected), "{what}");
}

/// The text of an error, without the backtrace that candle may add.
pub fn refusal<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string().lines().next().unwrap().to_owned(),
    }
}
