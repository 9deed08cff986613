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

/// The first half of V4-Flash.
fn flash(tokens: usize) -> ExpertsProblem {
    ExpertsProblem {
        half: Half::Gated,
        routes: 6 * tokens,
        all_experts: 256,
        experts: 256,
        outputs: 2048,
        k: 4096,
        x: Float::BF16,
        format: ExpertFormat::E2m1,
        block_columns: None,
        x_aligned: true,
        y_aligned: true,
    }
}

fn kernel(problem: &ExpertsProblem) -> ExpertsKernel {
    let plan = ExpertsPlan::new(problem, &facts(Accumulation::MatrixUnit));
    plan.unwrap().kernel
}

#[test]
fn the_kernel_follows_from_the_rows_that_an_expert_has_on_average() {
    use ExpertsKernel::{Any, Rows8, Rows8Halves, Rows16, Rows32, Tiles, Warpgroups};
    for (tokens, expected) in [
        (1, Rows8),
        (64, Rows8),
        (170, Rows8),
        (171, Rows32),
        (682, Rows32),
        (683, Tiles),
        (4096, Tiles),
    ] {
        assert_eq!(kernel(&flash(tokens)), expected, "{tokens} tokens");
    }
    let packed = |tokens| {
        kernel(&ExpertsProblem {
            format: ExpertFormat::PackedE2m1,
            ..flash(tokens)
        })
    };
    for (tokens, expected) in [
        (1, Rows8Halves),
        (2, Rows8),
        (341, Rows8),
        (342, Rows16),
        (512, Rows16),
        (513, Warpgroups),
        (4096, Warpgroups),
    ] {
        assert_eq!(packed(tokens), expected, "{tokens} tokens, packed");
    }
    // A rank with a part of the experts runs the same.
    let part = ExpertsProblem {
        experts: 8,
        ..flash(64)
    };
    assert_eq!(kernel(&part), Rows8);
    for (what, problem) in [
        (
            "x in f32",
            ExpertsProblem {
                x: Float::F32,
                ..flash(1)
            },
        ),
        (
            "x between vectors",
            ExpertsProblem {
                x_aligned: false,
                ..flash(1)
            },
        ),
        (
            "weights in f16",
            ExpertsProblem {
                format: ExpertFormat::F16,
                ..flash(1)
            },
        ),
        (
            "rows of no whole vectors",
            ExpertsProblem {
                k: 4088,
                ..flash(1)
            },
        ),
    ] {
        assert_eq!(kernel(&problem), Any, "{what}");
    }
    let ordered = ExpertsPlan::new(&flash(1), &facts(Accumulation::Ordered));
    assert_eq!(ordered.unwrap().kernel, Any);
}

#[test]
fn warpgroups_store_whole_vectors_and_keep_fewer_words() {
    let packed = ExpertsProblem {
        format: ExpertFormat::PackedE2m1,
        ..flash(4096)
    };
    let of = |experts, y_aligned| {
        kernel(&ExpertsProblem {
            routes: 96 * experts,
            all_experts: experts,
            y_aligned,
            ..packed
        })
    };
    assert_eq!(of(256, true), ExpertsKernel::Warpgroups);
    assert_eq!(of(256, false), ExpertsKernel::Rows16);
    assert_eq!(of(2048, true), ExpertsKernel::Warpgroups);
    assert_eq!(of(2049, true), ExpertsKernel::Rows16);
    let ordered = ExpertsPlan::new(&packed, &facts(Accumulation::Ordered)).unwrap();
    assert_eq!(
        (ordered.kernel, ordered.gathers()),
        (ExpertsKernel::Any, false)
    );
    let plan = ExpertsPlan::new(&packed, &facts(Accumulation::MatrixUnit)).unwrap();
    assert!(plan.gathers());
    let text = "experts_gather, then experts_gated_warpgroups_packed: 132 blocks";
    assert_eq!(plan.to_string(), text);
}

#[test]
fn blocks_of_scales_are_whole_steps() {
    let of = |tokens, block_columns| {
        kernel(&ExpertsProblem {
            format: ExpertFormat::E4m3,
            block_columns,
            ..flash(tokens)
        })
    };
    assert_eq!(of(1, Some(128)), ExpertsKernel::Rows8);
    assert_eq!(of(1, None), ExpertsKernel::Rows8);
    assert_eq!(of(1, Some(32)), ExpertsKernel::Any);
    assert_eq!(of(4096, Some(32)), ExpertsKernel::Tiles);
    assert_eq!(of(4096, Some(48)), ExpertsKernel::Any);
}

#[test]
fn a_launch_has_no_more_blocks_than_work_or_room() {
    let plan =
        |problem: &ExpertsProblem| ExpertsPlan::new(problem, &facts(Accumulation::MatrixUnit));
    // Six experts, 2048 outputs by eight.
    let one = plan(&flash(1)).unwrap();
    assert_eq!((one.pieces, one.blocks), (256, 3 * 132));
    // Two blocks of packed ones are a multiprocessor's.
    let packed = ExpertsProblem {
        format: ExpertFormat::PackedE2m1,
        ..flash(1)
    };
    assert_eq!(plan(&packed).unwrap().blocks, 2 * 132);
    // Clusters of two take an item together: one with 17 rows by 96 outputs is one.
    let clusters = |routes, outputs| {
        let problem = ExpertsProblem {
            routes,
            all_experts: 1,
            experts: 1,
            outputs,
            ..packed
        };
        plan(&problem)
            .map(|plan| (plan.pieces, plan.blocks))
            .unwrap()
    };
    assert_eq!(clusters(17, 96), (1, 2));
    assert_eq!(clusters(129, 264), (2, 8));
    assert_eq!(clusters(1 << 20, 2048), (8, 132));
    let few = ExpertsProblem {
        routes: 1,
        outputs: 96,
        ..flash(1)
    };
    assert_eq!(plan(&few).unwrap().blocks, 12);
    assert_eq!(flash(64).most_tiles(8), 256 + (384 - 256) / 8);
    assert_eq!(flash(1).most_tiles(8), 6);
    let none = ExpertsProblem {
        experts: MOST_EXPERTS + 1,
        ..flash(1)
    };
    assert_eq!(plan(&none), None);
    let many = ExpertsProblem {
        routes: i32::MAX as usize,
        outputs: 1 << 20,
        ..flash(1)
    };
    assert_eq!(plan(&many), None);
}

#[test]
fn shared_memory_fits_and_is_that_of_the_kernels() {
    let source = include_str!("../../../kernels/moe/experts_tiles.cu");
    let constants = "W_TILE = 128, X_TILE = 64, DEPTH = 32, STAGES = 6";
    assert!(source.contains(constants));
    for format in FORMATS {
        for kernel in ExpertsKernel::of_format(format) {
            // What a block may have on the smallest device, or on Hopper.
            let (most, reserved) = match kernel {
                ExpertsKernel::Warpgroups => (227 * 1024, 1024),
                _ if format == ExpertFormat::PackedE2m1 => (227 * 1024, 1024 + 4352),
                _ => (99 * 1024, 0),
            };
            let shared = kernel.shared(format, kernel.most_experts());
            assert!(shared + reserved <= most, "{kernel:?}");
        }
        if format == ExpertFormat::PackedE2m1 {
            let source = include_str!("../../../kernels/moe/experts_packed.cu");
            for (kernel, rows, name) in [
                (ExpertsKernel::Rows8Halves, 8, "packed_halves, 2"),
                (ExpertsKernel::Rows8, 8, "packed, 1"),
                (ExpertsKernel::Rows16, 16, "packed, 1"),
            ] {
                let (threads, resident) = (kernel.threads(format), kernel.resident(format));
                let (warps, rings) = (threads / 32, kernel.shared(format, 0));
                // Rings of so many copies of so many units of 16 by 128 codes.
                let units = rings / warps / 2 / (16 * 128 * 17 / 32);
                let line =
                    format!("KERNEL(down, false, {rows}, {name}, {warps}, {resident}, 2, {units})");
                assert!(source.contains(&line), "{line}");
                // What the blocks of a multiprocessor may have on Hopper, with 1 KB and the kernel's own of each.
                let of_block = kernel.shared(format, 256) as usize + 1024 + 512;
                assert!(of_block * resident <= 228 * 1024, "{kernel:?}");
            }
            let source = include_str!("../../../kernels/moe/experts_warpgroups.cu");
            assert!(source.contains("using Gathered = GatheredShape<2, 2, 128, 3>;"));
            let [groups, unit] = [16, 16 * 128 * 17 / 32];
            let [stages, sums] = [3 * (128 * 256 + groups * unit + 16), 128 * groups * 32];
            let shared = ExpertsKernel::Warpgroups.shared(format, 5) as usize;
            assert_eq!(shared, stages + sums + 4 * 5);
            assert_eq!(ExpertsKernel::Warpgroups.threads(format), 384);
            continue;
        }
        let without = ExpertsKernel::Rows8.shared(format, MOST_EXPERTS);
        assert!(
            without <= 48 * 1024 - 10_000,
            "with the kernels' own variables"
        );
    }
}
