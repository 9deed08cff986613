use super::*;
use swiglu_core::ScaleFormat;

const HOPPER: MatmulFacts = MatmulFacts {
    capability: Capability { major: 9, minor: 0 },
    library: Some(LibraryKind::BlockScaling),
    accumulation: Accumulation::MatrixUnit,
};

fn problem(t: usize, weight: WeightFormat) -> MatmulProblem {
    let shape = Shape {
        rows: t,
        cols: 512,
        depth: 1024,
    };
    MatmulProblem::of_shape(&shape, (Float::BF16, weight, Float::BF16)).unwrap()
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
    for t in [1, 64, 4096] {
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
        };
        assert_eq!(way(t), MatmulPlan::Own(own), "{t}");
    }
    assert_eq!(way(65), MatmulPlan::Decode);
    assert_eq!(way(4096), MatmulPlan::Decode);
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
    for format in WeightFormat::SAMPLES {
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
    assert_eq!(by(1, v4, Route::Decode), Some(MatmulPlan::Decode));
    assert_eq!(by(1, v4, Route::Library), None);
    let bf16 = WeightFormat::Float(Float::BF16);
    assert_eq!(by(1, bf16, Route::Decode), None);
    assert!(by(5000, bf16, Route::Rows).is_some());
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
    assert_eq!(text(1, WeightFormat::Float(Float::BF16)), "cublasLt");
    let narrow = fp8(ScaleFormat::F32, [32, 32]);
    let expected = "matmul_8_rows_bf16_e4m3_narrow: 32 x 1 blocks";
    assert_eq!(text(1, narrow), expected);
}

const CODES: CodesProblem = CodesProblem {
    t: 64,
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
fn codes_that_do_not_fit_are_widened() {
    let with = |change: fn(&mut CodesProblem)| {
        let mut problem = CODES;
        change(&mut problem);
        CodesPlan::new(&problem, &ON_FP8)
    };
    let changes: [fn(&mut CodesProblem); 8] = [
        |p| p.t = 63,
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
    let in_place = with(|p| {
        p.scales_in_columns = true;
        p.scratch_aligned = false;
    });
    assert_eq!(in_place, Some(CodesPlan::ScalesInPlace));
}
