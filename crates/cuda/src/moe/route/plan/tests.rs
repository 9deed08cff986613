use super::*;
use crate::launch::driver::Capability;

fn facts(accumulation: Accumulation) -> MatmulFacts {
    MatmulFacts {
        capability: Capability { major: 9, minor: 0 },
        multiprocessors: 132,
        library: None,
        accumulation,
    }
}

#[test]
fn routers_of_few_tokens_take_two_launches() {
    let problem = |tokens| RouteProblem {
        tokens,
        hidden: 4096,
        experts: 256,
        top_k: 6,
        x: Float::BF16,
        gate: WeightType::Bf16,
        in_vectors: true,
    };
    let matrix_unit = facts(Accumulation::MatrixUnit);
    let text = |problem: &RouteProblem| RoutePlan::new(problem, &matrix_unit).to_string();
    let one = "route_logits: 16 x 8 blocks; route_choose_and_sort: 1 block";
    assert_eq!(text(&problem(1)), one);
    let more = "route_logits: 16 x 8 blocks; route_choose: 5 blocks; route_sort: 3 blocks";
    assert_eq!(text(&problem(17)), more);
    // 257 experts and 390 routes; beyond 1024 routes a warp to an expert.
    let many = "a matmul; route_choose: 17 blocks; route_sort: 6 blocks";
    assert_eq!(text(&problem(65)), many);
    let beyond = "a matmul; route_choose: 43 blocks; route_sort: 65 blocks";
    assert_eq!(text(&problem(171)), beyond);
    let too_many = RouteProblem {
        experts: NEAR_EXPERTS,
        ..problem(17)
    };
    let plan = RoutePlan::new(&too_many, &matrix_unit);
    assert_eq!(plan.apart, Some([5, (NEAR_EXPERTS / 4 + 1) as u32]));
    let splits = |tokens| RoutePlan::new(&problem(tokens), &matrix_unit).splits() as usize;
    for tokens in [1, 64, 65] {
        assert_eq!(
            splits(tokens),
            RoutePlan::most_splits(tokens),
            "{tokens} tokens"
        );
    }
    let others = [
        RouteProblem {
            x: Float::F32,
            ..problem(1)
        },
        RouteProblem {
            gate: WeightType::E4m3,
            ..problem(1)
        },
        RouteProblem {
            in_vectors: false,
            ..problem(1)
        },
        RouteProblem {
            hidden: 4092,
            ..problem(1)
        },
    ];
    for other in others {
        assert_eq!(
            RoutePlan::new(&other, &matrix_unit).logits,
            Logits::Matmul,
            "{other:?}"
        );
    }
    let source = concat!(
        include_str!("../../../../kernels/moe/route.cu"),
        include_str!("../../../../kernels/moe/sort.cuh")
    );
    for constants in [
        format!("SPLITS = {LOGITS_SPLITS}, EXPERTS = {LOGITS_EXPERTS};"),
        format!(
            "NEAR = {NEAR}, NEAR_EXPERTS = 1u << {};",
            NEAR_EXPERTS.ilog2()
        ),
        format!("TOGETHER = {TOGETHER}, CANDIDATES = {CANDIDATES};"),
    ] {
        assert!(source.contains(&constants), "{constants}");
    }
    let ordered = RoutePlan::new(&problem(1), &facts(Accumulation::Ordered));
    assert_eq!(ordered.logits, Logits::Matmul);
}
