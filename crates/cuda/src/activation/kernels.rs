//! The activation's kernels, loaded.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{
    Error as CoreError, Float, GatedActivation, Rounding, RowLayout, Shape, Support,
};

use super::{
    call::{RawActCall, RawGateUp},
    family::{Form, Forms},
    plan::{Access, ActPlan, ActProblem, HalfPlaces, RowPlace},
};
use crate::{
    error::{Doing, Error, PLATFORM, Result},
    launch::{
        driver::{Capability, Fatbins, Function, Module, fatbins},
        options::LaunchOptions,
        params::Scalars,
    },
    view::RawMatrix,
};

static FATBINS: Fatbins = fatbins!("activation");

/// A type with a rounding mode, where the modes differ: f32 rounds to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounded {
    F32,
    F16Official,
    F16Eager,
    Bf16Official,
    Bf16Eager,
}

impl Rounded {
    pub(crate) const ALL: [Self; 5] = [
        Self::F32,
        Self::F16Official,
        Self::F16Eager,
        Self::Bf16Official,
        Self::Bf16Eager,
    ];

    pub(crate) const fn of(float: Float, rounding: Rounding) -> Self {
        match (float, rounding) {
            (Float::F32, _) => Self::F32,
            (Float::F16, Rounding::Official) => Self::F16Official,
            (Float::F16, Rounding::Eager) => Self::F16Eager,
            (Float::BF16, Rounding::Official) => Self::Bf16Official,
            (Float::BF16, Rounding::Eager) => Self::Bf16Eager,
        }
    }

    /// The name in the names of kernels.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32_official",
            Self::F16Official => "f16_official",
            Self::F16Eager => "f16_eager",
            Self::Bf16Official => "bf16_official",
            Self::Bf16Eager => "bf16_eager",
        }
    }

    const fn is_official(self) -> bool {
        matches!(self, Self::F32 | Self::F16Official | Self::Bf16Official)
    }
}

/// The numbers of an activation.
pub(crate) const fn scalars(op: &GatedActivation) -> Scalars {
    let limit = match op.limit() {
        None => 0.0,
        Some(limit) => limit.get(),
    };
    let [a, b] = op.function().scalars();
    // Adding -0 changes no value, adding +0 takes -0 to +0.
    let up_offset = if op.up_offset() == 0.0 {
        -0.0
    } else {
        op.up_offset()
    };
    Scalars {
        limit,
        up_offset,
        a,
        b,
    }
}

const NO_KERNEL: &str = "no kernel was compiled for this form";

/// The error of an activation that is not among the forms.
pub(crate) fn unsupported(op: &GatedActivation) -> Error {
    Error::Call(CoreError::unsupported(PLATFORM, op, NO_KERNEL))
}

/// The list that the fatbins were compiled by.
const INSTANCES: &str = include_str!("../../kernels/activation/instances.cuh");

/// The forms of the family that were compiled: all of them, unless core has grown since.
pub(crate) fn compiled_forms() -> Forms {
    let mut forms = Forms::of_family();
    let compiled = |form: &Form| INSTANCES.contains(&format!("FORM({},", form.name()));
    forms.0.retain(compiled);
    forms
}

/// Whether an activation runs, which it does in every type or in none.
pub(crate) fn support(forms: &Forms, op: &GatedActivation) -> Support {
    if forms.run(op) {
        return Support::Native;
    }
    Support::No(NO_KERNEL.to_owned())
}

/// The form of an input's halves.
pub(crate) fn form_of(op: &GatedActivation, input: &RawGateUp) -> Option<Form> {
    match input {
        RawGateUp::Merged(_) => Form::merged(op),
        RawGateUp::Split { .. } => Form::split(op),
    }
}

/// The kernel's name; `None` where there is no such instance.
fn name(form: &Form, rounded: Rounded, access: Access) -> Option<String> {
    if access == Access::Bytes32 && !(form.is_tuned() && rounded.is_official()) {
        return None;
    }
    let (form, rounded, access) = (form.name(), rounded.name(), access.name());
    Some(format!("act_{form}_{rounded}_{access}"))
}

/// Kernels of one form and type, by access.
type Accesses = [Option<Function>; Access::ALL.len()];

/// The activation's kernels, loaded into a context.
#[derive(Debug)]
pub struct Activations {
    context: Arc<CudaContext>,
    forms: Forms,
    /// By form and type.
    kernels: Vec<[Accesses; Rounded::ALL.len()]>,
    copy: Function,
    capability: Capability,
    _module: Module,
}

impl Activations {
    /// Loads the kernels. This allocates; nothing after it does.
    ///
    /// # Errors
    /// A device older than the kernels, or a failure of the driver.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let capability = Capability::of(context)?;
        let module = Module::load(context, &FATBINS)?;
        let forms = compiled_forms();
        let widths = Access::of_whole_vectors(capability.has_32_byte_accesses());
        let load = |form: &Form| -> Result<_> {
            let mut kernels = [Accesses::default(); Rounded::ALL.len()];
            for (of_type, rounded) in kernels.iter_mut().zip(Rounded::ALL) {
                for (kernel, access) in of_type.iter_mut().zip(Access::ALL) {
                    let there = access == Access::Any || widths.contains(&access);
                    let name = name(form, rounded, access).filter(|_| there);
                    *kernel = name.map(|n| module.function(&n)).transpose()?;
                }
            }
            Ok(kernels)
        };
        Ok(Self {
            context: context.clone(),
            kernels: forms.0.iter().map(load).collect::<Result<_>>()?,
            forms,
            copy: module.function("copy_16bytes")?,
            capability,
            _module: module,
        })
    }

    /// The context that the kernels were loaded into.
    pub const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Whether this activation runs. It does in every type or in none.
    pub fn supports(&self, op: &GatedActivation) -> Support {
        support(&self.forms, op)
    }

    /// The kernels of a form and type, with the widest accesses that they have.
    fn kernels(
        &self,
        op: &GatedActivation,
        form: Option<Form>,
        float: Float,
    ) -> Option<(&Accesses, &'static [Access])> {
        let of_form = &self.kernels[self.forms.place(form)?];
        let kernels = &of_form[Rounded::of(float, op.rounding()) as usize];
        let wide = kernels[Access::Bytes32 as usize].is_some();
        Some((kernels, Access::of_whole_vectors(wide)))
    }

    /// Enqueues the activation over bare memory on a bare stream.
    ///
    /// # Safety
    /// The stream belongs to this context (null is its default stream). The addresses are of
    /// device memory that holds the layouts and the counts, stays allocated until the stream has
    /// run the call, and that nothing else writes meanwhile (nor reads, the output's). Input and
    /// output do not overlap.
    ///
    /// # Errors
    /// Shapes, types or strides that do not fit, an address that is not aligned to its elements,
    /// or a failure of the driver.
    pub unsafe fn act_and_mul_raw(
        &self,
        stream: sys::CUstream,
        op: &GatedActivation,
        call: &RawActCall,
        options: LaunchOptions,
    ) -> Result<()> {
        call.check()?;
        // SAFETY: by this function's contract.
        unsafe { self.enqueue(stream, op, call, options) }
    }

    /// As [`Self::act_and_mul_raw`], of a call whose shapes, types and strides have been checked.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn enqueue(
        &self,
        stream: sys::CUstream,
        op: &GatedActivation,
        call: &RawActCall,
        options: LaunchOptions,
    ) -> Result<()> {
        call.check_places()?;
        let problem = call.problem(op);
        let form = form_of(op, &call.input);
        let found = self.kernels(op, form, problem.float);
        let (kernels, widths) = found.ok_or_else(|| unsupported(op))?;
        let plan = ActPlan::new(&problem, widths);
        let kernel = kernels[plan.access as usize].ok_or_else(|| unsupported(op))?;
        self.context.bind_to_thread().doing("bind the context")?;
        let batches = call.batches.map_or((0, 1), |b| (b.counts, b.rows as u32));
        for piece in plan.pieces() {
            let params = piece.params(&problem, batches, scalars(op));
            let options = options.or_threads(plan.threads(params.vectors));
            let grid = options.grid(params.vectors, self.capability.overlaps_launches())?;
            // SAFETY: by this function's contract, and the plan stays inside of the layouts.
            unsafe { kernel.launch(stream, grid, &params) }?;
        }
        Ok(())
    }

    /// The kernel and the plan of a call of this shape on rows without gaps, on one line.
    pub(crate) fn describe(
        &self,
        op: &GatedActivation,
        float: Float,
        shape: &Shape,
        options: LaunchOptions,
    ) -> Option<String> {
        let form = Form::merged(op)?;
        let (_, widths) = self.kernels(op, Some(form), float)?;
        let row = shape.cols.checked_mul(2)?;
        RowLayout::contiguous(shape.rows, row).end("input").ok()?;
        let (rows, d) = (shape.rows as u64, shape.cols as u64);
        let place = |stride| RowPlace { first: 0, stride };
        let half = d * float.size() as u64;
        let problem = ActProblem {
            float,
            rows,
            d,
            halves: HalfPlaces::merged(op, place(2 * d), half),
            output: place(d),
        };
        let plan = ActPlan::new(&problem, widths);
        let name = name(&form, Rounded::of(float, op.rounding()), plan.access)?;
        let vectors = plan.pieces().next()?.vectors();
        let block = options.or_threads(plan.threads(vectors)).block(vectors);
        Some(format!("{name}: {plan}, blocks of {block} threads"))
    }

    /// Enqueues the limit that the activation is measured against: a kernel of the same shape
    /// that reads and writes as many bytes, in 16-byte vectors, of `outputs` bytes of output.
    ///
    /// # Safety
    /// As [`Self::act_and_mul_raw`], with 2·`outputs` bytes at `input` and `outputs`, a multiple
    /// of 16, at `output`, each aligned to 16 bytes.
    ///
    /// # Errors
    /// A failure of the driver.
    #[doc(hidden)]
    pub unsafe fn copy_raw(
        &self,
        stream: sys::CUstream,
        input: u64,
        output: u64,
        outputs: usize,
        options: LaunchOptions,
    ) -> Result<()> {
        let op = GatedActivation::silu_and_mul();
        let row = |address, cols| RawMatrix {
            address,
            float: Float::F32,
            layout: RowLayout::contiguous(1, cols),
        };
        let call = RawActCall {
            input: RawGateUp::Merged(row(input, outputs / 2)),
            output: row(output, outputs / 4),
            batches: None,
        };
        let problem = call.problem(&op);
        let plan = ActPlan::new(&problem, &[Access::Bytes16]);
        self.context.bind_to_thread().doing("bind the context")?;
        for piece in plan.pieces() {
            let params = piece.params(&problem, (0, 1), scalars(&op));
            let grid = options.grid(params.vectors, self.capability.overlaps_launches())?;
            // SAFETY: by this function's contract.
            unsafe { self.copy.launch(stream, grid, &params) }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::instances;
    use super::*;

    #[test]
    fn every_activation_has_a_form_and_the_generated_list_is_of_these() {
        let wanted = instances::text(&Forms::of_family().0);
        assert_eq!(INSTANCES, wanted, "run `cargo xtask kernels`");
        let forms = compiled_forms();
        assert_eq!(forms.0, Forms::of_family().0);
        for op in GatedActivation::ALL {
            assert_eq!(support(&forms, &op), Support::Native, "{op}");
        }
        // One that was not compiled is refused with the reason.
        let mut fewer = forms;
        fewer.0.retain(|form| form.function != "gelu");
        let gelu = GatedActivation::gelu_and_mul();
        assert_eq!(support(&fewer, &gelu), Support::No(NO_KERNEL.to_owned()));
    }

    #[test]
    fn every_function_of_the_family_is_written_in_its_file() {
        let functions = include_str!("../../kernels/activation/functions.cuh");
        for form in Forms::of_family().0 {
            let name = instances::camel_case(form.function);
            assert!(functions.contains(&format!("struct {name} ")), "{name}");
        }
    }

    #[test]
    fn the_form_with_a_slope_serves_every_slope_and_offset() {
        let forms = Forms::of_family();
        let name = |op: &GatedActivation| {
            let place = forms.place(Form::merged(op)).unwrap();
            forms.0[place].name()
        };
        let with_offset = GatedActivation::silu_and_mul_with_clamp(1.0, 1.0, 0.5).unwrap();
        assert_eq!(name(&with_offset), "silu_alpha_before_concatenated");
        let slope_1 = GatedActivation::swigluoai_and_mul(7.0, 1.0).unwrap();
        assert_eq!(name(&slope_1), "silu_alpha_before_interleaved");
        let quick = GatedActivation::gelu_quick_and_mul();
        assert_eq!(name(&quick), "silu_alpha_none_concatenated");
        let unbounded = GatedActivation::situ_and_mul(4.0, None).unwrap();
        assert_eq!(name(&unbounded), "situ_none_concatenated");
    }

    #[test]
    fn halves_in_two_matrices_have_no_interleaving() {
        let op = GatedActivation::gpt_oss();
        let split = Form::split(&op).unwrap().name();
        assert_eq!(split, "silu_alpha_before_concatenated");
        assert_eq!(
            Form::merged(&op).unwrap().name(),
            "silu_alpha_before_interleaved"
        );
    }

    #[test]
    fn only_tuned_forms_have_32_byte_accesses() {
        let wide = |op, rounded| {
            let form = Form::merged(&op).unwrap();
            name(&form, rounded, Access::Bytes32)
        };
        let v4 = GatedActivation::deepseek_v4();
        assert_eq!(
            wide(v4, Rounded::Bf16Official).unwrap(),
            "act_silu_before_concatenated_bf16_official_32bytes"
        );
        assert_eq!(wide(v4, Rounded::Bf16Eager), None);
        assert_eq!(wide(GatedActivation::step_3_5(), Rounded::F32), None);
    }

    #[test]
    fn an_offset_of_zero_changes_no_sign() {
        let plain = scalars(&GatedActivation::deepseek_v4());
        assert_eq!((plain.limit, plain.a), (10.0, 1.0));
        assert_eq!(plain.up_offset.to_bits(), (-0.0_f32).to_bits());
        assert_eq!(scalars(&GatedActivation::gpt_oss()).up_offset, 1.0);
        let kimi = scalars(&GatedActivation::kimi_k3());
        assert_eq!((kimi.a, kimi.b), (4.0, 25.0));
    }
}
