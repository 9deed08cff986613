//! The suite that every backend passes, on each instruction set that this machine has.

use swiglu_cpu::{CpuBackend, InstructionSet};

fn open(set: InstructionSet) -> Result<CpuBackend, String> {
    CpuBackend::with_instruction_set(set).map_err(|error| error.to_string())
}

swiglu_conformance::suite!(cpu, || Ok::<_, String>(CpuBackend::new()));
swiglu_conformance::suite!(cpu_scalar, || open(InstructionSet::Scalar));
swiglu_conformance::complete!(cpu_complete, || Ok::<_, String>(CpuBackend::new()));
