//! The kernels of a layer of routed experts.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::plan::{ExpertsKernel, ExpertsPlan, FORMATS, Half, MOST_EXPERTS};
use crate::{
    error::Result,
    launch::driver::{Capability, Fatbins, Function, Module, fatbins},
    weight::stack::ExpertFormat,
};

static ROUTE: Fatbins = fatbins!("route");
static EXPERTS: Fatbins = fatbins!("experts");
static TILES: Fatbins = fatbins!("experts_tiles");
static ROWS: Fatbins = fatbins!("rows");

/// Both halves' kernels.
type Halves = [Function; Half::ALL.len()];

/// The kernels, loaded into a context.
pub(super) struct MoeKernels {
    pub(super) logits: Function,
    pub(super) choose: Function,
    pub(super) sort: Function,
    pub(super) choose_and_sort: Function,
    /// By [`FORMATS`]' and [`ExpertsKernel::OF_FORMAT`]'s order.
    of_formats: [[Halves; ExpertsKernel::OF_FORMAT.len()]; FORMATS.len()],
    any: Halves,
    pub(super) widen: Function,
    pub(super) sum_vectors: Function,
    pub(super) sum_elements: Function,
    /// Whether the device lets a kernel start before the last one ends.
    pub(super) overlaps: bool,
    _modules: [Module; 4],
}

impl MoeKernels {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let [route, experts, tiles, rows] =
            [ROUTE, EXPERTS, TILES, ROWS].map(|fatbins| Module::load(context, &fatbins));
        let (route, experts, tiles, rows) = (route?, experts?, tiles?, rows?);
        let halves = |kernel: ExpertsKernel, format: ExpertFormat| -> Result<Halves> {
            let module = match kernel {
                ExpertsKernel::Tiles => &tiles,
                ExpertsKernel::Rows8 | ExpertsKernel::Rows32 | ExpertsKernel::Any => &experts,
            };
            let [gated, down] = Half::ALL.map(|half| -> Result<_> {
                let function = module.function(&kernel.name(half, format))?;
                function.allow_shared(kernel.shared(format, MOST_EXPERTS))?;
                Ok(function)
            });
            Ok([gated?, down?])
        };
        let of_format = |format| -> Result<_> {
            let [a, b, c] = ExpertsKernel::OF_FORMAT.map(|kernel| halves(kernel, format));
            Ok([a?, b?, c?])
        };
        let [a, b, c] = FORMATS.map(of_format);
        Ok(Self {
            logits: route.function("route_logits")?,
            choose: route.function("route_choose")?,
            sort: route.function("route_sort")?,
            choose_and_sort: route.function("route_choose_and_sort")?,
            of_formats: [a?, b?, c?],
            any: halves(ExpertsKernel::Any, ExpertFormat::F32)?,
            widen: rows.function("moe_widen")?,
            sum_vectors: rows.function("moe_sum_vectors")?,
            sum_elements: rows.function("moe_sum_elements")?,
            overlaps: Capability::of(context)?.overlaps_launches(),
            _modules: [route, experts, tiles, rows],
        })
    }

    /// The kernel of a plan.
    pub(super) fn experts(&self, plan: &ExpertsPlan) -> Function {
        let format = FORMATS.iter().position(|f| *f == plan.format);
        let kernel = ExpertsKernel::OF_FORMAT
            .iter()
            .position(|k| *k == plan.kernel);
        let halves = match (format, kernel) {
            (Some(format), Some(kernel)) => &self.of_formats[format][kernel],
            // Plans name no others.
            _ => &self.any,
        };
        halves[plan.half as usize]
    }
}
