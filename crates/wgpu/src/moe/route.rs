//! The choice of experts as dispatches: logits, the choice, and the sort.

use swiglu_core::{Float, Gate, Routes, RowLayout};

use super::passes::{NONE, On, int};
use crate::device::BindingLimits;
use crate::launch::{
    ChooseCall, Matrix, SortCall, Window, bind, dispatch, in_workgroups, whole_view,
};
use crate::pipelines::MoeKernel;
use crate::weight::Weight;
use crate::{Buffer, Result, View, matmul};

/// Records the choice of tokens: x \[T, H\], their numbers and their masks, to routes.
pub(crate) fn route(
    on: On<'_>,
    pass: &mut wgpu::ComputePass<'_>,
    gate: &Gate<Weight, Buffer>,
    x: &Matrix<'_>,
    [ids, image, padding]: [Option<View<'_>>; 3],
    scratch: View<'_>,
    routes: &Routes<Buffer>,
) -> Result<()> {
    let (device, pipelines, moe) = on;
    let limits = &pipelines.facts.bindings;
    let routing = &gate.routing;
    let (tokens, experts, top_k) = (x.layout.rows, routing.experts(), routing.top_k());
    let logits = Matrix {
        name: "scratch",
        view: scratch,
        float: Float::F32,
        layout: RowLayout::contiguous(tokens, experts),
    };
    matmul::record((device, pipelines), pass, x, &gate.weight, &logits)?;

    let ids = words("token_ids", limits, ids, tokens)?;
    let image = words("image", limits, image, tokens)?;
    let padding = words("padding", limits, padding, tokens)?;
    let offset = |window: Option<Window<'_>>| window.map_or(NONE, |window| window.offset);
    let logits = logits.columns()?;
    let mut call = ChooseCall {
        experts: int(experts)?,
        top_k: int(top_k)?,
        scale: routing.scale(),
        normalize: u32::from(routing.normalize()),
        vocabulary: int(routing.vocabulary().unwrap_or(0))?,
        ids_offset: offset(ids),
        image_offset: offset(image),
        padding_offset: offset(padding),
        ..ChooseCall::default()
    };
    let unused = || moe.unused.as_entire_buffer_binding();
    let buffer = |buffer: Option<&'_ Buffer>| match buffer {
        Some(buffer) => buffer.raw().clone(),
        None => moe.unused.clone(),
    };
    let chosen_by = buffer(gate.table.as_ref().or(gate.bias.as_ref()));
    let of_images = buffer(gate.bias_vl.as_ref());
    let pipeline = moe.get(MoeKernel::Choose)?;
    let per_dispatch = logits.rows.rows_per_window(limits).max(1);
    for token in (0..tokens).step_by(per_dispatch) {
        let count = per_dispatch.min(tokens - token);
        let window = logits.window(limits, token, count)?;
        call.tokens = int(count)?;
        call.first_token = int(token)?;
        call.logits_offset = window.offset;
        let marks = [ids, image, padding];
        let [ids, image, padding] =
            marks.map(|mark| mark.map_or_else(unused, |window| window.binding()));
        let bindings = [
            window.binding(),
            ids,
            image,
            padding,
            chosen_by.as_entire_buffer_binding(),
            of_images.as_entire_buffer_binding(),
            routes.ids.raw().as_entire_buffer_binding(),
            routes.weights.raw().as_entire_buffer_binding(),
        ];
        let group = bind(device, &moe.choose, bindings)?;
        let [x, y] = in_workgroups(limits, call.tokens);
        dispatch(pass, pipeline, &group, &call, [x, y, 1]);
    }

    let call = SortCall {
        routes: int(routes.count())?,
        experts: int(experts)?,
        top_k: int(top_k)?,
        unused: 0,
    };
    let bindings = [&routes.ids, &routes.offsets, &routes.sorted, &routes.rows]
        .map(|buffer| buffer.raw().as_entire_buffer_binding());
    let group = bind(device, &moe.sort, bindings)?;
    // One more for what is of no expert.
    let [x, y] = in_workgroups(limits, call.experts + 1);
    dispatch(pass, moe.get(MoeKernel::Sort)?, &group, &call, [x, y, 1]);
    Ok(())
}

/// The first `count` words of a view, if there is one.
fn words<'a>(
    argument: &'static str,
    limits: &BindingLimits,
    view: Option<View<'a>>,
    count: usize,
) -> Result<Option<Window<'a>>> {
    view.map(|view| whole_view(argument, limits, view, 4, 4 * count))
        .transpose()
}
