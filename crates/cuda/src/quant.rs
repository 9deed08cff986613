//! Quantisation to FP8 and back.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{ActShape, DType, Error as CoreError, Quantisation};

use crate::{
    LaunchOptions, RawMatrix, RawQuantised, Result,
    driver::{Function, Module},
    error::Doing,
    params::QuantParams,
    quant_plan::check_aligned,
};

static FATBIN: &[u8] = include_bytes!("../fatbin/quantise.fatbin");

/// A kernel in its two accesses: single elements, and 16-byte vectors.
#[derive(Clone, Copy, Debug)]
struct Accesses([Function; 2]);

impl Accesses {
    fn load(module: &Module, name: &str) -> Result<Self> {
        let element = module.function(&format!("{name}_element"))?;
        Ok(Self([
            element,
            module.function(&format!("{name}_16bytes"))?,
        ]))
    }
}

/// The kernels that quantise, loaded into a context.
#[derive(Debug)]
pub struct Quantisers {
    context: Arc<CudaContext>,
    /// By [`DType::COMPUTE`]'s order.
    quantise: Vec<Accesses>,
    dequantise: Vec<Accesses>,
    overlaps: bool,
    _module: Module,
}

/// The place of a type in [`DType::COMPUTE`].
fn place(argument: &'static str, dtype: DType) -> Result<usize> {
    let place = DType::COMPUTE.iter().position(|d| *d == dtype);
    place.ok_or_else(|| CoreError::argument(argument, "f32, f16 or bf16", dtype).into())
}

impl Quantisers {
    /// Loads the kernels. This allocates; nothing after it does.
    ///
    /// # Errors
    /// A device older than the kernels, or a failure of the driver.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let (major, _) = context.compute_capability().doing("ask for the device")?;
        let module = Module::load(context, FATBIN)?;
        let of_types = |name: &str| -> Result<Vec<Accesses>> {
            let of_type = |t: DType| Accesses::load(&module, &format!("{name}_{t}"));
            DType::COMPUTE.into_iter().map(of_type).collect()
        };
        Ok(Self {
            context: context.clone(),
            quantise: of_types("quantise")?,
            dequantise: of_types("dequantise")?,
            overlaps: major >= 9,
            _module: module,
        })
    }

    /// Enqueues `output = quant(input)` over bare memory on a bare stream: both \[T, d\].
    ///
    /// # Safety
    /// As [`crate::Activations::act_and_mul_raw`].
    ///
    /// # Errors
    /// A matrix whose type, shape, strides or alignment do not fit, or a failure of the driver.
    pub unsafe fn quantise_raw(
        &self,
        stream: sys::CUstream,
        quant: &Quantisation,
        input: &RawMatrix,
        output: &RawQuantised,
        options: LaunchOptions,
    ) -> Result<()> {
        let kernels = &self.quantise[place("input", input.dtype)?];
        check_numbers("input", quant, input, output)?;
        let params = QuantParams::new(quant, input, output)?;
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernels, params, input, options) }
    }

    /// Enqueues `output = code · scale`, rounded once, over bare memory on a bare stream.
    ///
    /// # Safety
    /// As [`crate::Activations::act_and_mul_raw`].
    ///
    /// # Errors
    /// As [`Self::quantise_raw`].
    pub unsafe fn dequantise_raw(
        &self,
        stream: sys::CUstream,
        quant: &Quantisation,
        input: &RawQuantised,
        output: &RawMatrix,
        options: LaunchOptions,
    ) -> Result<()> {
        let kernels = &self.dequantise[place("output", output.dtype)?];
        check_numbers("output", quant, output, input)?;
        let params = QuantParams::new(quant, output, input)?;
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernels, params, output, options) }
    }

    unsafe fn launch(
        &self,
        stream: sys::CUstream,
        kernels: &Accesses,
        params: QuantParams,
        numbers: &RawMatrix,
        options: LaunchOptions,
    ) -> Result<()> {
        let (dtype, rows) = (numbers.dtype, numbers.layout.rows);
        if rows == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().doing("bind the context")?;
        let kernel = kernels.0[usize::from(params.takes_vectors(dtype, rows))];
        params.launches(dtype, rows, |params| {
            let grid = options.grid(params.threads, self.overlaps)?;
            // SAFETY: by the callers' contracts; the checks keep the launch inside of the layouts.
            unsafe { kernel.launch(stream, grid, params) }
        })
    }
}

/// Checks a matrix of numbers and one of codes against each other.
fn check_numbers(
    argument: &'static str,
    quant: &Quantisation,
    numbers: &RawMatrix,
    quantised: &RawQuantised,
) -> Result<()> {
    let layout = &numbers.layout;
    if layout.cols == 0 {
        return Err(CoreError::argument(argument, "at least one column", 0).into());
    }
    layout.end(argument)?;
    check_aligned(argument, numbers)?;
    let (rows, d) = (layout.rows, layout.cols);
    quantised.check(quant, ActShape { rows, d })
}
