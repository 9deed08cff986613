//! What benches of routed experts have in common: ways to route, and what a pass asks of a backend.

use swiglu_core::{
    Backend, Float, GatedActivation, HostRoutes, Request, Result, Routes, Routing, Shape,
    WeightFormat,
};

/// Ways in which tokens are routed, which take turns: weights that one touched are cold for the next.
pub const ROUTINGS: usize = 16;

/// [`ROUTINGS`] ways to let so many tokens choose their experts at random, and how many experts one touches on average.
///
/// # Errors
/// A failure of the device.
pub fn routings<B: Backend>(
    backend: &B,
    routing: &Routing,
    tokens: usize,
) -> Result<(Vec<Routes<B::Buffer>>, f64)> {
    let mut random = fastrand::Rng::with_seed(2);
    let mut all: Vec<i32> = (0..routing.experts() as i32).collect();
    let (mut routes, mut touched) = (Vec::new(), 0);
    for _ in 0..ROUTINGS {
        let mut ids = Vec::new();
        for _ in 0..tokens {
            random.shuffle(&mut all);
            ids.extend_from_slice(&all[..routing.top_k()]);
        }
        let weights: Vec<f32> = ids.iter().map(|_| random.f32()).collect();
        let host = HostRoutes::new(routing, &ids, &weights)?;
        touched += host.offsets.windows(2).filter(|w| w[0] < w[1]).count();
        let mut on = Routes::new(backend, routing, tokens)?;
        on.upload(backend, &ids, &weights)?;
        routes.push(on);
    }
    Ok((routes, touched as f64 / ROUTINGS as f64))
}

/// The router and both halves of V4's experts \[h, i\] over so many tokens, all else in bf16.
pub fn requests(
    routing: Routing,
    weight: WeightFormat,
    [h, i]: [usize; 2],
    tokens: usize,
) -> [(Request, Shape); 3] {
    let shape = |cols, depth| Shape {
        rows: tokens,
        cols,
        depth,
    };
    let route = Request::Route {
        routing,
        x: Float::BF16,
        weight: WeightFormat::Float(Float::BF16),
    };
    let first = Request::GroupedGatedMatmul {
        op: GatedActivation::deepseek_v4(),
        quant: None,
        routing,
        x: Float::BF16,
        weight,
    };
    let second = Request::GroupedMatmulSum {
        quant: None,
        routing,
        weight,
        y: Float::BF16,
    };
    [
        (route, shape(routing.experts(), h)),
        (first, shape(2 * i, h)),
        (second, shape(h, i)),
    ]
}
