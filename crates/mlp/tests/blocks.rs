//! Weights in blocks that no released model has: per row, per matrix, odd.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu_core::{
    HostWeight, Limit, Rounding, ScaleFormat, WeightFormat, bf16, reference::Reference,
};
use swiglu_mlp::synthetic::synthetic_input;
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, HiddenAct, MlpConfig, Shard, SharedExpert};

mod common;
use common::{error, forward, load, plainly, stages};

const H: usize = 40;
const I: usize = 27;

/// Codes of either sign from 2^-3 to just below 2, and scales about `2^middle`: powers of two, or
/// in f32 numbers that are none.
fn weight(
    shape: [usize; 2],
    block: [usize; 2],
    scales: ScaleFormat,
    middle: i32,
    seed: u64,
) -> HostWeight<'static> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let codes = (0..shape[0] * shape[1]).map(|_| rng.u8(..) & 0x9f | 0x20);
    let codes: Vec<u8> = codes.collect();
    let format = WeightFormat::Fp8 { scales, block };
    let [rows, cols] = format.scale_grid(shape).unwrap();
    let mut bytes = vec![0; rows * cols * scales.size()];
    for at in 0..rows * cols {
        let scale = match scales {
            ScaleFormat::E8M0 => 2f32.powi(middle + rng.i32(-1..=1)),
            ScaleFormat::F32 => 2f32.powi(middle) * (0.5 + rng.f32()),
        };
        scales.write(&mut bytes, at, scale);
    }
    HostWeight::owned(shape, format, codes, bytes).unwrap()
}

/// Gate and up in blocks of `wide`, down in blocks of `down`.
fn expert(wide: [usize; 2], down: [usize; 2], scales: ScaleFormat) -> SharedExpert<'static> {
    SharedExpert::new(
        weight([I, H], wide, scales, 0, 1),
        weight([I, H], wide, scales, 0, 2),
        weight([H, I], down, scales, -2, 3),
    )
}

fn config(block: [usize; 2], activation_quant: ActivationQuant) -> MlpConfig {
    MlpConfig {
        hidden_size: H,
        intermediate_size: I,
        hidden_act: HiddenAct::Silu,
        limit: Some(Limit::new(10.0).unwrap()),
        rounding: Rounding::Official,
        block: Some(block),
        ue8m0: false,
        activation_quant,
        reduce_results: false,
        shard: Shard::WHOLE,
        prefix: String::new(),
    }
}

/// The blocks of gate and up, and of down.
const BLOCKS: [[[usize; 2]; 2]; 9] = [
    [[1, H], [1, I]],
    [[1, 1], [1, 1]],
    [[I, H], [H, I]],
    [[100, 100], [100, 100]],
    [[3, 5], [3, 5]],
    [[7, 11], [7, 11]],
    [[5, 1], [1, 5]],
    [[I, 1], [H, 1]],
    [[3, 5], [7, 11]],
];

#[test]
fn any_block_gives_the_definition() {
    let x = synthetic_input(3, H, 9);
    for [wide, down] in BLOCKS {
        for scales in ScaleFormat::ALL {
            let expert = expert(wide, down, scales);
            let mlp = load(&config(wide, ActivationQuant::None), &expert);
            let beyond = stages(&mlp, &x).0.iter().any(|v| v.to_f32() > 10.0);
            let off = error(&forward(&mlp, &x), &plainly(&expert, Some(10.0), &x));
            assert!(beyond && off < 1e-4, "{wide:?} {down:?} {scales}: {off}");
        }
    }
}

/// The activations of all ranks side by side.
fn sharded(expert: &SharedExpert<'_>, config: &MlpConfig, world: usize, x: &[bf16]) -> Vec<bf16> {
    let tokens = x.len() / H;
    let mut rows = vec![Vec::new(); tokens];
    let mut sum = vec![0.0_f64; x.len()];
    for rank in 0..world {
        let shard = Shard {
            rank,
            world,
            disable_tp: false,
        };
        let config = MlpConfig {
            shard,
            ..config.clone()
        };
        let mlp = load(&config, expert);
        assert!(
            world == 1 || mlp.intermediate_size() < I,
            "one rank has it all"
        );
        let (_, act, y) = stages(&mlp, x);
        for (row, part) in rows.iter_mut().zip(act.chunks(act.len() / tokens)) {
            row.extend_from_slice(part);
        }
        for (sum, y) in sum.iter_mut().zip(y) {
            *sum += f64::from(y);
        }
    }
    let whole = stages(&load(config, expert), x).2;
    for (sum, y) in sum.iter().zip(whole) {
        assert!((sum - f64::from(y)).abs() < 1e-4, "{sum} {y}");
    }
    rows.iter().flat_map(|row| &row[..I]).copied().collect()
}

/// All three weights are cut at the same columns of `act`: at whole blocks, and within a block that
/// holds all columns.
#[test]
fn shards_of_any_block_are_the_whole() {
    let x = synthetic_input(2, H, 9);
    for [wide, down] in BLOCKS {
        for scales in ScaleFormat::ALL {
            let expert = expert(wide, down, scales);
            let config = config(wide, ActivationQuant::None);
            let act = stages(&load(&config, &expert), &x).1;
            for world in [1, 2, 3, 4, 16] {
                let shards = sharded(&expert, &config, world, &x);
                assert_eq!(shards, act, "{wide:?} {down:?} {scales} of {world}");
            }
        }
    }
}

/// Where a row or a whole matrix shares a scale every rank gets its even part.
#[test]
fn scales_of_rows_and_matrices_leave_every_rank_its_part() {
    for [wide, down] in [[[1, H], [1, I]], [[I, H], [H, I]]] {
        let expert = expert(wide, down, ScaleFormat::F32);
        for (world, width) in [(2, 14), (3, 9), (4, 7), (16, 2)] {
            let shard = Shard {
                rank: world - 2,
                world,
                disable_tp: false,
            };
            let config = MlpConfig {
                shard,
                ..config(wide, ActivationQuant::None)
            };
            assert_eq!(load(&config, &expert).intermediate_size(), width);
        }
    }
}

/// Groups of quantized activations stay whole, and so do their blocks.
#[test]
fn shards_of_quantized_activations_keep_their_groups() {
    let x = synthetic_input(2, H, 9);
    let down = [3, 32];
    let long = |shape: [usize; 2], block, seed| weight(shape, block, ScaleFormat::F32, -2, seed);
    // 90 columns: groups of 32, 32 and 26; gate and up in blocks that are no divisors of them.
    let expert = SharedExpert::new(
        long([90, H], [7, 32], 1),
        long([90, H], [7, 32], 2),
        long([H, 90], down, 3),
    );
    let whole = MlpConfig {
        intermediate_size: 90,
        ..config(down, ActivationQuant::Fp8Block)
    };
    let y = stages(&load(&whole, &expert), &x);
    let mut act = vec![Vec::new(); 2];
    let mut sum = vec![0.0_f64; x.len()];
    for rank in 0..3 {
        let shard = Shard {
            rank,
            world: 3,
            disable_tp: false,
        };
        let config = MlpConfig {
            shard,
            ..whole.clone()
        };
        let mlp = load(&config, &expert);
        assert_eq!(mlp.intermediate_size(), 32);
        let part = stages(&mlp, &x);
        for (row, part) in act.iter_mut().zip(part.1.chunks(32)) {
            row.extend_from_slice(part);
        }
        for (sum, y) in sum.iter_mut().zip(part.2) {
            *sum += f64::from(y);
        }
    }
    let act: Vec<bf16> = act.iter().flat_map(|row| &row[..90]).copied().collect();
    assert_eq!(act, y.1);
    for (sum, y) in sum.iter().zip(&y.2) {
        assert!((sum - f64::from(*y)).abs() < 1e-4, "{sum} {y}");
    }
}

#[test]
fn rows_of_any_number_share_a_scale_with_fp8_activations() {
    let x = synthetic_input(3, H, 9);
    for (rows, width) in [(1, 32), (3, 64), (5, 128), (100, 32)] {
        let block = [rows, width];
        let expert = expert(block, block, ScaleFormat::F32);
        let y = forward(
            &load(&config(block, ActivationQuant::Fp8Block), &expert),
            &x,
        );
        let plain = plainly(&expert, Some(10.0), &x);
        // Codes of three bits: what is lost is a few per cent, and more where a scale is missed.
        let off = error(&y, &plain);
        assert!(1e-3 < off && off < 0.08, "{block:?}: {off}");
    }
}

#[test]
fn widths_without_groups_are_refused_with_fp8_activations() {
    let refused = |block: [usize; 2], down| {
        let expert = expert(block, down, ScaleFormat::E8M0);
        let config = config(block, ActivationQuant::Fp8Block);
        let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &config, &expert);
        mlp.err().unwrap().to_string()
    };
    for block in [[1, H], [3, 5], [1, 1]] {
        let message = refused(block, block);
        let expected = "block: expected a width of 128, 64 or 32 for FP8 activations, got";
        assert!(message.starts_with(expected), "{message}");
    }
    let message = refused([1, 32], [1, I]);
    let expected = "down: expected blocks 32 columns wide, got 27";
    assert!(message.starts_with(expected), "{message}");
}
