//! The formulas of the activations' kernels and the layout of packed experts, compiled for the host: their own text, in which the few
//! instructions of the GPU are replaced by what they do. It needs a C++ compiler, and no GPU.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernels' headers that hold formulas, in the order in which they build on one another.
const HEADERS: [&str; 4] = [
    include_str!("../kernels/common/numbers.cuh"),
    include_str!("../kernels/common/memory.cuh"),
    include_str!("../kernels/activation/functions.cuh"),
    include_str!("../kernels/moe/packed.cuh"),
];

/// Lines that only a CUDA compiler takes, and what they do.
const LINES: [[&str; 2]; 6] = [
    [
        r#"asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(limit));"#,
        "y = min_NaN(x, limit);",
    ],
    [
        r#"asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(limit));"#,
        "y = max_NaN(x, limit);",
    ],
    [
        r#"asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(fabsf(z) * -0.72134751f));"#,
        "root = ex2_approx_ftz(fabsf(z) * -0.72134751f);",
    ],
    [
        r#"asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(z * -1.44269502f));"#,
        "e = ex2_approx_ftz(z * -1.44269502f);",
    ],
    [
        r#"asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));"#,
        "y = rcp_approx_ftz(x);",
    ],
    [
        "__INTADDR__(&((TYPE*)0)->FIELD)",
        "__builtin_offsetof(TYPE, FIELD)",
    ],
];

/// What the compiler must know beside C++.
const NEEDED: &str =
    "#include <bit>\nint main() { return (int)std::bit_cast<_Float16>((short)0); }";

/// The headers as one that any compiler takes.
fn header() -> String {
    let mut text = HEADERS.concat();
    for [line, replacement] in LINES {
        assert!(text.contains(line), "no longer in the kernels: {line}");
        text = text.replace(line, replacement);
    }
    let directives = ["#include", "#pragma once"];
    let kept = text
        .lines()
        .filter(|line| !directives.iter().any(|d| line.starts_with(d)));
    kept.fold("#include \"cuda.h\"\n".to_owned(), |text, line| {
        text + line + "\n"
    })
}

/// Compiles a source of the folder; what the compiler said where it did not.
fn compile(folder: &Path, source: &str) -> Result<PathBuf, String> {
    let program = folder.join(source).with_extension("out");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .current_dir(folder)
        .args(["-std=c++20", "-O1", "-ffp-contract=off", "-w", "-I."])
        .arg(source)
        .arg("-o")
        .arg(&program)
        .output()
        .map_err(|error| format!("{compiler}: {error}"))?;
    if output.status.success() {
        return Ok(program);
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// In every type: gates far below zero and tiny ones, up halves of every size, special values.
#[test]
fn formulas_keep_what_f64_keeps() {
    check("check.cpp", include_str!("host/check.cpp"));
}

/// Every code at each of a word's places, every scale, and that no two share a byte.
#[test]
fn packed_experts_are_what_was_packed() {
    check("packed.cpp", include_str!("host/packed.cpp"));
}

/// Compiles a source with the headers, and runs it.
fn check(source: &str, text: &str) {
    let name = format!("swiglu-cuda-host-{}-{source}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("needed.cpp", NEEDED);
    write("cuda.h", include_str!("host/cuda.h"));
    write("functions.cuh", &header());
    write(source, text);
    if let Err(reason) = compile(&folder, "needed.cpp") {
        std::fs::remove_dir_all(&folder).unwrap();
        let reason = format!("no compiler of C++20: {reason}");
        return swiglu_conformance::may_skip("c++", &reason, "host");
    }
    let checked = compile(&folder, source).map(|program| {
        let output = Command::new(program).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    });
    std::fs::remove_dir_all(&folder).unwrap();
    let (passed, text) = checked.unwrap();
    assert!(passed && text.ends_with("0 failures\n"), "{text}");
}
