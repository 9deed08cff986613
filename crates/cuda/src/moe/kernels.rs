//! The kernels of a layer of routed experts.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::{
    plan::{ExpertsKernel, ExpertsPlan, FORMATS, Half},
    route::{TOGETHER_LOGITS, together_shared},
};
use crate::{
    error::Result,
    launch::driver::{Capability, Fatbins, Function, Module, fatbins},
    weight::stack::ExpertFormat,
};

static ROUTE: Fatbins = fatbins!("route");
static EXPERTS: Fatbins = fatbins!("experts");
static PACKED: Fatbins = fatbins!("experts_packed");
static TILES: Fatbins = fatbins!("experts_tiles");
static WARPGROUPS: Fatbins = fatbins!("experts_warpgroups");
static ROWS: Fatbins = fatbins!("rows");

/// Both halves' kernels.
type Halves = [Function; Half::ALL.len()];

/// The kernels, loaded into a context.
pub(super) struct MoeKernels {
    pub(super) logits: Function,
    pub(super) choose: Function,
    pub(super) sort: Function,
    pub(super) choose_and_sort: Function,
    /// By [`FORMATS`]' and [`ExpertsKernel::of_format`]'s order; none of packed experts where the device is not Hopper.
    of_formats: [Vec<Halves>; FORMATS.len()],
    any: Halves,
    pub(super) pack: Option<Function>,
    pub(super) gather: Option<Function>,
    pub(super) widen: Function,
    pub(super) sum_vectors: Function,
    pub(super) sum_elements: Function,
    /// Whether the device lets a kernel start before the last one ends.
    pub(super) overlaps: bool,
    _modules: [Module; 6],
}

impl MoeKernels {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let [route, experts, packed, tiles, rows] =
            [ROUTE, EXPERTS, PACKED, TILES, ROWS].map(|fatbins| Module::load(context, &fatbins));
        let (route, experts, packed, tiles, rows) = (route?, experts?, packed?, tiles?, rows?);
        let warpgroups = Module::load(context, &WARPGROUPS)?;
        let capability = Capability::of(context)?;
        let halves = |kernel: ExpertsKernel, format: ExpertFormat| -> Result<Halves> {
            let module = match (kernel, format) {
                (ExpertsKernel::Any, _) => &experts,
                (ExpertsKernel::Warpgroups, _) => &warpgroups,
                (_, ExpertFormat::PackedE2m1) => &packed,
                (ExpertsKernel::Tiles, _) => &tiles,
                _ => &experts,
            };
            let [gated, down] = Half::ALL.map(|half| -> Result<_> {
                let function = module.function(&kernel.name(half, format))?;
                function.allow_shared(kernel.shared(format, kernel.most_experts()))?;
                Ok(function)
            });
            Ok([gated?, down?])
        };
        let of_format = |format| -> Result<Vec<Halves>> {
            let is_there = format != ExpertFormat::PackedE2m1 || capability.is_hopper();
            let kernels = ExpertsKernel::of_format(format).iter();
            let kernels = kernels.filter(|_| is_there);
            kernels.map(|kernel| halves(*kernel, format)).collect()
        };
        let [a, b, c, d] = FORMATS.map(of_format);
        let choose_and_sort = route.function("route_choose_and_sort")?;
        choose_and_sort.allow_shared(together_shared(TOGETHER_LOGITS))?;
        Ok(Self {
            logits: route.function("route_logits")?,
            choose: route.function("route_choose")?,
            sort: route.function("route_sort")?,
            choose_and_sort,
            of_formats: [a?, b?, c?, d?],
            any: halves(ExpertsKernel::Any, ExpertFormat::F32)?,
            widen: rows.function("moe_widen")?,
            sum_vectors: rows.function("moe_sum_vectors")?,
            sum_elements: rows.function("moe_sum_elements")?,
            overlaps: capability.overlaps_launches(),
            pack: match capability.is_hopper() {
                true => Some(packed.function("pack_e2m1")?),
                false => None,
            },
            gather: match capability.is_hopper() {
                true => Some(warpgroups.function("experts_gather")?),
                false => None,
            },
            _modules: [route, experts, packed, tiles, warpgroups, rows],
        })
    }

    /// The kernel of a plan.
    pub(super) fn experts(&self, plan: &ExpertsPlan) -> Function {
        let format = FORMATS.iter().position(|f| *f == plan.format);
        let kernels = ExpertsKernel::of_format(plan.format).iter();
        let kernel = kernels.into_iter().position(|k| *k == plan.kernel);
        let of_format = format.map(|format| &self.of_formats[format]);
        let halves = of_format
            .zip(kernel)
            .and_then(|(of, kernel)| of.get(kernel));
        // Plans name no others.
        halves.unwrap_or(&self.any)[plan.half as usize]
    }
}
