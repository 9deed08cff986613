//! What the environment says to the program.

use std::fmt::Write;

use swiglu::{Dispatch, OpSwitches, OpenOptions};

/// Every variable that the program or its libraries read, and what it does.
pub const VARIABLES: [(&str, &str); 10] = [
    (
        Dispatch::PLATFORM_VARIABLE,
        "the platform, or auto: what --platform does",
    ),
    (
        OpenOptions::DEVICE_VARIABLE,
        "the number of the platform's device: what --device does",
    ),
    (
        OpenOptions::ACCUMULATION_VARIABLE,
        "how exact the sums of matmuls are: what --accumulation does",
    ),
    (
        OpSwitches::VARIABLE,
        "operators that run on the scalar reference: all, none, +NAME, -NAME, separated by commas",
    ),
    (
        "SWIGLU_ALLOW_SOFTWARE",
        "1 lets wgpu take a rasterizer in software for a GPU",
    ),
    (
        "SWIGLU_CACHE_DIR",
        "the folder in which wgpu keeps compiled pipelines; the user's unless given, none if empty",
    ),
    ("SWIGLU_SEED", "the seed of what verify makes up at random"),
    ("WGPU_ADAPTER_NAME", "wgpu's device, by a part of its name"),
    ("WGPU_BACKEND", "wgpu's interfaces, such as vulkan or dx12"),
    (
        "RAYON_NUM_THREADS",
        "the threads of the CPU; as many as there are cores unless given",
    ),
];

/// The variables as help lists them.
pub fn help() -> String {
    let mut text = "Environment variables (a flag of the same meaning wins):".to_owned();
    for (name, what) in VARIABLES {
        // To a String nothing fails.
        let _ = write!(text, "\n  {name:<22} {what}");
    }
    text
}

/// The version with what was built in.
pub fn version() -> String {
    let features = [
        ("cpu", cfg!(feature = "cpu")),
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("mpi", cfg!(feature = "mpi")),
    ];
    let built_in = features.iter().filter(|(_, is)| *is).map(|(name, _)| *name);
    let built_in: Vec<_> = built_in.collect();
    let built_in = match built_in.as_slice() {
        [] => "none".to_owned(),
        features => features.join(", "),
    };
    format!("{} (features: {built_in})", env!("CARGO_PKG_VERSION"))
}
