//! Checks of a layer of routed experts.

use super::{has_shape, holds};
use crate::{
    ActShape, Backend, Error, Experts, Float, Gate, GatedActivation, Layout, Matmul, Order,
    Quantization, Request, Result, Rounding, Routes, Shape, Tensor, TensorMut, Tokens,
};

/// Checks a call of [`crate::Router::route`].
///
/// # Errors
/// An x that is not \[T, H\], token ids that a layer which hashes lacks, a mask of images where the
/// layer has no `bias_vl`, views that are too short, or routes for other tokens or another routing.
pub fn route<B: Matmul>(
    backend: &B,
    gate: &Gate<B::Weight, B::Buffer>,
    x: &Tensor<'_, B>,
    tokens: &Tokens<'_, B>,
    scratch: &B::View<'_>,
    routes: &Routes<B::Buffer>,
) -> Result<()> {
    let [experts, hidden] = backend.weight_shape(&gate.weight);
    let rows = x.layout.rows;
    let shape = ActShape { rows, d: hidden };
    has_shape("x", [rows, x.layout.cols], shape)?;
    x.check("x")?;
    if gate.table.is_some() && tokens.ids.is_none() {
        let expected = "the tokens' ids, as this layer chooses experts by them";
        return Err(Error::argument("token_ids", expected, "none"));
    }
    if gate.bias_vl.is_none() && tokens.image.is_some() {
        let expected = "none, as this layer has no bias_vl for tokens of images";
        return Err(Error::argument("image", expected, "a mask"));
    }
    for (argument, view) in [
        ("token_ids", &tokens.ids),
        ("image", &tokens.image),
        ("padding", &tokens.padding),
    ] {
        if let Some(view) = view {
            holds(argument, B::view_len(view), rows)?;
        }
    }
    has_routes(routes, rows)?;
    if *routes.routing() != gate.routing {
        let expected = gate.routing.to_string();
        return Err(Error::argument("routes", expected, routes.routing()));
    }
    let request = Request::Route {
        routing: gate.routing,
        x: x.float,
        weight: crate::WeightFormat::Float(Float::BF16),
    };
    let shape = Shape {
        rows,
        cols: experts,
        depth: hidden,
    };
    has_scratch::<B>(backend, &request, &shape, scratch)
}

/// Checks a call of [`crate::GroupedMatmul::grouped_matmul_act_and_mul`].
///
/// # Errors
/// Experts that are not all loaded or not of the routing, an activation in eager rounding (which
/// has no place for the weight) or whose halves are not gate and up one after the other, a
/// quantization that does not round first, an x that is not \[T, H\], an act that is not \[T · k, I\] of bf16, or
/// views that are too short.
#[allow(clippy::too_many_arguments)] // Those of the call.
pub fn grouped_act_and_mul<B: Matmul>(
    backend: &B,
    op: &GatedActivation,
    quant: Option<&Quantization>,
    x: &Tensor<'_, B>,
    experts: &Experts<B::Weight>,
    routes: &Routes<B::Buffer>,
    scratch: &B::ViewMut<'_>,
    act: &TensorMut<'_, B>,
) -> Result<()> {
    has_experts(experts, routes)?;
    if op.rounding() == Rounding::Eager {
        let expected = "official rounding, as eager does not define the route weight's place";
        return Err(Error::argument("op", expected, op));
    }
    if op.layout() != Layout::Concatenated || op.order() != Order::GateFirst {
        let expected = "an activation of gate then up, as experts' weights lie";
        return Err(Error::argument("op", expected, op));
    }
    rounds_first(quant)?;
    let shape = experts.shape();
    let (rows, d) = (x.layout.rows, shape.hidden);
    has_shape("x", [rows, x.layout.cols], ActShape { rows, d })?;
    x.check("x")?;
    has_routes(routes, rows)?;
    is_act(&act.as_tensor(), routes, shape.intermediate)?;
    let request = Request::GroupedGatedMatmul {
        op: *op,
        quant: quant.copied(),
        routing: *routes.routing(),
        x: x.float,
        weight: shape.gate_up,
    };
    let shape = Shape {
        rows,
        cols: shape.intermediate.saturating_mul(2),
        depth: shape.hidden,
    };
    has_scratch::<B>(backend, &request, &shape, &B::as_view(scratch))
}

/// Checks a call of [`crate::GroupedMatmul::grouped_matmul_sum`].
///
/// # Errors
/// Experts that are not all loaded or not of the routing, an act that is not \[T · k, I\] of bf16, a
/// shared or y that is not \[T, H\], or views that are too short.
#[allow(clippy::too_many_arguments)] // Those of the call.
pub fn grouped_sum<B: Matmul>(
    backend: &B,
    quant: Option<&Quantization>,
    act: &Tensor<'_, B>,
    experts: &Experts<B::Weight>,
    routes: &Routes<B::Buffer>,
    shared: Option<&Tensor<'_, B>>,
    scratch: &B::ViewMut<'_>,
    y: &TensorMut<'_, B>,
) -> Result<()> {
    has_experts(experts, routes)?;
    rounds_first(quant)?;
    let shape = experts.shape();
    is_act(act, routes, shape.intermediate)?;
    let (rows, d) = (routes.tokens(), shape.hidden);
    has_shape("y", [y.layout.rows, y.layout.cols], ActShape { rows, d })?;
    y.as_tensor().check("y")?;
    if let Some(shared) = shared {
        let got = [shared.layout.rows, shared.layout.cols];
        has_shape("shared", got, ActShape { rows, d })?;
        shared.check("shared")?;
    }
    let request = Request::GroupedMatmulSum {
        quant: quant.copied(),
        routing: *routes.routing(),
        weight: shape.down,
        y: y.float,
    };
    let shape = Shape {
        rows,
        cols: shape.hidden,
        depth: shape.intermediate,
    };
    has_scratch::<B>(backend, &request, &shape, &B::as_view(scratch))
}

fn has_experts<Weight, Buffer>(experts: &Experts<Weight>, routes: &Routes<Buffer>) -> Result<()> {
    experts.check_complete()?;
    let (range, all) = (&experts.shape().range, routes.routing().experts());
    if range.start > range.end || range.end > all {
        let expected = format!("a range of the {all} experts that are routed to");
        return Err(Error::argument("experts", expected, format!("{range:?}")));
    }
    Ok(())
}

fn has_routes<Buffer>(routes: &Routes<Buffer>, tokens: usize) -> Result<()> {
    if routes.tokens() == tokens {
        return Ok(());
    }
    let expected = format!("those of {tokens} tokens");
    Err(Error::argument("routes", expected, routes.tokens()))
}

/// The weight goes in before the rounding, which a quantization without one does not have.
fn rounds_first(quant: Option<&Quantization>) -> Result<()> {
    match quant {
        Some(quant) if !quant.materialize() => {
            let expected = "true, as the activation is rounded with its route's weight";
            Err(Error::argument("materialize", expected, false))
        }
        _ => Ok(()),
    }
}

fn is_act<B: Backend>(act: &Tensor<'_, B>, routes: &Routes<B::Buffer>, d: usize) -> Result<()> {
    if act.float != Float::BF16 {
        return Err(Error::argument("act", Float::BF16.name(), act.float));
    }
    let rows = routes.count();
    has_shape(
        "act",
        [act.layout.rows, act.layout.cols],
        ActShape { rows, d },
    )?;
    act.check("act")
}

fn has_scratch<B: Backend>(
    backend: &B,
    request: &Request,
    shape: &Shape,
    scratch: &B::View<'_>,
) -> Result<()> {
    let (expected, got) = (backend.scratch(request, shape), B::view_len(scratch));
    if got >= expected {
        return Ok(());
    }
    let expected = format!("at least {expected} bytes");
    Err(Error::argument("scratch", expected, format!("{got} bytes")))
}
