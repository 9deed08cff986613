//! Routers: of as many tokens as each way of choosing and sorting takes.

use swiglu_core::{Float, WeightFormat, sort_by_expert};

use crate::common::open;
use crate::layer::{HostLayer, Pass};

const HIDDEN: usize = 1032;

fn layer(experts: usize, k: usize) -> HostLayer {
    // Experts of a few weights: this is about the router.
    let host = HostLayer::new([8, 8], (experts, k), WeightFormat::Float(Float::BF16));
    host.with_router_of(HIDDEN)
}

#[test]
fn any_number_of_tokens_is_sorted_by_expert() {
    let Some((backend, _turn)) = open("experts") else {
        return;
    };
    for (experts, k) in [(256, 6), (384, 6), (5, 5), (3, 1)] {
        let host = layer(experts, k);
        let gate = host.load_gate(&backend);
        for tokens in [1, 16, 17, 64, 65, 300, 5000] {
            let mut pass = Pass::new(&backend, &host, None, tokens);
            pass.set_x(&backend, &host.rows(tokens, 9));
            pass.route(&backend, &gate).unwrap();
            let got = pass.routes.download(&backend).unwrap();
            let what = format!("{k} of {experts}, {tokens} tokens");
            for (ids, weights) in got.ids.chunks_exact(k).zip(got.weights.chunks_exact(k)) {
                let mut different = ids.to_vec();
                different.sort_unstable();
                different.dedup();
                assert_eq!(different.len(), k, "{what}");
                assert!(
                    different[0] >= 0 && different[k - 1] < experts as i32,
                    "{what}"
                );
                // Without a bias the best come first.
                assert!(weights.is_sorted_by(|a, b| a >= b), "{what}");
                let sum: f32 = weights.iter().sum();
                assert!((sum - 1.5).abs() < 1e-5, "{what}: {sum}");
            }
            let mut offsets = vec![0; experts + 1];
            let (mut sorted, mut rows) = (vec![0; tokens * k], vec![0; tokens * k]);
            sort_by_expert(k, &got.ids, &mut offsets, &mut sorted, &mut rows);
            assert!(got.offsets == offsets, "{what}");
            assert!(got.sorted == sorted, "{what}");
            assert!(got.rows == rows, "{what}");
        }
    }
}

/// A token's choice does not depend on how many others there are, as long as its logits do not.
#[test]
fn a_token_chooses_alike_among_few_and_many() {
    let Some((backend, _turn)) = open("experts") else {
        return;
    };
    let host = layer(256, 6);
    let gate = host.load_gate(&backend);
    let x = host.rows(64, 4);
    let choice = |tokens: usize| {
        let mut pass = Pass::new(&backend, &host, None, tokens);
        pass.set_x(&backend, &x[..tokens * HIDDEN]);
        pass.route(&backend, &gate).unwrap();
        pass.routes.download(&backend).unwrap()
    };
    let all = choice(64);
    for tokens in [1, 3, 8, 16, 17, 40] {
        let few = choice(tokens);
        assert_eq!(few.ids, all.ids[..tokens * 6], "{tokens} tokens");
        assert_eq!(few.weights, all.weights[..tokens * 6], "{tokens} tokens");
    }
}
