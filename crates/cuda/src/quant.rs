//! Quantization to FP8 and back.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{
    ActShape, DType, Error as CoreError, GatedActivation, Quantization, Rounding, ScaleFormat,
};

use crate::{
    Batches, LaunchOptions, RawMatrix, RawQuantized, Result,
    activation::unsupported,
    driver::{Function, Module},
    error::Doing,
    params::{Divisor, QuantParams},
    plan,
    quant_plan::check_aligned,
    select::{self, SHAPES, TYPES},
};

static FATBIN: &[u8] = include_bytes!("../fatbin/quantize.fatbin");
static FUSED: &[u8] = include_bytes!("../fatbin/act_quant.fatbin");

/// A fused activation and quantization over bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawQuantCall {
    /// \[T, 2d\].
    pub input: RawMatrix,
    /// \[T, d\].
    pub output: RawQuantized,
    /// Address of an f32 for each row, that multiplies it before it is rounded.
    pub route: Option<u64>,
    /// Whether only some rows of each batch are in use.
    pub batches: Option<Batches>,
    /// Address of three u32 that the call adds to: see [`swiglu_core::QuantOptions::hits`].
    pub hits: Option<u64>,
}

impl RawQuantCall {
    fn check(&self, op: &GatedActivation, quant: &Quantization) -> Result<ActShape> {
        let shape = ActShape::of_input(self.input.dtype, &self.input.layout)?;
        check_aligned("input", &self.input)?;
        self.output.check(quant, shape)?;
        if op.rounding() == Rounding::Eager {
            if !quant.materialize() {
                let expected = "true in eager rounding, whose result is rounded";
                return Err(CoreError::argument("materialize", expected, false).into());
            }
            if self.route.is_some() {
                let expected = "none in eager rounding, which does not define its place";
                return Err(CoreError::argument("route", expected, "a route weight").into());
            }
        }
        if let Some(batches) = &self.batches {
            batches.check(shape.rows)?;
        }
        let counts = self.batches.map(|b| b.counts);
        for (argument, address) in [
            ("route", self.route),
            ("counts", counts),
            ("hits", self.hits),
        ] {
            if let Some(address) = address.filter(|a| !a.is_multiple_of(4)) {
                let got = format!("{address:#x}");
                let expected = "an address aligned to 4 bytes";
                return Err(CoreError::argument(argument, expected, got).into());
            }
        }
        Ok(shape)
    }
}

/// A kernel, with the elements that a thread of it takes, and the threads of its blocks.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    function: Function,
    elements: usize,
    threads: u32,
}

/// A kernel in its two accesses: single elements, and 16-byte vectors.
#[derive(Clone, Copy, Debug)]
struct Accesses([Function; 2]);

impl Accesses {
    fn load(module: &Module, name: &str) -> Result<Self> {
        let element = module.function(&format!("{name}_element"))?;
        let vectors = module.function(&format!("{name}_vectors"))?;
        Ok(Self([element, vectors]))
    }

    fn kernel(&self, vectors: bool, count: u64) -> Kernel {
        Kernel {
            function: self.0[usize::from(vectors)],
            elements: if vectors { 8 } else { 4 },
            threads: if count < 1 << 20 { 128 } else { 256 },
        }
    }
}

/// Kernels for one format of scales, of 4, 8 and 16 elements a thread.
#[derive(Clone, Copy, Debug)]
struct Quick([Function; 3]);

impl Quick {
    fn load(module: &Module, name: &str, format: ScaleFormat) -> Result<Self> {
        let one = |elements| module.function(&format!("{name}_{elements}_{format}"));
        Ok(Self([one(4)?, one(8)?, one(16)?]))
    }

    /// The fastest for so many outputs, on an H200. Small calls wait for one thread's work; in
    /// large ones addresses and scales cost less if a thread has more. In between it is a
    /// matter of how many threads fit beside those of the next call.
    fn kernel(&self, count: u64) -> Kernel {
        let (which, threads) = match count {
            0..0x4000 => (0, 128),
            0x4000..0x2_0000 => (0, 256),
            0x2_0000..0x4_0000 => (1, 256),
            0x4_0000..0x12_0000 => (0, 256),
            0x12_0000..0x60_0000 => (1, 512),
            _ => (2, 256),
        };
        Kernel {
            function: self.0[which],
            elements: 4 << which,
            threads,
        }
    }
}

/// The kernels of an activation: those without hits, where there is a clamp those with, and for
/// some those for calls without options, by the format of the scales.
#[derive(Clone, Copy, Debug)]
struct Fused {
    plain: Accesses,
    hits: Option<Accesses>,
    quick: Option<[Quick; 2]>,
}

impl Fused {
    fn load(module: &Module, shape: usize, typed: usize) -> Result<Self> {
        let (name, clamped) = select::quant_name(shape, typed);
        let plain = Accesses::load(module, &name)?;
        let hits = if clamped {
            let vectors = module.function(&format!("{name}_vectors_hits"))?;
            Some(Accesses([plain.0[0], vectors]))
        } else {
            None
        };
        let quick = if shape < select::QUICK {
            let of = |format| Quick::load(module, &name, format);
            Some([of(ScaleFormat::Ue8m0)?, of(ScaleFormat::F32)?])
        } else {
            None
        };
        Ok(Self { plain, hits, quick })
    }

    fn kernel(&self, quant: &Quantization, call: &RawQuantCall, vectors: bool) -> Kernel {
        let count = (call.input.layout.rows * call.output.codes_layout.cols) as u64;
        // Without a clamp nothing is hit.
        if let Some(counting) = self.hits.filter(|_| call.hits.is_some()) {
            return Kernel {
                threads: COUNTING_THREADS,
                ..counting.kernel(vectors, count)
            };
        }
        let plain = call.route.is_none() && call.batches.is_none() && quant.materialize();
        match self.quick {
            Some(quick) if plain && vectors => {
                quick[usize::from(quant.format() == ScaleFormat::F32)].kernel(count)
            }
            _ => self.plain.kernel(vectors, count),
        }
    }
}

/// Threads of a block that counts: a block adds to the counters once.
const COUNTING_THREADS: u32 = 512;

/// The kernels that quantize, loaded into a context.
#[derive(Debug)]
pub struct Quantizers {
    context: Arc<CudaContext>,
    /// By [`DType::COMPUTE`]'s order.
    quantize: Vec<Accesses>,
    dequantize: Vec<Accesses>,
    columns: Function,
    /// By [`SHAPES`] and then [`TYPES`].
    fused: Vec<Fused>,
    overlaps: bool,
    _modules: [Module; 2],
}

/// The place of a type in [`DType::COMPUTE`].
fn place(argument: &'static str, dtype: DType) -> Result<usize> {
    let place = DType::COMPUTE.iter().position(|d| *d == dtype);
    place.ok_or_else(|| CoreError::argument(argument, "f32, f16 or bf16", dtype).into())
}

impl Quantizers {
    /// Loads the kernels. This allocates; nothing after it does.
    ///
    /// # Errors
    /// A device older than the kernels, or a failure of the driver.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let (major, _) = context.compute_capability().doing("ask for the device")?;
        let module = Module::load(context, FATBIN)?;
        let fused = Module::load(context, FUSED)?;
        let of_types = |name: &str| -> Result<Vec<Accesses>> {
            let of_type = |t: DType| Accesses::load(&module, &format!("{name}_{t}"));
            DType::COMPUTE.into_iter().map(of_type).collect()
        };
        Ok(Self {
            context: context.clone(),
            quantize: of_types("quantize")?,
            dequantize: of_types("dequantize")?,
            columns: module.function("scales_to_f32_columns")?,
            fused: (0..SHAPES.len() * TYPES.len())
                .map(|i| Fused::load(&fused, i / TYPES.len(), i % TYPES.len()))
                .collect::<Result<_>>()?,
            overlaps: major >= 9,
            _modules: [module, fused],
        })
    }

    /// Enqueues `output = quant(op(input))` in one pass over bare memory on a bare stream.
    ///
    /// # Safety
    /// As [`crate::Activations::act_and_mul_raw`], for all the addresses of the call.
    ///
    /// # Errors
    /// As [`ActShape::of_input`] and [`Self::quantize_raw`]; a route weight or `materialize` =
    /// false with [`Rounding::Eager`]; an activation that no kernel was compiled for.
    pub unsafe fn act_and_mul_quant_raw(
        &self,
        stream: sys::CUstream,
        op: &GatedActivation,
        quant: &Quantization,
        call: &RawQuantCall,
        options: LaunchOptions,
    ) -> Result<()> {
        let shape = call.check(op, quant)?;
        let dtype = call.input.dtype;
        let found = select::shape(op).zip(select::typed(dtype, op.rounding()));
        let Some((form, typed)) = found else {
            return Err(unsupported(op, dtype));
        };
        let half = (shape.d * dtype.size()) as u64;
        let (gate, up) = plan::halves(op, call.input.first(), half);
        let batch_rows = call.batches.map_or(1, |b| b.rows) as u32;
        let params = QuantParams {
            gate,
            up,
            route: call.route.unwrap_or(0),
            counts: call.batches.map_or(0, |b| b.counts),
            hits: call.hits.unwrap_or(0),
            batch_rows,
            by_batch: Divisor::new(batch_rows),
            scalars: select::scalars(op),
            ..QuantParams::new(quant, &call.input, &call.output)?
        };
        let vectors = params.takes_vectors(dtype, shape.rows);
        let kernel = self.fused[form * TYPES.len() + typed].kernel(quant, call, vectors);
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernel, quant, params, &call.input, options) }
    }

    /// Enqueues `output = quant(input)` over bare memory on a bare stream: both \[T, d\].
    ///
    /// # Safety
    /// As [`crate::Activations::act_and_mul_raw`].
    ///
    /// # Errors
    /// A matrix whose type, shape, strides or alignment do not fit, or a failure of the driver.
    pub unsafe fn quantize_raw(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        input: &RawMatrix,
        output: &RawQuantized,
        options: LaunchOptions,
    ) -> Result<()> {
        let kernels = &self.quantize[place("input", input.dtype)?];
        check_numbers("input", quant, input, output)?;
        let params = QuantParams::new(quant, input, output)?;
        let (rows, d) = (input.layout.rows, input.layout.cols);
        let vectors = params.takes_vectors(input.dtype, rows);
        let kernel = kernels.kernel(vectors, (rows * d) as u64);
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernel, quant, params, input, options) }
    }

    /// Enqueues `output = code · scale`, rounded once, over bare memory on a bare stream.
    ///
    /// # Safety
    /// As [`crate::Activations::act_and_mul_raw`].
    ///
    /// # Errors
    /// As [`Self::quantize_raw`].
    pub unsafe fn dequantize_raw(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        input: &RawQuantized,
        output: &RawMatrix,
        options: LaunchOptions,
    ) -> Result<()> {
        let kernels = &self.dequantize[place("output", output.dtype)?];
        check_numbers("output", quant, output, input)?;
        let params = QuantParams::new(quant, output, input)?;
        let (rows, d) = (output.layout.rows, output.layout.cols);
        let vectors = params.takes_vectors(output.dtype, rows);
        let kernel = kernels.kernel(vectors, (rows * d) as u64);
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernel, quant, params, output, options) }
    }

    /// Enqueues the scales as f32s in columns without gaps, to the start of `to`; false where they
    /// are too many for one launch.
    ///
    /// # Safety
    /// As [`Self::quantize_raw`]; there is room for a scale of 4 bytes for each group.
    pub(crate) unsafe fn scales_to_columns(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        from: &RawQuantized,
        to: &RawMatrix,
    ) -> Result<bool> {
        let (rows, groups) = (from.scales_layout.rows, from.scales_layout.groups);
        let count = (rows as u64).saturating_mul(groups as u64);
        if count == 0 || count > plan::MOST {
            return Ok(false);
        }
        let params = QuantParams {
            threads: count as u32,
            row_threads: rows as u32,
            by_row: Divisor::new(rows as u32),
            ..QuantParams::new(quant, to, from)?
        };
        self.context.bind_to_thread().doing("bind the context")?;
        let grid = LaunchOptions::default().grid(params.threads, self.overlaps)?;
        // SAFETY: by this function's contract.
        unsafe { self.columns.launch(stream, grid, &params) }?;
        Ok(true)
    }

    unsafe fn launch(
        &self,
        stream: sys::CUstream,
        kernel: Kernel,
        quant: &Quantization,
        params: QuantParams,
        numbers: &RawMatrix,
        options: LaunchOptions,
    ) -> Result<()> {
        let (dtype, rows) = (numbers.dtype, numbers.layout.rows);
        if rows == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().doing("bind the context")?;
        let options = LaunchOptions {
            threads: options.threads.or(Some(kernel.threads)),
            ..options
        };
        let params = params.with_elements(quant, kernel.elements);
        params.launches(dtype, rows, |params| {
            let grid = options.grid(params.threads, self.overlaps)?;
            // SAFETY: by the callers' contracts; the checks keep the launch inside of the layouts.
            unsafe { kernel.function.launch(stream, grid, params) }
        })
    }
}

/// Checks a matrix of numbers and one of codes against each other.
fn check_numbers(
    argument: &'static str,
    quant: &Quantization,
    numbers: &RawMatrix,
    quantized: &RawQuantized,
) -> Result<()> {
    let layout = &numbers.layout;
    if layout.cols == 0 {
        return Err(CoreError::argument(argument, "at least one column", 0).into());
    }
    layout.end(argument)?;
    check_aligned(argument, numbers)?;
    let (rows, d) = (layout.rows, layout.cols);
    quantized.check(quant, ActShape { rows, d })
}
