//! Whole passes in graphs: what tokens choose is known to the device alone.

use swiglu_core::{Quantization, WeightFormat};
use swiglu_cuda::cudarc::driver::sys;

use crate::common::open;
use crate::layer::{FORMATS, HostLayer, Pass};

#[test]
fn captured_passes_replay_on_other_tokens() {
    let Some((backend, _turn)) = open("experts") else {
        return;
    };
    // FP4 is packed for both halves of the second, whose kernels start before those in front of them have ended.
    let kinds = [
        ([416, 352], None),
        ([416, 352], Some(Quantization::deepseek_v4_1())),
        ([512, 384], None),
        ([512, 384], Some(Quantization::deepseek_v4_1())),
    ];
    for (format, (sides, quant)) in FORMATS
        .into_iter()
        .flat_map(|f| kinds.map(|kind| (f, kind)))
    {
        let host = HostLayer::new(sides, (16, 3), format);
        let layer = host.load(&backend);
        for tokens in [1, 5, 40, 200] {
            let mut pass = Pass::new(&backend, &host, quant, tokens);
            let run = |pass: &mut Pass<'_>| {
                pass.route(&backend, &layer.gate).unwrap();
                pass.mlp(&backend, &layer).unwrap();
            };
            let run_apart = |pass: &mut Pass<'_>| {
                pass.route(&backend, &layer.gate).unwrap();
                pass.experts(&backend, &layer).unwrap();
            };
            // Once before: cublasLt is asked for an algorithm then.
            pass.set_x(&backend, &host.rows(tokens, 0));
            run(&mut pass);
            let stream = backend.stream().clone();
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).unwrap();
            run(&mut pass);
            let graph = stream
                .end_capture(sys::CUgraphInstantiate_flags(0))
                .unwrap()
                .unwrap();
            let mut results = Vec::new();
            for seed in 1..6 {
                let x = host.rows(tokens, seed);
                pass.set_x(&backend, &x);
                run_apart(&mut pass);
                let want = pass.sums(&backend);
                pass.set_x(&backend, &x);
                graph.launch().unwrap();
                assert!(
                    pass.sums(&backend) == want,
                    "{format}, {tokens} tokens, {seed}"
                );
                results.push(want);
            }
            results.dedup();
            assert_eq!(results.len(), 5, "{format}, {tokens} tokens");
        }
    }
}

/// Kernels of a whole layer start before those in front of them have ended, which must not show: twenty times, one
/// behind the other in the same memory, every other pass on other tokens, by calls and by a graph.
#[test]
fn a_layer_in_one_call_is_its_calls() {
    let Some((backend, _turn)) = open("experts") else {
        return;
    };
    for (experts, k) in [(16, 3), (64, 6)] {
        let host = HostLayer::new([512, 384], (experts, k), WeightFormat::Fp4);
        let (layer, shared) = (host.load(&backend), host.load_shared(&backend));
        for tokens in [1, 4, 16, 17, 40, 64, 200] {
            let what = format!("{k} of {experts}, {tokens} tokens");
            let mut pass = Pass::new(&backend, &host, None, tokens);
            let mut other = Pass::new(&backend, &host, None, tokens);
            let set = |pass: &mut Pass<'_>, other: &mut Pass<'_>, seeds: [u64; 2]| {
                pass.set_x(&backend, &host.rows(tokens, seeds[0]));
                other.set_x(&backend, &host.rows(tokens, seeds[1]));
            };
            // Both on their x to their y, in the first one's memory.
            let run = |pass: &mut Pass<'_>, other: &mut Pass<'_>, at_once| {
                for _ in 0..2 {
                    pass.moe(&backend, (&layer, &shared), at_once).unwrap();
                    std::mem::swap(&mut pass.x, &mut other.x);
                    std::mem::swap(&mut pass.y, &mut other.y);
                }
            };
            let sums =
                |pass: &Pass<'_>, other: &Pass<'_>| [pass.sums(&backend), other.sums(&backend)];
            set(&mut pass, &mut other, [1, 2]);
            run(&mut pass, &mut other, false);
            let [a, b] = sums(&pass, &other);
            assert!(a != b, "{what}");
            for _ in 0..20 {
                run(&mut pass, &mut other, true);
            }
            assert!(sums(&pass, &other) == [a.clone(), b.clone()], "{what}");
            let stream = backend.stream().clone();
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).unwrap();
            for _ in 0..20 {
                run(&mut pass, &mut other, true);
            }
            let graph = stream
                .end_capture(sys::CUgraphInstantiate_flags(0))
                .unwrap()
                .unwrap();
            set(&mut pass, &mut other, [2, 1]);
            graph.launch().unwrap();
            assert!(sums(&pass, &other) == [b, a], "{what}, a graph");
        }
    }
}
