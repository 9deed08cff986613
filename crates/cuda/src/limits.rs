//! What a device allows at best, to be measured in the same run as a kernel and set beside it.
//!
//! ## Method
//! 1. Launches of a kernel that does nothing else follow one another, as many as take a few hundredths of
//!    a second: what the host takes is nothing beside that. Its clock is read around them.
//! 2. The median of some such rounds counts.
//! 3. Memory is gone through in vectors of 16 bytes, of buffers that no cache holds. Arithmetic in f32 is
//!    done on sums that do not wait for one another. Matrix units multiply through cublasLt, the fastest
//!    there is, random numbers: zeros take less power, and so are faster.
//!
//! ```no_run
//! use swiglu_cuda::{CudaBackend, limits};
//! # fn main() -> swiglu_cuda::Result<()> {
//! let backend = CudaBackend::open()?;
//! println!("{:.2} TB/s read", limits::read_rate(&backend)? / 1e12);
//! # Ok(())
//! # }
//! ```

use std::time::Instant;

use swiglu_core::{
    Accumulation, Backend, Float, HostWeight, Matmul, Quantization, Quantized, RowLayout,
    ScaleFormat, ScaleLayout, ScaleOrder, Tensor, TensorMut, WeightFormat,
};

use crate::{
    buffer::CudaBuffer,
    error::Result,
    launch::{
        driver::{Fatbins, Function, Grid, Module, fatbins},
        options::LaunchOptions,
        params::LimitParams,
    },
    matmul::Route,
    open::CudaBackend,
};

static FATBINS: Fatbins = fatbins!("limits");

/// More than caches hold.
const COLD: usize = 1 << 30;
/// A round takes at least so long, in seconds.
const LEAST: f64 = 0.02;
const ROUNDS: usize = 5;
const MOST_LAUNCHES: usize = 1 << 12;

/// Threads of a block, blocks of a multiprocessor, vectors that a thread reads at once, and sums that
/// it adds to eight times in a round: as the kernels have them.
const THREADS: usize = 512;
const BLOCKS: usize = 4;
const READS: usize = 8;
const SUMS: usize = 16;
const ARITHMETIC_ROUNDS: u32 = 512;

/// The side of the matrices that are multiplied.
const SIDE: usize = 8192;

/// Launches a second.
fn rate(backend: &CudaBackend, mut launch: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut round = |launches: usize| -> Result<f64> {
        let start = Instant::now();
        (0..launches).try_for_each(|_| launch())?;
        backend.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    round(1)?;
    let mut launches = 1;
    while launches < MOST_LAUNCHES && round(launches)? < LEAST {
        launches *= 2;
    }
    let rounds = (0..ROUNDS).map(|_| round(launches));
    let mut rounds = rounds.collect::<Result<Vec<_>>>()?;
    rounds.sort_by(f64::total_cmp);
    Ok(launches as f64 / rounds[ROUNDS / 2])
}

/// The kernels that do nothing but what is to be measured.
struct Kernels {
    read: Function,
    multiply_add: Function,
    multiprocessors: usize,
    _module: Module,
}

impl Kernels {
    fn new(backend: &CudaBackend) -> Result<Self> {
        let module = Module::load(backend.stream().context(), &FATBINS)?;
        Ok(Self {
            read: module.function("limit_read")?,
            multiply_add: module.function("limit_multiply_add")?,
            multiprocessors: backend.multiprocessors() as usize,
            _module: module,
        })
    }

    /// Launches of blocks that the device holds all at once.
    fn rate(&self, backend: &CudaBackend, kernel: Function, params: &LimitParams) -> Result<f64> {
        let grid = Grid {
            blocks: [(self.multiprocessors * BLOCKS) as u32, 1],
            threads: THREADS as u32,
            shared: 0,
            programmatic: false,
        };
        let stream = backend.stream().cu_stream();
        // SAFETY: the callers' buffers live until the launches have been waited for, and hold what the
        // parameter says.
        rate(backend, || unsafe { kernel.launch(stream, grid, params) })
    }

    const fn threads(&self) -> usize {
        self.multiprocessors * BLOCKS * THREADS
    }
}

/// Device memory full of random bytes of which `number` makes elements.
fn random(backend: &CudaBackend, bytes: usize, number: fn(u32) -> [u8; 2]) -> Result<CudaBuffer> {
    let mut buffer = backend.alloc(bytes)?;
    backend.upload(&mut buffer, &random_bytes(bytes, number))?;
    Ok(buffer)
}

fn random_bytes(bytes: usize, number: fn(u32) -> [u8; 2]) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        number(state)
    };
    (0..bytes.div_ceil(2))
        .flat_map(&mut next)
        .take(bytes)
        .collect()
}

/// A bf16 between 2⁻³ and 2 in magnitude.
const fn small_bf16(random: u32) -> [u8; 2] {
    let bits = (random >> 16 & 0x8000) | (0x3e00 + (random & 0x1ff));
    (bits as u16).to_le_bytes()
}

/// Two codes of E4M3 between 2⁻³ and 2 in magnitude.
const fn small_codes(random: u32) -> [u8; 2] {
    [small_code(random), small_code(random >> 16)]
}

const fn small_code(random: u32) -> u8 {
    (random & 0x80 | (0x20 + (random >> 8 & 0x1f))) as u8
}

/// Bytes a second of reading, without writing.
///
/// # Errors
/// Too little memory, or a failure of the driver.
pub fn read_rate(backend: &CudaBackend) -> Result<f64> {
    let kernels = Kernels::new(backend)?;
    let at_once = kernels.threads() * READS;
    let vectors = COLD / 16 / at_once * at_once;
    let (from, to) = (
        random(backend, 16 * vectors, small_bf16)?,
        backend.alloc(16)?,
    );
    let params = LimitParams {
        from: from.address(),
        to: to.address(),
        vectors: vectors as u32,
        rounds: 0,
    };
    let launches = kernels.rate(backend, kernels.read, &params)?;
    Ok(launches * 16.0 * vectors as f64)
}

/// Bytes a second of reading two bytes for each that is written, both counted: what an activation does.
///
/// # Errors
/// As [`read_rate`].
pub fn read_and_write_rate(backend: &CudaBackend) -> Result<f64> {
    let outputs = COLD / 2;
    let (from, to) = (
        random(backend, 2 * outputs, small_bf16)?,
        backend.alloc(outputs)?,
    );
    let options = LaunchOptions::programmatic().with_threads(THREADS as u32);
    let stream = backend.stream().cu_stream();
    let (from, to) = (from.address(), to.address());
    // SAFETY: the buffers have these lengths, and live until `rate` has waited.
    let copy = || unsafe {
        backend
            .activations()
            .copy_raw(stream, from, to, outputs, options)
    };
    Ok(rate(backend, copy)? * 3.0 * outputs as f64)
}

/// Operations of f32 a second, multiplications and additions.
///
/// # Errors
/// As [`read_rate`].
pub fn multiply_add_rate(backend: &CudaBackend) -> Result<f64> {
    let kernels = Kernels::new(backend)?;
    let (from, to) = (random(backend, 16, small_bf16)?, backend.alloc(16)?);
    let params = LimitParams {
        from: from.address(),
        to: to.address(),
        vectors: 0,
        rounds: ARITHMETIC_ROUNDS,
    };
    let launches = kernels.rate(backend, kernels.multiply_add, &params)?;
    let operations = 2 * kernels.threads() * SUMS * 8 * ARITHMETIC_ROUNDS as usize;
    Ok(launches * operations as f64)
}

/// The same of bf16 with sums in f32, through cublasLt; none where it was not found.
///
/// # Errors
/// As [`read_rate`].
pub fn matrix_unit_rate(backend: &CudaBackend) -> Result<Option<f64>> {
    if !backend.has_cublaslt() {
        return Ok(None);
    }
    let bf16 = Float::BF16;
    let numbers = random_bytes(2 * SIDE * SIDE, small_bf16);
    let weight = HostWeight::new([SIDE; 2], WeightFormat::Float(bf16), &numbers, &[])?;
    let weight = backend.load_weight(&[weight])?;
    let (mut x, mut y) = (backend.alloc(numbers.len())?, backend.alloc(numbers.len())?);
    backend.upload(&mut x, &numbers)?;
    let multiply = || {
        let x = Tensor::contiguous((&x).into(), bf16, SIDE, SIDE);
        let y = TensorMut::contiguous((&mut y).into(), bf16, SIDE, SIDE);
        Ok(backend.matmul_by(Some(Route::Library), &x, &weight, &y)?)
    };
    Ok(Some(rate(backend, multiply)? * OPERATIONS))
}

/// Of a product of two square matrices.
const OPERATIONS: f64 = 2.0 * (SIDE * SIDE * SIDE) as f64;

/// The same of FP8 codes with a scale for each 128 of x and each 128 × 128 of the weight, through cublasLt;
/// none where it has no such matmul: it does on Hopper, from 12.9 on.
///
/// # Errors
/// As [`read_rate`].
pub fn fp8_rate(backend: &CudaBackend) -> Result<Option<f64>> {
    let backend = backend
        .on(backend.stream().clone())?
        .with_accumulation(Accumulation::Fp8TensorCore);
    if !backend.multiplies_codes() {
        return Ok(None);
    }
    let quant = Quantization::new(128, ScaleFormat::F32)?;
    let layout = ScaleLayout::contiguous(
        quant.format(),
        ScaleOrder::ColumnMajor,
        SIDE,
        quant.groups(SIDE),
    );
    let codes = random_bytes(SIDE * SIDE, small_codes);
    let ones = 1.0_f32.to_le_bytes().repeat(SIDE * SIDE / 128);
    let format = WeightFormat::Fp8 {
        scales: ScaleFormat::F32,
        block: [128; 2],
    };
    let weight = HostWeight::new([SIDE; 2], format, &codes, &ones[..4 * (SIDE / 128).pow(2)])?;
    let weight = backend.load_weight(&[weight])?;
    let (mut x, mut scales) = (backend.alloc(codes.len())?, backend.alloc(ones.len())?);
    backend.upload(&mut x, &codes)?;
    backend.upload(&mut scales, &ones)?;
    let (mut room, mut y) = (
        backend.alloc(2 * SIDE * SIDE)?,
        backend.alloc(2 * SIDE * SIDE)?,
    );
    let multiply = || {
        let x = Quantized {
            codes: (&x).into(),
            layout: RowLayout::contiguous(SIDE, SIDE),
            scales: (&scales).into(),
            scale_layout: layout,
        };
        let y = TensorMut::contiguous((&mut y).into(), Float::BF16, SIDE, SIDE);
        Ok(backend.matmul_quantized(&quant, x, &weight, (&mut room).into(), y)?)
    };
    Ok(Some(rate(&backend, multiply)? * OPERATIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_small_and_of_both_signs() {
        let bytes = random_bytes(4000, small_bf16);
        let value = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
        let numbers: Vec<_> = bytes.chunks_exact(2).map(value).collect();
        assert!(numbers.iter().all(|x| (0.125..2.0).contains(&x.abs())));
        assert!(numbers.iter().any(|x| *x < 0.0) && numbers.iter().any(|x| *x > 1.0));
        let codes = random_bytes(4001, small_codes);
        assert_eq!(codes.len(), 4001);
        let value = |&c: &u8| swiglu_core::E4M3(c).to_f32();
        assert!(
            codes
                .iter()
                .map(value)
                .all(|x| (0.125..2.0).contains(&x.abs()))
        );
        assert!(codes.iter().map(value).any(|x| x < 0.0));
    }
}
