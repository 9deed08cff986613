//! A whole layer on the CPU: a second pass allocates nothing, and gives the same.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]
#![cfg(feature = "cpu")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use swiglu::cpu::CpuBackend;
use swiglu::mlp::synthetic::{
    SyntheticConfig, SyntheticMoe, synthetic_input, write_moe_checkpoint,
};
use swiglu::mlp::{
    ActivationQuant, Checkpoint, DeepseekV4Moe, ModelConfig, MoeWeights, MoeWorkspace,
};
use swiglu::{RowLayout, Tensor, TensorMut, Tokens, bf16};

/// The system's allocator, counting for each thread by itself.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged. Counting touches a constant-made
// cell of the thread, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may allocate after its counter has gone.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller answers for the layout; so below.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_second_pass_allocates_nothing() {
    let form = SyntheticMoe {
        shared: SyntheticConfig {
            hidden: 256,
            intermediate: 128,
            ..SyntheticConfig::flash(1)
        },
        ..SyntheticMoe::flash(16, 1)
    };
    let folder = tempfile::tempdir().unwrap();
    write_moe_checkpoint(folder.path(), &form).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    // One thread, which counts all that it does.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.unwrap();
    for mode in [ActivationQuant::None, ActivationQuant::Fp8Block] {
        let mut config = model.moe_config(&form.prefix()).unwrap();
        config.shared.activation_quant = mode;
        let weights = MoeWeights::load(&checkpoint, &config).unwrap();
        let backend = Arc::new(CpuBackend::new());
        let layer = DeepseekV4Moe::load(backend, &config, &weights).unwrap();
        let x = synthetic_input(20, 256, 7);
        let mut workspace = MoeWorkspace::new();
        let mut pass = |tokens: usize| {
            pool.install(|| {
                let mut y = vec![bf16::ZERO; tokens * 256];
                let before = ALLOCATIONS.get();
                let rows = RowLayout::contiguous(tokens, 256);
                let from = Tensor::from_slice(&x, rows);
                let to = TensorMut::from_slice(&mut y, rows);
                let none = Tokens::default();
                layer.forward(from, none, to, &mut workspace).unwrap();
                (ALLOCATIONS.get() - before, y)
            })
        };
        let (first, y) = pass(20);
        assert!(first > 0, "the workspace grows");
        for tokens in [20, 1, 0, 7, 20] {
            let (count, again) = pass(tokens);
            assert_eq!(count, 0, "{mode:?}, {tokens} tokens");
            if tokens == 20 {
                assert_eq!(again, y);
            }
        }
    }
}
