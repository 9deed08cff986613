use super::*;
use crate::matmul::{
    codes::{CodesPlan, CodesProblem},
    quantizing::QuantizingPlan,
};
use swiglu_core::{Quantization, ScaleFormat};

const HOPPER: MatmulFacts = MatmulFacts {
    capability: Capability { major: 9, minor: 0 },
    multiprocessors: 132,
    library: Some(LibraryKind::BlockScaling),
    accumulation: Accumulation::MatrixUnit,
};

/// A weight of this shape as Hopper loads it.
fn loaded(t: usize, [n, k]: [usize; 2], weight: WeightFormat, pairs: bool) -> MatmulProblem {
    let shape = Shape {
        rows: t,
        cols: n,
        depth: k,
    };
    let types = (Float::BF16, weight, Float::BF16);
    MatmulProblem::of_shape(&shape, types, pairs, &HOPPER).unwrap()
}

/// One that is not packed.
fn problem(t: usize, weight: WeightFormat) -> MatmulProblem {
    MatmulProblem {
        packing: None,
        ..loaded(t, [512, 1024], weight, false)
    }
}

fn fp8(scales: ScaleFormat, block: [usize; 2]) -> WeightFormat {
    WeightFormat::Fp8 { scales, block }
}

fn plan(problem: &MatmulProblem) -> MatmulPlan {
    MatmulPlan::new(problem, &HOPPER, None).unwrap()
}

fn kernel(problem: &MatmulProblem, facts: &MatmulFacts) -> OwnKernel {
    match MatmulPlan::new(problem, facts, None) {
        Some(MatmulPlan::Own(own)) => own.kernel,
        other => panic!("{other:?} is no kernel of ours"),
    }
}

#[test]
fn equal_types_go_to_the_library_and_to_tiles_without_it() {
    let bf16 = WeightFormat::Float(Float::BF16);
    for t in [257, 4096] {
        let mut problem = problem(t, bf16);
        assert_eq!(plan(&problem), MatmulPlan::Library);
        let without = HOPPER.without_library();
        assert_eq!(kernel(&problem, &without), OwnKernel::Tiles);
        // The library writes x's type or f32.
        problem.y = Float::F16;
        assert_eq!(kernel(&problem, &HOPPER), OwnKernel::Tiles);
        problem.y = Float::F32;
        assert_eq!(plan(&problem), MatmulPlan::Library);
    }
}

#[test]
fn few_tokens_in_bf16_read_the_weight_by_a_map_on_hopper() {
    let takes = |change: fn(&mut MatmulProblem), facts: &MatmulFacts| {
        let mut problem = problem(64, WeightFormat::Float(Float::BF16));
        change(&mut problem);
        let plain = MatmulPlan::new(&problem, facts, None);
        let plain = matches!(plain, Some(MatmulPlan::Mapped(_)));
        let gated = matches!(problem.gated(facts), Some(GatedPlan::Mapped(_)));
        assert_eq!(plain, gated);
        plain
    };
    assert!(takes(|_| (), &HOPPER) && takes(|_| (), &HOPPER.without_library()));
    assert!(takes(|p| p.y = Float::F32, &HOPPER));
    let changes: [fn(&mut MatmulProblem); 8] = [
        |p| p.x = Float::F16,
        |p| p.y = Float::F16,
        |p| p.x_aligned = false,
        |p| p.weight = WeightType::F16,
        |p| p.weight = WeightType::E4m3,
        |p| p.t = 257,
        |p| p.n += 8,
        |p| p.k += 4,
    ];
    for change in changes {
        assert!(!takes(change, &HOPPER));
    }
    let mut facts = HOPPER;
    facts.accumulation = Accumulation::Ordered;
    assert!(!takes(|_| (), &facts));
    for (major, minor) in [(8, 0), (10, 0), (12, 0)] {
        facts = HOPPER;
        facts.capability = Capability { major, minor };
        assert!(!takes(|_| (), &facts), "sm_{major}{minor}");
    }
    let flash = loaded(1, [4096, 4096], WeightFormat::Float(Float::BF16), true);
    let text = "mapped_bf16_4_groups_8_tokens: 64 clusters of 2 blocks";
    assert_eq!(flash.gated(&HOPPER).unwrap().to_string(), text);
    assert_eq!(plan(&flash).to_string(), text);
}

#[test]
fn fp8_weights_change_their_way_with_the_rows_of_x() {
    let way = |t| plan(&problem(t, WeightFormat::DEEPSEEK_V4));
    let rows = |place| OwnKernel::Rows {
        place,
        narrow: false,
    };
    for (t, place) in [(1, 0), (8, 0), (9, 1), (16, 1), (17, 2), (33, 3), (64, 3)] {
        let own = OwnPlan {
            kernel: rows(place),
            x: Float::BF16,
            weight: WeightType::E4m3,
            blocks: [512 / W_ROWS[place] as u32, 1],
            packed: false,
        };
        assert_eq!(way(t), MatmulPlan::Own(own), "{t}");
    }
    assert_eq!(way(65), MatmulPlan::Decode { packed: false });
    assert_eq!(way(4096), MatmulPlan::Decode { packed: false });
    // Scales that may not be powers of two: no decoding.
    let inexact = |t| kernel(&problem(t, fp8(ScaleFormat::F32, [128, 128])), &HOPPER);
    assert_eq!(inexact(256), rows(3));
    assert_eq!(inexact(257), OwnKernel::Tiles);
    // x of another type than bf16 is not multiplied by a decoded weight.
    let mut f16 = problem(100, WeightFormat::DEEPSEEK_V4);
    f16.x = Float::F16;
    assert_eq!(kernel(&f16, &HOPPER), rows(3));
}

#[test]
fn blocks_of_scales_choose_the_step_of_k() {
    let kernel = |columns, t| kernel(&problem(t, fp8(ScaleFormat::F32, [1, columns])), &HOPPER);
    let rows = |narrow| OwnKernel::Rows { place: 0, narrow };
    assert_eq!(kernel(64, 1), rows(false));
    assert_eq!(kernel(96, 1), rows(true));
    assert_eq!(kernel(32, 1), rows(true));
    assert_eq!(kernel(48, 1), OwnKernel::Ordered);
    assert_eq!(kernel(32, 300), OwnKernel::Tiles);
    assert_eq!(kernel(48, 300), OwnKernel::Ordered);
    // One scale for a whole row.
    assert_eq!(kernel(2000, 1), rows(false));
}

#[test]
fn what_is_not_in_whole_vectors_takes_the_kernel_for_any_alignment() {
    let mut odd = problem(4, WeightFormat::DEEPSEEK_V4);
    odd.x_aligned = false;
    assert_eq!(kernel(&odd, &HOPPER), OwnKernel::Ordered);
    odd = problem(4, WeightFormat::DEEPSEEK_V4);
    odd.k = 1000;
    assert_eq!(kernel(&odd, &HOPPER), OwnKernel::Ordered);
}

#[test]
fn ordered_sums_run_one_kernel_whatever_the_call() {
    let facts = MatmulFacts {
        accumulation: Accumulation::Ordered,
        ..HOPPER
    };
    let known = WeightFormat::SAMPLES.into_iter();
    for format in known {
        for t in [1, 8, 100, 5000] {
            let problem = problem(t, format);
            assert_eq!(kernel(&problem, &facts), OwnKernel::Ordered);
        }
    }
}

#[test]
fn more_rows_than_a_grid_has_are_refused() {
    let facts = HOPPER.without_library();
    let tiles = |t| MatmulPlan::new(&problem(t, WeightFormat::Float(Float::BF16)), &facts, None);
    assert!(tiles(65_535 * 128).is_some());
    assert_eq!(tiles(65_535 * 128 + 1), None);
    let mut odd = problem(65_535 * 64, WeightFormat::DEEPSEEK_V4);
    odd.x_aligned = false;
    assert!(MatmulPlan::new(&odd, &facts, None).is_some());
    odd.t += 1;
    assert_eq!(MatmulPlan::new(&odd, &facts, None), None);
}

#[test]
fn a_route_alone_takes_what_it_can_or_nothing() {
    let by = |t, format, route| MatmulPlan::new(&problem(t, format), &HOPPER, Some(route));
    let v4 = WeightFormat::DEEPSEEK_V4;
    assert_eq!(
        by(1, v4, Route::Decode),
        Some(MatmulPlan::Decode { packed: false })
    );
    assert_eq!(by(1, v4, Route::Library), None);
    let bf16 = WeightFormat::Float(Float::BF16);
    assert_eq!(by(1, bf16, Route::Decode), None);
    assert!(by(5000, bf16, Route::Rows).is_some());
    assert_eq!(by(1, v4, Route::Step), None);
}

/// The kernels of both matmuls of an MLP, with the blocks of their weights.
fn mlp(t: usize, [h, i]: [usize; 2], block: usize) -> [String; 2] {
    let format = fp8(ScaleFormat::E8M0, [block; 2]);
    let gate_up = loaded(t, [2 * i, h], format, true);
    let gated = gate_up.gated(&HOPPER);
    let down = plan(&loaded(t, [h, i], format, false));
    [
        gated.map_or_else(String::new, |plan| plan.to_string()),
        down.to_string(),
    ]
}

#[test]
fn decode_steps_of_the_models_stream_packed_weights() {
    let step = |kind: &str, groups: usize, tokens: usize, times: usize| {
        let name = format!("decode_{kind}_{groups}_groups_{tokens}_tokens");
        format!("{name}: 66 x {times} clusters of 2 blocks")
    };
    for (t, tokens) in [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16)] {
        for (sizes, block, [gated, plain]) in [
            ([4096, 2048], 128, [4, 4]),
            ([7168, 3072], 128, [6, 7]),
            ([5120, 2304], 32, [5, 5]),
        ] {
            let want = [
                step("gated", gated, tokens, 1),
                step("plain", plain, tokens, 1),
            ];
            assert_eq!(mlp(t, sizes, block), want, "{t}, {sizes:?}");
        }
    }
}

#[test]
fn more_tokens_of_the_models_take_warpgroups() {
    let names = |shape: &str, tiles: &str, blocks: usize| {
        ["gated", "plain"]
            .map(|kind| format!("warpgroups_{kind}_{shape}: {tiles} tiles by {blocks} blocks"))
    };
    let flash = |t| mlp(t, [4096, 2048], 128);
    assert_eq!(flash(17), names("1x4_32_tokens_2_blocks", "66 x 1", 132));
    assert_eq!(flash(33), names("1x4_64_tokens_2_blocks", "66 x 1", 132));
    assert_eq!(flash(65), names("1x4_128_tokens_2_blocks", "66 x 1", 132));
    assert_eq!(flash(129), names("2x4_128_tokens_2_blocks", "33 x 2", 132));
    assert_eq!(flash(257), names("2x4_256_tokens_2_blocks", "33 x 2", 132));
    assert_eq!(flash(512), names("2x4_256_tokens_2_blocks", "33 x 2", 132));
    assert_eq!(flash(513), names("2x4_256_tokens_1_blocks", "33 x 3", 99));
    assert_eq!(flash(1024), names("2x4_256_tokens_1_blocks", "33 x 4", 132));
    for (sizes, block) in [([7168, 3072], 128), ([5120, 2304], 32)] {
        let large = |t| mlp(t, sizes, block);
        assert_eq!(large(32), names("1x8_32_tokens_2_blocks", "66 x 1", 132));
        assert_eq!(large(64), names("1x8_64_tokens_2_blocks", "66 x 1", 132));
        assert_eq!(large(128), names("1x8_128_tokens_2_blocks", "66 x 1", 132));
    }
    // Two streams of up to six groups are three warpgroups, of seven four.
    let [gated, plain] = names("2x6_128_tokens_2_blocks", "33 x 2", 132);
    let [_, of_seven] = names("1x8_256_tokens_2_blocks", "66 x 1", 132);
    assert_eq!(mlp(256, [7168, 3072], 128), [gated.clone(), of_seven]);
    assert_eq!(mlp(256, [5120, 2304], 32), [gated, plain]);
    let more = "unpack_e4m3_to_bf16, then cublasLt".to_owned();
    assert_eq!(flash(1025), [String::new(), more.clone()]);
    // Streams of seven groups, and of six and five.
    let [_, of_seven] = names("1x8_256_tokens_1_blocks", "66 x 2", 132);
    let [gated, _] = names("2x6_128_tokens_1_blocks", "33 x 4", 132);
    let pro = |t| mlp(t, [7168, 3072], 128);
    assert_eq!(pro(512), [gated, of_seven]);
    let [_, of_seven] = names("1x8_256_tokens_1_blocks", "66 x 4", 132);
    let [gated, _] = names("2x6_128_tokens_1_blocks", "33 x 8", 132);
    assert_eq!(pro(1024), [gated, of_seven]);
    assert_eq!(pro(1025), [String::new(), more.clone()]);
    let v41 = |t| mlp(t, [5120, 2304], 32);
    assert_eq!(v41(512), names("2x6_128_tokens_1_blocks", "33 x 4", 132));
    assert_eq!(v41(513), [String::new(), more]);
}

#[test]
fn tiles_of_warpgroups_share_the_tokens() {
    let rows = |t| {
        let problem = loaded(t, [4096, 2048], WeightFormat::DEEPSEEK_V4, false);
        problem
            .warpgroups(&HOPPER, StepKind::Plain)
            .map(|p| (p.rows, p.tiles[1]))
    };
    for t in [17, 33, 127, 128] {
        assert_eq!(rows(t), Some((t as u32, 1)));
    }
    assert_eq!(rows(129), Some((72, 2)));
    assert_eq!(rows(257), Some((136, 2)));
    assert_eq!(rows(500), Some((256, 2)));
    assert_eq!(rows(512), Some((256, 2)));
    assert_eq!(rows(1000), Some((256, 4)));
    assert_eq!(rows(16), None);
}

#[test]
fn only_factors_and_rows_in_bf16_take_warpgroups() {
    let takes = |change: fn(&mut MatmulProblem), facts: &MatmulFacts| {
        let mut problem = loaded(64, [4096, 2048], WeightFormat::DEEPSEEK_V4, true);
        change(&mut problem);
        let plain = MatmulPlan::new(&problem, facts, Some(Route::Warpgroups)).is_some();
        let gated = matches!(
            problem.gated(facts),
            Some(GatedPlan::Packed(PackedPlan::Warpgroups(_)))
        );
        assert_eq!(plain, gated);
        plain
    };
    assert!(takes(|_| (), &HOPPER));
    assert!(takes(|p| p.y = Float::F32, &HOPPER));
    let changes: [fn(&mut MatmulProblem); 5] = [
        |p| p.x = Float::F16,
        |p| p.x_aligned = false,
        |p| p.packing = None,
        |p| p.t = 16,
        |p| {
            p.scales = p.scales.map(|s| ScalesShape {
                factors: false,
                ..s
            })
        },
    ];
    for change in changes {
        assert!(!takes(change, &HOPPER));
    }
    let ordered = MatmulFacts {
        accumulation: Accumulation::Ordered,
        ..HOPPER
    };
    assert!(!takes(|_| (), &ordered));
    // Decode steps take what these do not, up to 64 tokens.
    let inexact = loaded(64, [4096, 2048], fp8(ScaleFormat::F32, [128; 2]), false);
    let steps = "decode_plain_4_groups_32_tokens: 66 x 2 clusters of 2 blocks";
    assert_eq!(plan(&inexact).to_string(), steps);
}

#[test]
fn a_packed_weight_takes_other_ways_where_no_step_does() {
    let step = |change: fn(&mut MatmulProblem), facts: &MatmulFacts| {
        let mut problem = loaded(4, [4096, 2048], WeightFormat::DEEPSEEK_V4, false);
        change(&mut problem);
        let plan = MatmulPlan::new(&problem, facts, None).unwrap();
        let is_step = matches!(plan, MatmulPlan::Packed(PackedPlan::Step(_)));
        (is_step, plan.to_string())
    };
    assert!(step(|_| (), &HOPPER).0);
    // y may be of any type, and so may scales.
    assert!(step(|p| p.y = Float::F32, &HOPPER).0);
    let rows = |x| (false, format!("matmul_8_rows_{x}_packed: 256 x 1 blocks"));
    assert_eq!(step(|p| p.x = Float::F16, &HOPPER), rows("f16"));
    assert_eq!(step(|p| p.x = Float::F32, &HOPPER), rows("f32"));
    let ordered = |x: &str| {
        let text = format!("unpack_e4m3, then matmul_any_{x}_e4m3: 64 x 1 blocks");
        (false, text)
    };
    assert_eq!(step(|p| p.x_aligned = false, &HOPPER), ordered("bf16"));
    // A backend that was opened for other sums reads what it was given.
    let facts = MatmulFacts {
        accumulation: Accumulation::Ordered,
        ..HOPPER
    };
    assert_eq!(step(|_| (), &facts), ordered("bf16"));
    let inexact = MatmulProblem {
        t: 300,
        ..loaded(1, [4096, 2048], fp8(ScaleFormat::F32, [128; 2]), false)
    };
    let tiles = "unpack_e4m3, then matmul_tiles_bf16_e4m3: 32 x 3 blocks";
    assert_eq!(plan(&inexact).to_string(), tiles);
    // Only pairs are activated.
    let stacked = loaded(1, [4096, 2048], WeightFormat::DEEPSEEK_V4, false);
    assert_eq!(stacked.step(&HOPPER, StepKind::Gated), None);
    let mut none = loaded(1, [4096, 2048], WeightFormat::DEEPSEEK_V4, true);
    assert!(none.step(&HOPPER, StepKind::Gated).is_some());
    none.t = 0;
    assert_eq!(none.step(&HOPPER, StepKind::Gated), None);
}

#[test]
fn weights_are_packed_on_hopper_for_sums_of_matrix_units() {
    assert_eq!(HOPPER.packs_for(), Some(132));
    for accumulation in [Accumulation::Ordered, Accumulation::Fp8TensorCore] {
        let facts = MatmulFacts {
            accumulation,
            ..HOPPER
        };
        assert_eq!(facts.packs_for(), None);
    }
    for (major, minor) in [(8, 0), (8, 9), (10, 0), (12, 0)] {
        let facts = MatmulFacts {
            capability: Capability { major, minor },
            ..HOPPER
        };
        assert_eq!(facts.packs_for(), None, "sm_{major}{minor}");
    }
}

#[test]
fn shared_memory_is_what_the_tiles_stages_take() {
    let shared = |x, w| OwnKernel::Tiles.shared(x, w);
    assert_eq!(shared(Float::BF16, WeightType::E4m3), 8 * 128 * 32 * 3);
    assert_eq!(shared(Float::F32, WeightType::F32), 3 * 128 * 32 * 8);
    assert_eq!(OwnKernel::Ordered.shared(Float::F32, WeightType::F32), 0);
}

#[test]
fn plans_print_the_kernels_names() {
    let text = |t, format| plan(&problem(t, format)).to_string();
    let v4 = WeightFormat::DEEPSEEK_V4;
    assert_eq!(text(1, v4), "matmul_8_rows_bf16_e4m3: 32 x 1 blocks");
    assert_eq!(text(256, v4), "decode_e4m3_to_bf16, then cublasLt");
    assert_eq!(text(257, WeightFormat::Float(Float::BF16)), "cublasLt");
    let narrow = fp8(ScaleFormat::F32, [32, 32]);
    let expected = "matmul_8_rows_bf16_e4m3_narrow: 32 x 1 blocks";
    assert_eq!(text(1, narrow), expected);
}

const CODES: CodesProblem = CodesProblem {
    t: 8192,
    n: 512,
    k: 1024,
    group: 128,
    w_in_blocks: true,
    aligned: true,
    scales_in_columns: false,
    scratch_aligned: true,
};

const ON_FP8: MatmulFacts = MatmulFacts {
    accumulation: Accumulation::Fp8TensorCore,
    ..HOPPER
};

#[test]
fn codes_go_to_tensor_cores_only_where_that_is_asked_for_and_there() {
    let plan = |facts: &MatmulFacts| CodesPlan::new(&CODES, facts);
    assert_eq!(plan(&ON_FP8), Some(CodesPlan::ScalesInScratch));
    assert_eq!(plan(&HOPPER), None);
    let mut other = ON_FP8;
    other.library = Some(LibraryKind::Plain);
    assert_eq!(plan(&other), None);
    assert_eq!(plan(&ON_FP8.without_library()), None);
    for major in [8, 10, 12] {
        other = ON_FP8;
        other.capability.major = major;
        assert_eq!(plan(&other), None, "sm_{major}0");
    }
}

#[test]
fn codes_of_few_tokens_take_kernels_of_our_own() {
    let of = |t, facts: &MatmulFacts| CodesPlan::new(&CodesProblem { t, ..CODES }, facts);
    let name = |t| of(t, &ON_FP8).unwrap().to_string();
    assert_eq!(name(63), "codes_64_rows_64_tokens: 8 clusters of 2 blocks");
    assert_eq!(name(255), "code_tiles_64_tokens: 4 x 4 blocks");
    assert_eq!(name(512), "code_tiles_64_tokens: 4 x 8 blocks");
    // Without the library too.
    let alone = ON_FP8.without_library();
    assert!(matches!(of(4, &alone), Some(CodesPlan::Own(_))));
    assert!(matches!(of(260, &alone), Some(CodesPlan::Tiles(_))));
    assert!(matches!(of(4096, &alone), Some(CodesPlan::Tiles(_))));
    assert_eq!(of(4097, &alone), None);
    assert_eq!(of(4, &HOPPER), None);
    let mut other = ON_FP8;
    other.capability.minor = 1;
    assert!(!matches!(of(4, &other), Some(CodesPlan::Own(_))));
}

#[test]
fn tiles_of_whole_groups_are_activated() {
    let of = |t, n| CodesPlan::activated(&CodesProblem { t, n, ..CODES }, &ON_FP8);
    let sums = |t, n| CodesPlan::new(&CodesProblem { t, n, ..CODES }, &ON_FP8);
    for (t, n) in [(129, 512), (512, 768)] {
        assert_eq!(of(t, n).map(CodesPlan::Tiles), sums(t, n));
        assert!(of(t, n).is_some());
    }
    // Few tokens, many, a gate that ends within a block of scales, and a weight of many tiles.
    let several = [of(128, 512), of(4100, 512), of(256, 640), of(256, 6144)];
    assert_eq!(several, [None; 4]);
    // Of those of many tiles the ones that run at once: 2 of 48 blocks each, and 3.
    let tiles = |t| of(t, 6144).map(|step| step.to_string());
    let expected = |tokens: usize| format!("code_tiles_{tokens}_tokens: 48 x 2 blocks");
    assert_eq!(
        [tiles(257), tiles(384)],
        [192; 2].map(|n| Some(expected(n)))
    );
    assert_eq!(
        [tiles(385), tiles(512)],
        [256; 2].map(|n| Some(expected(n)))
    );
    assert_eq!(tiles(513), None);
}

#[test]
fn codes_that_do_not_fit_are_widened() {
    let with = |change: fn(&mut CodesProblem)| {
        let mut problem = CODES;
        change(&mut problem);
        CodesPlan::new(&problem, &ON_FP8)
    };
    let changes: [fn(&mut CodesProblem); 8] = [
        |p| p.t = 8190,
        |p| p.t = 0,
        |p| p.n = 510,
        |p| p.k = 1032,
        |p| p.group = 64,
        |p| p.w_in_blocks = false,
        |p| p.aligned = false,
        |p| p.scratch_aligned = false,
    ];
    for change in changes {
        assert_eq!(with(change), None);
    }
    let few: [fn(&mut CodesProblem); 5] = [
        |p| p.n = 510,
        |p| p.k = 1032,
        |p| p.group = 64,
        |p| p.w_in_blocks = false,
        |p| p.aligned = false,
    ];
    for change in few {
        let mut problem = CodesProblem { t: 4, ..CODES };
        change(&mut problem);
        assert_eq!(CodesPlan::new(&problem, &ON_FP8), None);
    }
    let in_place = with(|p| {
        p.scales_in_columns = true;
        p.scratch_aligned = false;
    });
    assert_eq!(in_place, Some(CodesPlan::ScalesInPlace));
}

#[test]
fn few_tokens_are_quantized_as_they_are_read_and_more_before() {
    let v4 = Quantization::deepseek_v4();
    let plan = |problem: &MatmulProblem, facts: &MatmulFacts, quant: &Quantization, kind| {
        let plan = QuantizingPlan::new(problem, facts, quant, kind);
        plan.map(|plan| plan.to_string())
    };
    let format = fp8(ScaleFormat::E8M0, [128; 2]);
    for (shape, groups) in [([4096, 4096], [4, 4]), ([6144, 7168], [6, 7])] {
        for (t, tokens) in [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16)] {
            for (kind, groups) in [StepKind::Gated, StepKind::Plain].into_iter().zip(groups) {
                let problem = loaded(t, shape, format, kind == StepKind::Gated);
                let name = format!(
                    "quantizing_{}_{groups}_groups_{tokens}_tokens: 66 x 1 clusters of 2 blocks",
                    kind.name()
                );
                assert_eq!(plan(&problem, &HOPPER, &v4, kind), Some(name));
            }
        }
    }
    let starts = |problem: &MatmulProblem, quant: &Quantization, start: &str| {
        let plan = plan(problem, &HOPPER, quant, StepKind::Gated).unwrap();
        assert!(plan.starts_with(start), "{plan}");
    };
    let few = loaded(4, [4096, 4096], format, true);
    let widened = "moe_widen, then decode_gated_4_groups_8_tokens: ";
    let of = |group, scales| Quantization::new(group, scales).unwrap();
    starts(&few, &of(64, ScaleFormat::E8M0), widened);
    starts(&few, &of(128, ScaleFormat::F32), widened);
    let mut other = few;
    other.x = Float::F32;
    starts(&other, &v4, widened);
    other = few;
    other.x_aligned = false;
    starts(&other, &v4, widened);
    // Half a group of k.
    starts(&loaded(4, [4096, 4096 + 64], format, true), &v4, widened);
    let more = loaded(17, [4096, 4096], format, true);
    starts(
        &more,
        &v4,
        "widen_codes, then warpgroups_gated_1x4_32_tokens",
    );

    let gated =
        |problem: &MatmulProblem, facts: &MatmulFacts| plan(problem, facts, &v4, StepKind::Gated);
    assert_eq!(gated(&few, &ON_FP8), None);
    let none = loaded(0, [4096, 4096], format, true);
    assert_eq!((gated(&none, &HOPPER), none.gated(&HOPPER)), (None, None));
    assert_eq!(
        gated(&loaded(1100, [4096, 4096], format, true), &HOPPER),
        None
    );
    other = few;
    other.packing = None;
    assert_eq!(gated(&other, &HOPPER), None);
    let down = loaded(1100, [4096, 2048], format, false);
    let down = plan(&down, &HOPPER, &v4, StepKind::Plain).unwrap();
    assert_eq!(down, "widen_codes, then unpack_e4m3_to_bf16, then cublasLt");
}
