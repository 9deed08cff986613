//! `swiglu run` on several ranks: their output is that of one, over threads and over MPI.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use std::sync::Arc;

use common::{Folder, expect, read, swiglu, write};
use safetensors::Dtype;
use serde_json::Value;
use swiglu::cpu::CpuBackend;
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{
    ActivationQuant, Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig, Shard, SharedExpert,
    Workspace,
};
use swiglu::{Element, RowLayout, Tensor, TensorMut, bf16};

const TOKENS: usize = 5;
const HIDDEN: usize = 200;
/// Sixteen blocks of 32, the last of them partial.
const INTERMEDIATE: usize = 500;
const BLOCK: usize = 32;
const WORLDS: [usize; 4] = [2, 3, 4, 16];

fn form() -> SyntheticConfig {
    SyntheticConfig {
        hidden: HIDDEN,
        intermediate: INTERMEDIATE,
        block: BLOCK,
        ..SyntheticConfig::flash(7)
    }
}

fn input(seed: u64) -> Vec<bf16> {
    synthetic_input(TOKENS, HIDDEN, seed)
}

/// A folder with a checkpoint and the inputs `x` and `other`.
fn checkpoint() -> Folder {
    let folder = Folder::new();
    write_checkpoint(folder.path("").as_path(), &form()).unwrap();
    for (name, seed) in [("x", 7), ("other", 8)] {
        let x = input(seed);
        let tensor = (
            "x",
            Dtype::BF16,
            &[TOKENS, HIDDEN][..],
            bytemuck::cast_slice(&x),
        );
        write(&folder.path(name), &[tensor]);
    }
    folder
}

/// `swiglu run` on files of the folder, with more flags.
fn command(folder: &Folder, input: &str, more: &[&str]) -> Vec<String> {
    let path = |name| folder.path(name).display().to_string();
    let (checkpoint, input, output, prefix) = (path(""), path(input), path("y"), form().prefix());
    let run = [
        "run",
        "--checkpoint",
        &checkpoint,
        "--prefix",
        &prefix,
        "--input",
        &input,
    ];
    let all = run.into_iter().chain(["--output", &output]);
    all.chain(more.iter().copied()).map(str::to_owned).collect()
}

fn run(code: i32, folder: &Folder, more: &[&str]) -> String {
    let command = command(folder, "x", more);
    expect(
        code,
        &command.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

fn output(folder: &Folder) -> Vec<bf16> {
    let (dtype, shape, bytes) = read(&folder.path("y"), "y");
    assert_eq!((dtype, shape), (Dtype::BF16, vec![TOKENS, HIDDEN]));
    std::fs::remove_file(folder.path("y")).unwrap();
    bytemuck::allocation::pod_collect_to_vec(&bytes)
}

/// How many elements are more than one step of bf16 apart.
fn apart(a: &[bf16], b: &[bf16]) -> usize {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs
        .filter(|(a, b)| Element::ulps_between(**a, **b) > 1)
        .count()
}

/// What a rank of so many would give if nothing were added.
fn partial(folder: &Folder, activations: &str, rank: usize, world: usize) -> Vec<bf16> {
    let model = ModelConfig::from_file(&folder.path("config.json")).unwrap();
    let checkpoint = Checkpoint::open(&folder.path("")).unwrap();
    let config = MlpConfig {
        activation_quant: match activations {
            "fp8" => ActivationQuant::Fp8Block,
            _ => ActivationQuant::None,
        },
        reduce_results: false,
        shard: Shard {
            rank,
            world,
            disable_tp: false,
        },
        ..model.mlp_config(&form().prefix()).unwrap()
    };
    let expert = SharedExpert::load(&checkpoint, &config).unwrap();
    let mlp = DeepseekV4Mlp::load(Arc::new(CpuBackend::new()), &config, &expert).unwrap();
    let layout = RowLayout::contiguous(TOKENS, HIDDEN);
    let (x, mut y) = (input(7), vec![bf16::ZERO; TOKENS * HIDDEN]);
    let to = TensorMut::from_slice(&mut y, layout);
    let from = Tensor::from_slice(&x, layout);
    mlp.forward(from, to, &mut Workspace::new()).unwrap();
    y
}

/// The columns of `act` that each rank has: whole blocks.
fn share(world: usize) -> usize {
    INTERMEDIATE.div_ceil(BLOCK).div_ceil(world) * BLOCK
}

#[test]
fn threads_give_the_output_of_one_rank() {
    let folder = checkpoint();
    for activations in ["bf16", "fp8"] {
        let always = ["--platform", "cpu", "--activations", activations];
        run(0, &folder, &[&always[..], &["--ranks", "1"]].concat());
        let whole = output(&folder);
        for world in WORLDS {
            let number = world.to_string();
            let flags = ["--ranks", &number, "--rank-timeout", "600", "--json"];
            let printed = run(0, &folder, &[&always[..], &flags].concat());
            let got = output(&folder);
            assert_eq!(apart(&got, &whole), 0, "{activations} on {world} ranks");
            let report: Value = serde_json::from_str(&printed).unwrap();
            let ranks = &report["ranks"];
            assert_eq!(ranks["world"], world, "{ranks}");
            assert_eq!(ranks["intermediate_size"], share(world), "{ranks}");
            assert_eq!(ranks["communicator"], "threads", "{ranks}");
            // A sum that is lost on the way would show.
            for rank in 0..world {
                let part = partial(&folder, activations, rank, world);
                let wrong = apart(&part, &whole);
                assert!(wrong > whole.len() / 2, "rank {rank} of {world}: {wrong}");
            }
        }
    }
}

/// What changes y on one rank changes it on several.
#[test]
fn the_settings_reach_every_rank() {
    let folder = checkpoint();
    let y = |flags: &[&str]| {
        run(0, &folder, &[&["--platform", "cpu"], flags].concat());
        output(&folder)
    };
    let plain = y(&["--ranks", "3"]);
    for flags in [["--limit", "none"], ["--rounding", "eager"]] {
        let one = y(&flags);
        let three = y(&[&flags[..], &["--ranks", "3", "--no-mmap"]].concat());
        assert_eq!(apart(&three, &one), 0, "{flags:?}");
        assert_ne!(three, plain, "{flags:?}");
    }
}

#[test]
fn ranks_are_told_in_prose() {
    let folder = checkpoint();
    let printed = run(0, &folder, &["--ranks", "4", "--communicator", "threads"]);
    let line = format!("ranks    4 over threads, I={} each", share(4));
    assert!(printed.contains(&line), "{printed}");
    assert!(printed.contains("platform cpu"), "{printed}");
    let printed = run(0, &folder, &["--communicator", "threads"]);
    assert!(!printed.contains("ranks "), "{printed}");
}

#[test]
fn what_ranks_do_not_do_is_an_error() {
    let folder = checkpoint();
    for (flags, expected) in [
        (
            &["--ranks", "2", "--stages"][..],
            "stages: expected one rank",
        ),
        (
            &["--ranks", "2", "--platform", "reference"],
            "platform: expected cpu or auto",
        ),
        (&["--ranks", "2", "--device", "1"], "device: expected 0"),
        (&["--ranks", "0"], "--ranks"),
        (&["--ranks=-2"], "--ranks"),
        (
            &["--ranks", "257"],
            "ranks: expected from 1 to 256 threads, got 257",
        ),
        (&["--ranks", "2", "--rank-timeout", "0"], "--rank-timeout"),
        (&["--rank-timeout", "1"], "--rank"),
        (
            &["--ranks", "2", "--communicator", "nccl"],
            "--communicator",
        ),
    ] {
        let message = run(2, &folder, flags);
        assert!(message.contains(expected), "{flags:?}: {message}");
        assert!(!folder.path("y").exists(), "{flags:?}");
    }
    let two = command(&folder, "x", &["--ranks", "2"]);
    let two: Vec<_> = two.iter().map(String::as_str).collect();
    let fails = |variable, value| {
        let output = swiglu(&two)
            .env(variable, value)
            .assert()
            .code(2)
            .get_output()
            .clone();
        String::from_utf8(output.stderr).unwrap()
    };
    let message = fails("SWIGLU_PLATFORM", "reference");
    assert!(
        message.contains("platform: expected cpu or auto"),
        "{message}"
    );
    let message = fails("SWIGLU_OPS", "none");
    assert!(message.contains("SWIGLU_OPS: expected"), "{message}");
    swiglu(&two)
        .env("SWIGLU_PLATFORM", "auto")
        .assert()
        .success();
    if cfg!(not(feature = "mpi")) {
        let message = run(2, &folder, &["--communicator", "mpi"]);
        assert!(message.contains("built without the features"), "{message}");
    }
}

#[cfg(feature = "mpi")]
mod mpi {
    use std::process::{Command, Output};
    use std::time::Duration;

    use swiglu::mpi::MpiCommunicator;
    use swiglu::mpi::mpi::topology::Communicator;
    use swiglu::mpi::mpi::{Threading, initialize_with_threading};

    use super::*;

    /// Runs commands, each on so many of the processes; `None` where MPI cannot start any here.
    #[allow(clippy::print_stderr)] // To say that nothing was checked.
    fn mpirun(test: &str, parts: &[(usize, Vec<String>)]) -> Option<Output> {
        let mut command = Command::new("mpirun");
        for (name, value) in [
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ] {
            command.env(name, value);
        }
        for name in [
            "SWIGLU_PLATFORM",
            "SWIGLU_DEVICE",
            "SWIGLU_OPS",
            "SWIGLU_ACCUMULATION",
        ] {
            command.env_remove(name);
        }
        for (n, (count, part)) in parts.iter().enumerate() {
            command.args((n > 0).then_some(":"));
            command.args(["-np", &count.to_string()]).args(part);
        }
        match command.output() {
            Ok(output) => Some(output),
            Err(error) => {
                eprintln!("{test}: skipped: mpirun: {error}");
                None
            }
        }
    }

    fn program(run: Vec<String>) -> Vec<String> {
        let program = assert_cmd::cargo::cargo_bin!("swiglu")
            .display()
            .to_string();
        std::iter::once(program).chain(run).collect()
    }

    /// The lines of the program's own on standard error of a run that failed.
    fn told(output: &Output) -> Vec<String> {
        assert!(!output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        let lines = text.lines().filter(|line| line.starts_with("swiglu: "));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn processes_give_the_output_of_one_rank() {
        let folder = checkpoint();
        for activations in ["bf16", "fp8"] {
            let always = ["--activations", activations];
            run(0, &folder, &[&always[..], &["--platform", "cpu"]].concat());
            let whole = output(&folder);
            let flags = ["--communicator", "mpi", "--ranks", "4", "--json"];
            let four = program(command(&folder, "x", &[&always[..], &flags].concat()));
            let Some(ran) = mpirun("processes_give_the_output_of_one_rank", &[(4, four)]) else {
                return;
            };
            assert!(ran.status.success(), "{ran:?}");
            assert_eq!(apart(&output(&folder), &whole), 0, "{activations}");
            // Rank 0 alone prints: this is one document.
            let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
            let ranks = &report["ranks"];
            assert_eq!(ranks["world"], 4, "{ranks}");
            assert_eq!(ranks["intermediate_size"], share(4), "{ranks}");
            assert_eq!(ranks["communicator"], "mpi", "{ranks}");
        }
    }

    #[test]
    fn one_process_is_one_rank() {
        let folder = checkpoint();
        let flags = [
            "--communicator",
            "mpi",
            "--stages",
            "--platform",
            "reference",
        ];
        for (more, code) in [(&["--ranks", "1"][..], 0), (&[], 0), (&["--ranks", "2"], 2)] {
            let one = program(command(&folder, "x", &[&flags[..], more].concat()));
            let Some(ran) = mpirun("one_process_is_one_rank", &[(1, one)]) else {
                return;
            };
            assert_eq!(ran.status.code(), Some(code), "{ran:?}");
            if code != 0 {
                assert!(told(&ran)[0].contains("ranks: expected 1"), "{ran:?}");
            }
        }
    }

    #[test]
    fn an_error_ends_all_processes_and_is_told_once() {
        let folder = checkpoint();
        let run = |input, more: &[&str]| {
            program(command(
                &folder,
                input,
                &[&["--communicator", "mpi"], more].concat(),
            ))
        };
        let good = || run("x", &[]);
        for (parts, expected) in [
            (vec![(3, run("absent", &[]))], "absent"),
            (
                vec![(1, good()), (1, run("absent", &[])), (1, good())],
                "absent",
            ),
            (vec![(3, run("x", &["--ranks", "2"]))], "ranks: expected 3"),
            (
                vec![(2, run("x", &["--stages"]))],
                "stages: expected one rank",
            ),
            (
                vec![(2, good()), (1, run("other", &[]))],
                "got others on rank 2",
            ),
            (
                vec![(1, good()), (1, run("x", &["--limit", "9"]))],
                "got others on rank 1",
            ),
        ] {
            let Some(ran) = mpirun("an_error_ends_all_processes_and_is_told_once", &parts) else {
                return;
            };
            let told = told(&ran);
            assert_eq!(told.len(), 1, "{ran:?}");
            assert!(told[0].contains(expected), "{told:?}");
            assert!(!folder.path("y").exists(), "{parts:?}");
        }
    }

    #[test]
    fn a_process_that_does_not_come_is_an_error_after_the_time_out() {
        let folder = checkpoint();
        let flags = ["--communicator", "mpi", "--rank-timeout", "0.3"];
        let waiting = program(command(&folder, "x", &flags));
        let test = std::env::current_exe().unwrap().display().to_string();
        let sleeper = [
            &test,
            "--ignored",
            "--exact",
            "mpi::a_process_that_only_sleeps",
        ];
        let sleeper = sleeper.map(str::to_owned).to_vec();
        let parts = [(1, waiting), (1, sleeper)];
        let name = "a_process_that_does_not_come_is_an_error_after_the_time_out";
        if let Some(ran) = mpirun(name, &parts) {
            let told = told(&ran);
            assert_eq!(told.len(), 1, "{ran:?}");
            assert!(told[0].contains("did not come within 300ms"), "{told:?}");
        }
    }

    /// What the other process waits for in vain, until it ends this one.
    #[test]
    #[ignore = "a part of the test above"]
    fn a_process_that_only_sleeps() {
        let (universe, _) = initialize_with_threading(Threading::Serialized).unwrap();
        let group = MpiCommunicator::new(&universe.world(), Duration::from_secs(1)).unwrap();
        if universe.world().size() > 1 {
            std::thread::sleep(Duration::from_secs(600));
        }
        drop(group);
    }
}
