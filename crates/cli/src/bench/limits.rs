use serde::Serialize;
use swiglu::{Accumulation, OpenOptions};

use crate::failure::Result;

/// What the machine can do, measured in the same run. What is not known is left out, or null in
/// JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// GB/s of reading from memory.
    #[serde(rename = "read_gb_per_s")]
    pub read: Option<f64>,
    /// GB/s of reading two bytes for each that is written, both from and to memory.
    #[serde(rename = "read_and_write_gb_per_s")]
    pub read_and_write: Option<f64>,
    /// 10⁹ multiplications and additions of f32 a second.
    #[serde(rename = "gflop_per_s")]
    pub gigaflops: Option<f64>,
    /// 10⁹ multiplications and additions of bf16 or f16 a second in a matrix unit, where matmuls may run on
    /// one.
    #[serde(rename = "matrix_unit_gflop_per_s")]
    pub matrix_unit: Option<f64>,
    /// 10⁹ multiplications and additions of FP8 a second on FP8 tensor cores, scales of blocks included.
    #[serde(rename = "fp8_gflop_per_s")]
    pub fp8: Option<f64>,
}

impl Limits {
    /// What this platform's device can do, where something here measures it; of a matrix unit if matmuls may
    /// sum in this class.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn measure(
        platform: &str,
        options: &OpenOptions,
        accumulation: Accumulation,
    ) -> Result<Self> {
        let _ = (options, accumulation);
        match platform {
            #[cfg(feature = "cpu")]
            "cpu" => Ok(cpu(accumulation)),
            #[cfg(feature = "cuda")]
            "cuda" => cuda(options, accumulation)
                .map_err(|error| crate::failure::Failure::Input(format!("{platform}: {error}"))),
            #[cfg(feature = "wgpu")]
            "wgpu" => wgpu(options, accumulation)
                .map_err(|error| crate::failure::Failure::Input(format!("{platform}: {error}"))),
            _ => Ok(Self::default()),
        }
    }

    /// The larger of two measurements: what slows a machine down for a while lowers no limit.
    #[must_use]
    pub fn or_better(self, other: Self) -> Self {
        let larger = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        Self {
            read: larger(self.read, other.read),
            read_and_write: larger(self.read_and_write, other.read_and_write),
            gigaflops: larger(self.gigaflops, other.gigaflops),
            matrix_unit: larger(self.matrix_unit, other.matrix_unit),
            fp8: larger(self.fp8, other.fp8),
        }
    }

    /// The limits on one line, or why there are none.
    pub fn describe(&self, platform: &str) -> String {
        let known = [
            (self.read, "GB/s read from memory"),
            (self.read_and_write, "GB/s read and written 2:1"),
            (self.gigaflops, "GFLOP/s multiplied and added in f32"),
            (self.matrix_unit, "GFLOP/s in the matrix unit"),
            (self.fp8, "GFLOP/s of FP8 on FP8 tensor cores"),
        ];
        let known: Vec<_> = known
            .into_iter()
            .filter_map(|(limit, what)| Some(format!("{:.1} {what}", limit?)))
            .collect();
        if known.is_empty() {
            return format!("not known: nothing here measures those of {platform}");
        }
        format!("{}, before or after, whichever is more", known.join(", "))
    }
}

#[cfg(feature = "cpu")]
fn cpu(accumulation: Accumulation) -> Limits {
    use swiglu::cpu::InstructionSet;
    use swiglu::cpu::limits::{Pattern, Traffic, last_level_cache, multiply_add_rate};

    const PASSES: usize = 7;
    const OPERATIONS: usize = 4_000_000_000;
    let bytes = (8 * last_level_cache()).max(256 << 20);
    let rate = |pattern| Some(Traffic::new(pattern, bytes).rate(PASSES) / 1e9);
    Limits {
        read: rate(Pattern::Read),
        read_and_write: rate(Pattern::TwoReadsOneStream),
        gigaflops: multiply_add_rate(InstructionSet::detect(), OPERATIONS)
            .ok()
            .map(|rate| rate / 1e9),
        matrix_unit: matrix_unit(accumulation),
        fp8: None,
    }
}

#[cfg(feature = "cpu")]
fn matrix_unit(accumulation: Accumulation) -> Option<f64> {
    use swiglu::cpu::{InstructionSet, limits::matrix_unit_rate};

    /// As long as the multiplications and additions of f32, at twenty times their rate.
    const OPERATIONS: usize = 80_000_000_000;
    if accumulation < Accumulation::MatrixUnit {
        return None;
    }
    let rate = matrix_unit_rate(InstructionSet::detect(), OPERATIONS);
    rate.ok().flatten().map(|rate| rate / 1e9)
}

/// On a stream of its own, tensor cores through cublasLt.
#[cfg(feature = "cuda")]
fn cuda(options: &OpenOptions, accumulation: Accumulation) -> swiglu::cuda::Result<Limits> {
    use swiglu::cuda::{CudaBackend, limits};

    let backend = CudaBackend::builder().device(options.device).open()?;
    let giga = |rate: f64| rate / 1e9;
    // Ordered sums run on no tensor core.
    let [matrix_unit, fp8] = match accumulation {
        Accumulation::Ordered => [None; 2],
        _ => [
            limits::matrix_unit_rate(&backend)?,
            limits::fp8_rate(&backend)?,
        ],
    };
    Ok(Limits {
        read: Some(giga(limits::read_rate(&backend)?)),
        read_and_write: Some(giga(limits::read_and_write_rate(&backend)?)),
        gigaflops: Some(giga(limits::multiply_add_rate(&backend)?)),
        matrix_unit: matrix_unit.map(giga),
        fp8: fp8.map(giga),
    })
}

/// On a device of its own, without the kernels of a backend.
#[cfg(feature = "wgpu")]
fn wgpu(options: &OpenOptions, accumulation: Accumulation) -> swiglu::wgpu::Result<Limits> {
    use swiglu::wgpu::{WgpuBackend, limits};

    let builder = WgpuBackend::builder().device(options.device);
    let builder = builder.accumulation(accumulation).for_requests(&[]);
    let backend = builder.open()?;
    let giga = |rate: f64| rate / 1e9;
    Ok(Limits {
        read: Some(giga(limits::read_rate(&backend)?)),
        read_and_write: Some(giga(limits::read_and_write_rate(&backend)?)),
        gigaflops: Some(giga(limits::multiply_add_rate(&backend)?)),
        matrix_unit: limits::matrix_unit_rate(&backend)?.map(giga),
        fp8: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_of_two_measurements_counts() {
        let a = Limits {
            read: Some(20.0),
            read_and_write: None,
            gigaflops: Some(90.0),
            matrix_unit: Some(900.0),
            fp8: None,
        };
        let b = Limits {
            read: Some(10.0),
            read_and_write: Some(30.0),
            gigaflops: Some(100.0),
            matrix_unit: None,
            fp8: None,
        };
        let both = Limits {
            read: Some(20.0),
            read_and_write: Some(30.0),
            gigaflops: Some(100.0),
            matrix_unit: Some(900.0),
            fp8: None,
        };
        assert_eq!(a.or_better(b), both);
        assert_eq!(b.or_better(a), both);
        let text = a.describe("cpu");
        assert!(
            text.starts_with("20.0 GB/s read") && !text.contains("2:1"),
            "{text}"
        );
        assert!(text.contains("900.0 GFLOP/s in the matrix unit"), "{text}");
        assert!(!b.describe("cpu").contains("matrix unit"));
        let none = Limits::measure("abacus", &OpenOptions::default(), Accumulation::MatrixUnit);
        let none = none.unwrap();
        assert_eq!(none, Limits::default());
        assert!(none.describe("abacus").contains("abacus"));
    }

    /// Ordered sums run on no matrix unit, so that its peak is no limit of theirs.
    #[cfg(feature = "cpu")]
    #[test]
    fn a_matrix_unit_counts_where_matmuls_may_run_on_it() {
        use swiglu::cpu::InstructionSet;
        assert_eq!(matrix_unit(Accumulation::Ordered), None);
        let unit = matrix_unit(Accumulation::MatrixUnit);
        let multiplies_bf16 = matches!(
            InstructionSet::detect(),
            InstructionSet::Amx | InstructionSet::Avx512Bf16
        );
        assert_eq!(unit.is_some(), multiplies_bf16);
    }
}
