//! Whole passes in graphs: what tokens choose is known to the device alone.

use swiglu_core::Quantization;
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
