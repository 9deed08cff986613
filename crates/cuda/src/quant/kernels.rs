//! The kernels that quantize, loaded.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{
    Float, GatedActivation, Quantization, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Shape,
    Support,
};

use super::{
    call::{RawQuantCall, RawQuantized, check_numbers},
    plan::{FusedCall, KnownElements, MOST_THREADS, QuantKernel, QuantPlan},
};
use crate::{
    activation::{
        Form, Forms, LAUNCH_THREADS, RawGateUp, Rounded, compiled_forms, form_of, scalars, support,
        unsupported,
    },
    error::{Doing, Result},
    launch::{
        driver::{Capability, Fatbins, Function, Module, fatbins},
        options::LaunchOptions,
        params::{Divisor, QuantParams},
    },
    view::RawMatrix,
};

static FATBINS: Fatbins = fatbins!("quantize");
static FUSED: Fatbins = fatbins!("act_quant");

/// Kernels of one format of scales, by [`KnownElements`].
type Known = [Function; KnownElements::ALL.len()];

/// The kernels of an activation in a type, or of a type alone.
#[derive(Clone, Copy, Debug)]
struct QuantKernels {
    element: Function,
    vectors: Function,
    /// Of a quantization of 16 bits.
    many: Option<Function>,
    /// Of tuned forms, by the format of the scales.
    known: Option<[Known; ScaleFormat::ALL.len()]>,
}

impl QuantKernels {
    /// Those of a type.
    fn load(module: &Module, name: &str) -> Result<Self> {
        Ok(Self {
            element: module.function(&format!("{name}_element"))?,
            vectors: module.function(&format!("{name}_vectors"))?,
            many: None,
            known: None,
        })
    }

    /// Those of an activation in a type.
    fn load_fused(module: &Module, form: &Form, rounded: Rounded) -> Result<Self> {
        let name = format!("quant_{}_{}", form.name(), rounded.name());
        let mut kernels = Self::load(module, &name)?;
        if form.is_tuned() {
            let mut known = [[kernels.vectors; KnownElements::ALL.len()]; ScaleFormat::ALL.len()];
            for (of_format, format) in known.iter_mut().zip(ScaleFormat::ALL) {
                for (kernel, elements) in of_format.iter_mut().zip(KnownElements::ALL) {
                    let elements = elements.name();
                    *kernel = module.function(&format!("{name}_{elements}_{format}"))?;
                }
            }
            kernels.known = Some(known);
        }
        Ok(kernels)
    }

    /// The plan for so many numbers without an activation.
    fn plan_of_numbers(&self, quant: &Quantization, vectors: bool, count: u64) -> QuantPlan {
        match self.many {
            Some(_) => QuantPlan::of_halves(vectors, quant.group(), count),
            None => QuantPlan::of_numbers(vectors, count),
        }
    }

    /// What the plan of a call depends on.
    fn call(&self, op: &GatedActivation, quant: &Quantization, call: &RawQuantCall) -> FusedCall {
        FusedCall {
            tuned: self.known.is_some(),
            counts: op.limit().is_some() && call.hits.is_some(),
            has_options: call.route.is_some() || call.batches.is_some() || !quant.materialize(),
            halves: call.input.float().size() == 2,
            powers: quant.format() == ScaleFormat::E8M0,
        }
    }

    /// The kernel of a plan that was made for these; none where there is no such kernel.
    fn kernel(&self, kernel: QuantKernel, format: ScaleFormat) -> Option<Function> {
        match kernel {
            QuantKernel::Element => Some(self.element),
            QuantKernel::Vectors => Some(self.vectors),
            QuantKernel::Many => self.many,
            QuantKernel::Known(elements) => {
                self.known.map(|k| k[format as usize][elements as usize])
            }
        }
    }
}

/// The kernels that quantize, loaded into a context.
#[derive(Debug)]
pub struct Quantizers {
    context: Arc<CudaContext>,
    forms: Forms,
    /// By [`Float::ALL`]'s order.
    quantize: Vec<QuantKernels>,
    dequantize: Vec<QuantKernels>,
    columns: Function,
    /// By form and type.
    fused: Vec<[QuantKernels; Rounded::ALL.len()]>,
    capability: Capability,
    _modules: [Module; 2],
}

impl Quantizers {
    /// Loads the kernels. This allocates; nothing after it does.
    ///
    /// # Errors
    /// A device older than the kernels, or a failure of the driver.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let capability = Capability::of(context)?;
        let module = Module::load(context, &FATBINS)?;
        let fused = Module::load(context, &FUSED)?;
        let of_types = |name: &str| -> Result<Vec<QuantKernels>> {
            let of_type = |t: Float| QuantKernels::load(&module, &format!("{name}_{t}"));
            Float::ALL.into_iter().map(of_type).collect()
        };
        let mut quantize = of_types("quantize")?;
        for float in [Float::F16, Float::BF16] {
            let name = format!("quantize_{float}_many");
            quantize[float as usize].many = Some(module.function(&name)?);
        }
        let forms = compiled_forms();
        let of_form = |form: &Form| -> Result<_> {
            let [a, b, c, d, e] = Rounded::ALL.map(|r| QuantKernels::load_fused(&fused, form, r));
            Ok([a?, b?, c?, d?, e?])
        };
        Ok(Self {
            context: context.clone(),
            quantize,
            dequantize: of_types("dequantize")?,
            columns: module.function("scales_to_f32_columns")?,
            fused: forms.0.iter().map(of_form).collect::<Result<_>>()?,
            forms,
            capability,
            _modules: [module, fused],
        })
    }

    /// Whether this activation runs fused with quantization. It does in every type or in none.
    pub fn supports(&self, op: &GatedActivation) -> Support {
        support(&self.forms, op)
    }

    /// Enqueues `output = quant(op(input))` in one pass over bare memory on a bare stream.
    ///
    /// # Safety
    /// As [`crate::Activations::act_and_mul_raw`], for all the addresses of the call.
    ///
    /// # Errors
    /// Shapes, types, strides or addresses that do not fit; a route weight or `materialize` =
    /// false with [`swiglu_core::Rounding::Eager`]; an activation that no kernel was compiled for;
    /// or a failure of the driver.
    pub unsafe fn act_and_mul_quant_raw(
        &self,
        stream: sys::CUstream,
        op: &GatedActivation,
        quant: &Quantization,
        call: &RawQuantCall,
        options: LaunchOptions,
    ) -> Result<()> {
        call.check(op, quant)?;
        // SAFETY: by this function's contract.
        unsafe { self.enqueue_fused(stream, op, quant, call, options) }
    }

    /// As [`Self::act_and_mul_quant_raw`], of a call whose shapes, types and strides have been
    /// checked.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn enqueue_fused(
        &self,
        stream: sys::CUstream,
        op: &GatedActivation,
        quant: &Quantization,
        call: &RawQuantCall,
        options: LaunchOptions,
    ) -> Result<()> {
        call.check_places()?;
        let float = call.input.float();
        let form = self.forms.place(form_of(op, &call.input));
        let of_form = &self.fused[form.ok_or_else(|| unsupported(op))?];
        let kernels = &of_form[Rounded::of(float, op.rounding()) as usize];
        let params = fused_params(op, quant, call);
        let (rows, d) = (call.output.codes_layout.rows, call.output.codes_layout.cols);
        let vectors = params.takes_vectors(float, rows);
        let plan = QuantPlan::fused(kernels.call(op, quant, call), vectors, (rows * d) as u64);
        let kernel = kernels.kernel(plan.kernel, quant.format());
        let kernel = kernel.ok_or_else(|| unsupported(op))?;
        let params = params.with_elements(quant, plan.elements());
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernel, plan, params, (float, rows), options) }
    }

    /// Enqueues `output = quant(input)` over bare memory on a bare stream: both \[T, d\].
    ///
    /// # Safety
    /// As [`crate::Activations::act_and_mul_raw`].
    ///
    /// # Errors
    /// A matrix whose shape, strides or alignment do not fit, or a failure of the driver.
    pub unsafe fn quantize_raw(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        input: &RawMatrix,
        output: &RawQuantized,
        options: LaunchOptions,
    ) -> Result<()> {
        check_numbers("input", quant, input, output)?;
        // SAFETY: by this function's contract.
        unsafe { self.enqueue_quantize(stream, quant, input, output, options) }
    }

    /// As [`Self::quantize_raw`], of matrices whose shapes and strides have been checked.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn enqueue_quantize(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        input: &RawMatrix,
        output: &RawQuantized,
        options: LaunchOptions,
    ) -> Result<()> {
        input.check_aligned("input")?;
        output.check_places()?;
        let kernels = &self.quantize[input.float as usize];
        // SAFETY: by this function's contract.
        unsafe { self.enqueue_numbers(stream, kernels, quant, (input, output), options) }
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
        check_numbers("output", quant, output, input)?;
        // SAFETY: by this function's contract.
        unsafe { self.enqueue_dequantize(stream, quant, input, output, options) }
    }

    /// As [`Self::dequantize_raw`], of matrices whose shapes and strides have been checked.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn enqueue_dequantize(
        &self,
        stream: sys::CUstream,
        quant: &Quantization,
        input: &RawQuantized,
        output: &RawMatrix,
        options: LaunchOptions,
    ) -> Result<()> {
        output.check_aligned("output")?;
        input.check_places()?;
        let kernels = &self.dequantize[output.float as usize];
        // SAFETY: by this function's contract.
        unsafe { self.enqueue_numbers(stream, kernels, quant, (output, input), options) }
    }

    /// Enqueues one of a type's kernels, one way or the other.
    unsafe fn enqueue_numbers(
        &self,
        stream: sys::CUstream,
        kernels: &QuantKernels,
        quant: &Quantization,
        (numbers, quantized): (&RawMatrix, &RawQuantized),
        options: LaunchOptions,
    ) -> Result<()> {
        let params = QuantParams::new(quant, numbers, quantized);
        let (rows, d) = (numbers.layout.rows, numbers.layout.cols);
        let vectors = params.takes_vectors(numbers.float, rows);
        let plan = kernels.plan_of_numbers(quant, vectors, (rows * d) as u64);
        let kernel = kernels.kernel(plan.kernel, quant.format());
        let kernel = kernel.unwrap_or(kernels.element);
        let params = params.with_elements(quant, plan.elements());
        let of = (numbers.float, rows);
        // SAFETY: by the callers' contracts.
        unsafe { self.launch(stream, kernel, plan, params, of, options) }
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
        if count == 0 || count > LAUNCH_THREADS {
            return Ok(false);
        }
        let params = QuantParams {
            threads: count as u32,
            row_threads: rows as u32,
            by_row: Divisor::new(rows as u32),
            ..QuantParams::new(quant, to, from)
        };
        self.context.bind_to_thread().doing("bind the context")?;
        let overlaps = self.capability.overlaps_launches();
        let grid = LaunchOptions::default().grid(params.threads, overlaps)?;
        // SAFETY: by this function's contract.
        unsafe { self.columns.launch(stream, grid, &params) }?;
        Ok(true)
    }

    unsafe fn launch(
        &self,
        stream: sys::CUstream,
        kernel: Function,
        plan: QuantPlan,
        params: QuantParams,
        (float, rows): (Float, usize),
        options: LaunchOptions,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().doing("bind the context")?;
        let options = options.or_threads(Some(plan.threads));
        let options = options.at_most(MOST_THREADS);
        for params in params.launches(float, rows) {
            let grid = options.grid(params.threads, self.capability.overlaps_launches())?;
            // SAFETY: by the callers' contracts; the checks keep the launch inside of the layouts.
            unsafe { kernel.launch(stream, grid, &params) }?;
        }
        Ok(())
    }

    /// The plan of a call of this shape on rows without gaps, on one line: of an activation, or of
    /// a matrix alone.
    pub(crate) fn describe(
        &self,
        op: Option<&GatedActivation>,
        quant: &Quantization,
        float: Float,
        shape: &Shape,
    ) -> Option<String> {
        let (rows, d) = (shape.rows, shape.cols);
        RowLayout::contiguous(rows, d.checked_mul(2)?)
            .end("input")
            .ok()?;
        let order = ScaleOrder::RowMajor;
        let output = RawQuantized {
            codes: 0,
            codes_layout: RowLayout::contiguous(rows, d),
            scales: 0,
            scales_layout: ScaleLayout::contiguous(quant.format(), order, rows, quant.groups(d)),
        };
        let matrix = |cols| RawMatrix {
            address: 0,
            float,
            layout: RowLayout::contiguous(rows, cols),
        };
        output.check_places().ok()?;
        let count = (rows * d) as u64;
        let Some(op) = op else {
            let params = QuantParams::new(quant, &matrix(d), &output);
            let vectors = params.takes_vectors(float, rows);
            let plan = self.quantize[float as usize].plan_of_numbers(quant, vectors, count);
            return Some(format!("quantize_{float}: {plan}"));
        };
        let call = RawQuantCall {
            input: RawGateUp::Merged(matrix(2 * d)),
            output,
            route: None,
            batches: None,
            hits: None,
        };
        let form = Form::merged(op);
        let kernels = &self.fused[self.forms.place(form)?];
        let rounded = Rounded::of(float, op.rounding());
        let facts = kernels[rounded as usize].call(op, quant, &call);
        let vectors = fused_params(op, quant, &call).takes_vectors(float, rows);
        let plan = QuantPlan::fused(facts, vectors, count);
        Some(format!("quant_{}_{}: {plan}", form?.name(), rounded.name()))
    }
}

/// All rows of an activation, one element a thread.
fn fused_params(op: &GatedActivation, quant: &Quantization, call: &RawQuantCall) -> QuantParams {
    let d = call.output.codes_layout.cols;
    let halves = call.input.halves(op, d);
    let batch_rows = call.batches.map_or(1, |b| b.rows) as u32;
    // Where the halves lie takes the place of the matrix's.
    let anywhere = RawMatrix {
        address: 0,
        float: call.input.float(),
        layout: RowLayout::contiguous(0, d),
    };
    QuantParams {
        gate: halves.gate.first,
        up: halves.up.first,
        gate_stride: halves.gate.stride,
        up_stride: halves.up.stride,
        route: call.route.unwrap_or(0),
        counts: call.batches.map_or(0, |b| b.counts),
        hits: call.hits.unwrap_or(0),
        batch_rows,
        by_batch: Divisor::new(batch_rows),
        scalars: scalars(op),
        ..QuantParams::new(quant, &anywhere, &call.output)
    }
}
