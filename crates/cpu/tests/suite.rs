//! The suite that every backend passes, on each instruction set that this machine has and in both
//! classes of sums; `matrix_unit.rs` has the rest of the second.

use swiglu_core::Accumulation;
use swiglu_cpu::{CpuBackend, InstructionSet, Settings};

fn open(set: InstructionSet) -> Result<CpuBackend, String> {
    CpuBackend::with_instruction_set(set).map_err(|error| error.to_string())
}

/// What runs where ordered sums are asked for.
fn ordered() -> CpuBackend {
    CpuBackend::new().with_accumulation(Accumulation::Ordered)
}

/// Every matmul of bf16 on the matrix unit, however few rows it has.
fn on_tiles(set: InstructionSet) -> Result<CpuBackend, String> {
    let mut settings = Settings::default();
    (settings.matrix_unit_rows, settings.matrix_unit_rows_fp8) = (1, 1);
    Ok(open(set)?.with_settings(settings))
}

swiglu_conformance::suite!(cpu, || Ok::<_, String>(CpuBackend::new()));
swiglu_conformance::suite!(cpu_ordered, || Ok::<_, String>(ordered()));
swiglu_conformance::suite!(cpu_scalar, || open(InstructionSet::Scalar));
swiglu_conformance::suite!(cpu_amx, || on_tiles(InstructionSet::Amx));
swiglu_conformance::suite!(cpu_avx512_bf16, || open(InstructionSet::Avx512Bf16));
swiglu_conformance::complete!(cpu_complete, || Ok::<_, String>(CpuBackend::new()));
