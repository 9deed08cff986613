//! The CPU backend made wrong on purpose: the suite catches every fault.

use swiglu_cpu::CpuBackend;

swiglu_conformance::mutants!(cpu, || Ok::<_, String>(CpuBackend::new()));
