//! Matrices of one call in one buffer.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Page, open, values};
use swiglu_core::{
    ActAndMul, Element, Float, GatedActivation, HostWeight, Matmul, Tensor, TensorMut,
    WeightFormat, bf16,
};
use swiglu_wgpu::WgpuBackend;

/// Input and output in one buffer: refused, or taken where the backend was opened for it.
#[test]
fn one_buffer_for_all_is_taken_where_it_was_asked_for() {
    let (Some(apart), Some(shared)) = (open(false), open(true)) else {
        return;
    };
    let op = GatedActivation::deepseek_v4();
    let (rows, d) = (3, 40);
    let input = values::<bf16>(rows * 2 * d, 2);
    let want = apart.act_and_mul_slice(&op, &input, d).unwrap();
    // The output ends, in the same word, where the input starts.
    let (from, to) = (4096 + 6, 4096 + 4 - 2 * want.len());
    let run = |backend: &WgpuBackend, to: usize| {
        let mut page = Page::new(backend, 16_384);
        page.put(backend, from, &input);
        let x = page.view(from, size_of_val(&*input));
        let x = Tensor::contiguous(x, Float::BF16, rows, 2 * d);
        let y = page.view_mut(to, 2 * want.len());
        let y = TensorMut::contiguous(y, Float::BF16, rows, d);
        backend.act_and_mul(&op, x.into(), y).map(|()| {
            let mut expected = page.bytes.clone();
            expected[to..to + 2 * want.len()].copy_from_slice(bytemuck::cast_slice(&want));
            // Another kernel than for whole vectors.
            let near = |(a, b): (&bf16, &bf16)| a.ulps_between(*b) <= 1;
            let got = page.contents(backend);
            let [got, expected] = [&got, &expected].map(|b| bytemuck::cast_slice::<_, bf16>(b));
            let poison = |(a, b): (&bf16, &bf16)| a.to_bits() == b.to_bits();
            assert!(got.iter().zip(expected).all(|p| poison(p) || near(p)));
        })
    };
    let refused = run(apart, to).unwrap_err().to_string();
    assert!(refused.contains("Builder::shared_buffers"), "{refused}");
    run(shared, to).unwrap();
    let overlap = run(shared, to + 4).unwrap_err().to_string();
    let expected = "output: expected memory that no other argument is in";
    assert!(overlap.starts_with(expected), "{overlap}");
}

/// A matmul, its activation and the way back in one buffer.
#[test]
fn a_whole_layer_runs_in_one_buffer() {
    let (Some(apart), Some(shared)) = (open(false), open(true)) else {
        return;
    };
    const K: usize = 64;
    const D: usize = 48;
    let op = GatedActivation::deepseek_v4();
    let w = values::<bf16>(2 * D * K, 3);
    let format = WeightFormat::Float(Float::BF16);
    let run = |backend: &WgpuBackend, one: bool, tokens: usize| {
        let host = HostWeight::new([2 * D, K], format, bytemuck::cast_slice(&w), &[]).unwrap();
        let weight = backend.load_weight(&[host]).unwrap();
        let x: Vec<_> = values::<bf16>(tokens * K, 6);
        let sizes = [K, 2 * D, D].map(|cols| 2 * tokens * cols);
        let mut pages = [0, 1, 2].map(|_| Page::new(backend, 65_536));
        pages[0].put(backend, 0, &x);
        let page = |i: usize| &pages[if one { 0 } else { i }];
        let at = [0, 20_480, 40_960];
        let x = Tensor::contiguous(page(0).view(at[0], sizes[0]), Float::BF16, tokens, K);
        let [gate_up, act] = [(1, 2 * D), (2, D)].map(|(i, cols)| {
            let view = page(i).view_mut(at[i], sizes[i]);
            TensorMut::contiguous(view, Float::BF16, tokens, cols)
        });
        backend
            .matmul_act_and_mul(&op, x, &weight, gate_up, act)
            .unwrap();
        page(2).contents(backend)[at[2]..at[2] + sizes[2]].to_vec()
    };
    for tokens in [1, 40] {
        let want = run(apart, false, tokens);
        assert_eq!(run(shared, false, tokens), want);
        assert_eq!(run(shared, true, tokens), want);
    }
}
