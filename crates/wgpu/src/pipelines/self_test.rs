//! Whether kernels compute what they should on this device: small cases with known results.
//!
//! ## Method
//! 1. [`run`] tries what was built for all or for some requests; if it fails, plainer kernels are
//!    taken.
//! 2. [`cooperative`], [`native`] and [`gated`] try kernels that are left out where they fail: a
//!    driver may compile them wrongly, and WGSL promises little of some operations.
//! 3. Operands are small integers, or numbers whose sums are exact in f32, so that any order of a sum
//!    gives one result.

use swiglu_core::{
    ActAndMul, Backend, E2M1, E4M3, E8M0, Element, Float, GatedActivation, HostWeight, Matmul,
    Request, RowLayout, ScaleFormat, Tensor, TensorMut, WeightFormat, bf16, f16, reference,
};

use super::matmul::{FEW_USUAL, GemvTokens};
use crate::{Result, WgpuError};

/// A buffer that holds these elements.
fn filled<B: Backend, T: Element>(backend: &B, data: &[T]) -> Result<B::Buffer> {
    let mut buffer = backend.alloc(size_of_val(data))?;
    backend.upload(&mut buffer, bytemuck::cast_slice(data))?;
    Ok(buffer)
}

/// The first elements of a buffer.
fn contents<B: Backend, T: Element>(
    backend: &B,
    buffer: &B::Buffer,
    count: usize,
) -> Result<Vec<T>> {
    let mut data = vec![T::default(); count];
    backend.download(buffer, bytemuck::cast_slice_mut(&mut data))?;
    Ok(data)
}

/// The activation of rows of 2d elements.
fn activated<B: ActAndMul, T: Element>(
    backend: &B,
    op: &GatedActivation,
    input: &[T],
    d: usize,
) -> Result<Vec<T>> {
    let (from, to) = GatedActivation::contiguous(input.len(), d)?;
    let x = filled(backend, input)?;
    let mut y = backend.alloc(to.rows * d * size_of::<T>())?;
    let input = Tensor::<B>::new(B::view(&x), T::FLOAT, from);
    let output = TensorMut::new(B::view_mut(&mut y), T::FLOAT, to);
    backend.act_and_mul(op, input.into(), output)?;
    contents(backend, &y, to.rows * d)
}

fn expect(kernel: &str, got: &[f32], wanted: &[f32]) -> Result<()> {
    match got.iter().zip(wanted).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(i) => Err(WgpuError::SelfTest {
            kernel: kernel.to_owned(),
            message: format!("element {i} is {}, not {}", got[i], wanted[i]),
        }),
    }
}

/// Whether a backend multiplies x of this type by this weight.
fn multiplies<B: Backend>(backend: &B, x: Float, weight: WeightFormat) -> bool {
    let y = Float::F32;
    backend.supports(&Request::Matmul { x, weight, y }).runs()
}

/// Runs a GEMV and a tiled matmul by each type of weight, and an activation, of what there is.
pub(crate) fn run<B: Matmul + ActAndMul>(backend: &B) -> Result<()> {
    integers::<_, f32>(backend)?;
    integers::<_, f16>(backend)?;
    integers::<_, bf16>(backend)?;
    fp8(backend)?;
    fp4(backend)?;
    relu::<_, f32>(backend)?;
    relu::<_, f16>(backend)?;
    relu::<_, bf16>(backend)
}

/// Sums of small integers, which are exact in any order.
fn integers<B: Matmul, T: Element>(backend: &B) -> Result<()> {
    const ROWS: usize = 7;
    const COLS: usize = 300;
    if !multiplies(backend, T::FLOAT, WeightFormat::Float(T::FLOAT)) {
        return Ok(());
    }
    let small = |i: usize| T::from_f64((i % 7) as f64 - 3.0);
    let weight: Vec<T> = (0..ROWS * COLS).map(small).collect();
    let loaded = load(backend, [ROWS, COLS], T::FLOAT, &weight)?;
    for (tokens, kernel) in [(1, "the GEMV"), (FEW_USUAL + 1, "the tiled matmul")] {
        let x: Vec<T> = (0..tokens * COLS).map(|i| small(i / 3)).collect();
        let x_layout = RowLayout::contiguous(tokens, COLS);
        let got = multiplied(backend, (&x, x_layout), &loaded, ROWS)?;
        let dot = |x: &[T], w: &[T]| x.iter().zip(w).map(|(a, b)| a.to_f32() * b.to_f32()).sum();
        let rows = || weight.chunks_exact(COLS);
        let wanted: Vec<f32> = x
            .chunks_exact(COLS)
            .flat_map(|x| rows().map(move |w| dot(x, w)))
            .collect();
        expect(&format!("{kernel} in {}", T::FLOAT), &got, &wanted)?;
    }
    Ok(())
}

/// An activation whose results are exact.
fn relu<B: ActAndMul, T: Element>(backend: &B) -> Result<()> {
    let op = GatedActivation::fatrelu_and_mul(0.0)?;
    if !activates(backend, op, T::FLOAT) {
        return Ok(());
    }
    let input = [1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0].map(T::from_f64);
    let got = activated(backend, &op, &input, 4)?;
    let got: Vec<_> = got.into_iter().map(T::to_f32).collect();
    let kernel = format!("the activation in {}", T::FLOAT);
    expect(&kernel, &got, &[5.0, 0.0, 21.0, -32.0])
}

/// Whether a backend has an activation.
fn activates<B: Backend>(backend: &B, op: GatedActivation, float: Float) -> bool {
    backend.supports(&Request::Activation { op, float }).runs()
}

/// A weight of plain numbers on the device.
fn load<B: Matmul, T: Element>(
    backend: &B,
    shape: [usize; 2],
    float: Float,
    weight: &[T],
) -> Result<B::Weight> {
    let (format, data) = (WeightFormat::Float(float), bytemuck::cast_slice(weight));
    let host = HostWeight::new(shape, format, data, &[])?;
    Ok(backend.load_weight(&[host])?)
}

/// x by a weight of `rows` rows, in f32.
fn multiplied<B: Matmul, T: Element>(
    backend: &B,
    (x, layout): (&[T], RowLayout),
    weight: &B::Weight,
    rows: usize,
) -> Result<Vec<f32>> {
    let on_device = filled(backend, x)?;
    let count = layout.rows * rows;
    let mut y = backend.alloc(count * size_of::<f32>())?;
    let x = Tensor::new(B::view(&on_device), T::FLOAT, layout);
    let to = TensorMut::contiguous(B::view_mut(&mut y), Float::F32, layout.rows, rows);
    backend.matmul(x, weight, to)?;
    contents(backend, &y, count)
}

/// Matmuls of small integers on cooperative matrices, in tiles that are not full: of rows that follow one
/// another and of rows that lie apart, under powers of two that differ from row to row.
pub(crate) fn cooperative<B: Matmul>(backend: &B) -> Result<()> {
    const CODES: WeightFormat = WeightFormat::Fp8 {
        scales: ScaleFormat::E8M0,
        block: [32, 32],
    };
    cooperative_by::<_, f16>(backend, WeightFormat::Float(Float::F16))?;
    cooperative_by::<_, bf16>(backend, WeightFormat::Float(Float::BF16))?;
    cooperative_by::<_, bf16>(backend, CODES)
}

fn cooperative_by<B: Matmul, T: Element>(backend: &B, format: WeightFormat) -> Result<()> {
    const TOKENS: usize = 132;
    const ROWS: usize = 134;
    /// More than a step of every kernel, and no whole steps but of those that take no others.
    const COLS: usize = 576;
    const STRIDE: usize = COLS + 8;
    if !multiplies(backend, T::FLOAT, format) {
        return Ok(());
    }
    // Powers of two by token and row, or by blocks of 32 rows and columns.
    let power = |n: usize, most: i32| match T::FLOAT {
        Float::F16 => 1.0,
        _ => f64::from((n as i32 * 7 % most - most / 2) as f32).exp2(),
    };
    let of_token = |t: usize| power(t, 60);
    let of_weight = |row: usize, col: usize| match format {
        WeightFormat::Float(_) => power(row, 20),
        // Sums over these stay exact.
        _ => power(row / 32 * 17 + col / 32, 10),
    };
    let small = |i: usize| (i * 5 % 7) as f64 - 3.0;
    let w: Vec<f64> = (0..ROWS * COLS).map(small).collect();
    let scaled = |i: usize| w[i] * of_weight(i / COLS, i % COLS);
    let host = match format {
        WeightFormat::Float(_) => {
            let elements: Vec<T> = (0..w.len()).map(|i| T::from_f64(scaled(i))).collect();
            let data = bytemuck::cast_slice(&elements).to_vec();
            HostWeight::owned([ROWS, COLS], format, data, Vec::new())?
        }
        _ => {
            let codes = w.iter().map(|w| E4M3::from_f32_saturating(*w as f32).0);
            let [rows, cols] = format.scale_grid([ROWS, COLS])?;
            let places = (0..rows).flat_map(|r| (0..cols).map(move |c| (32 * r, 32 * c)));
            let scales = places.map(|(r, c)| (of_weight(r, c).log2() + 127.0) as u8);
            HostWeight::owned([ROWS, COLS], format, codes.collect(), scales.collect())?
        }
    };
    let loaded = backend.load_weight(&[host])?;
    let w: Vec<f64> = (0..w.len()).map(scaled).collect();
    for stride in [COLS, STRIDE] {
        let x = (0..TOKENS * stride).map(|i| small(i / 3) * of_token(i / stride));
        let x: Vec<T> = x.map(T::from_f64).collect();
        let layout = RowLayout::contiguous(TOKENS, COLS).with_stride(stride);
        let got = multiplied(backend, (&x, layout), &loaded, ROWS)?;
        // A few of each tile's places; every one would take longer than all the rest.
        for at in (0..got.len()).step_by(37) {
            let (token, row) = (at / ROWS, at % ROWS);
            let x = &x[token * stride..][..COLS];
            let terms = x.iter().zip(&w[row * COLS..][..COLS]);
            let wanted: f64 = terms.map(|(x, w)| f64::from(x.to_f32()) * w).sum();
            let kernel = format!("the matmul by {format} on cooperative matrices");
            expect(&kernel, &got[at..=at], &[wanted as f32])?;
        }
    }
    Ok(())
}

/// The gated half of an MLP is the same in one kernel as in two, for each number of tokens that a
/// kernel is made for.
///
/// # Errors
/// The first element that is not.
pub(crate) fn gated<B: Matmul + ActAndMul>(backend: &B) -> Result<()> {
    const CODES: WeightFormat = WeightFormat::Fp8 {
        scales: ScaleFormat::E8M0,
        block: [2 * D, COLS],
    };
    gated_by::<_, f16>(backend, WeightFormat::Float(Float::F16))?;
    gated_by::<_, bf16>(backend, WeightFormat::Float(Float::BF16))?;
    gated_by::<_, bf16>(backend, CODES)
}

/// Outputs and inputs of the gated half that is tried.
const D: usize = 24;
const COLS: usize = 528;

fn gated_by<B: Matmul + ActAndMul, T: Element>(backend: &B, format: WeightFormat) -> Result<()> {
    let op = GatedActivation::deepseek_v4();
    let (x, act) = (T::FLOAT, T::FLOAT);
    let weight = format;
    let request = Request::GatedMatmul { op, x, weight, act };
    if !backend.supports(&request).runs() {
        return Ok(());
    }
    let numbers = |n: usize, step: usize| -> Vec<T> {
        let small = |i: usize| T::from_f64((i * step % 37) as f64 / 16.0 - 1.0);
        (0..n).map(small).collect()
    };
    let elements = numbers(2 * D * COLS, 5);
    let codes: Vec<u8> = elements
        .iter()
        .map(|w| E4M3::from_f32_saturating(w.to_f32()).0)
        .collect();
    let host = match format {
        WeightFormat::Float(_) => {
            HostWeight::new([2 * D, COLS], format, bytemuck::cast_slice(&elements), &[])?
        }
        _ => HostWeight::new([2 * D, COLS], format, &codes, &[E8M0::ONE.0])?,
    };
    let weight = backend.load_weight(&[host])?;
    for tokens in GemvTokens::ALL.map(|tokens| tokens.count() as usize) {
        let on_device = filled(backend, &numbers(tokens * COLS, 11))?;
        let mut between = backend.alloc(tokens * 2 * D * 2)?;
        let mut output = backend.alloc(tokens * D * 2)?;
        let mut widened = |fused: bool| -> Result<Vec<f32>> {
            let x = Tensor::contiguous(B::view(&on_device), T::FLOAT, tokens, COLS);
            let view = B::view_mut(&mut between);
            let mut between = TensorMut::<B>::contiguous(view, T::FLOAT, tokens, 2 * D);
            let to = TensorMut::contiguous(B::view_mut(&mut output), T::FLOAT, tokens, D);
            if fused {
                backend.matmul_act_and_mul(&op, x, &weight, between, to)?;
            } else {
                backend.matmul(x, &weight, between.reborrow())?;
                backend.act_and_mul(&op, between.as_tensor().into(), to)?;
            }
            let got: Vec<T> = contents(backend, &output, tokens * D)?;
            Ok(got.into_iter().map(T::to_f32).collect())
        };
        let (want, got) = (widened(false)?, widened(true)?);
        expect(&format!("the gated GEMV by {format}"), &got, &want)?;
    }
    Ok(())
}

/// Every gate of 16 bits through silu, with and without a limit, is within an ulp of what it should
/// be, and nearly always right.
///
/// # Errors
/// The first result that is not, or how many are wrong.
pub(crate) fn native<B: ActAndMul>(backend: &B) -> Result<()> {
    for op in [
        GatedActivation::silu_and_mul(),
        GatedActivation::deepseek_v4(),
    ] {
        every_gate::<_, f16>(backend, &op)?;
        every_gate::<_, bf16>(backend, &op)?;
    }
    Ok(())
}

fn every_gate<B: ActAndMul, T: Element>(backend: &B, op: &GatedActivation) -> Result<()> {
    const COUNT: usize = 1 << 16;
    const UPS: [f32; 7] = [1.0, -0.3, 7.1, 0.011, -1.3, 300.0, -0.0007];
    if !activates(backend, *op, T::FLOAT) {
        return Ok(());
    }
    let failed = |message| WgpuError::SelfTest {
        kernel: format!("the native {op} in {}", T::FLOAT),
        message,
    };
    let gate = |i: usize| T::from_bits(i as u32);
    let up = |i: usize| T::from_f64(f64::from(UPS[i % UPS.len()]));
    let wanted: Vec<T> = (0..COUNT)
        .map(|i| reference::gated(op, gate(i), up(i)))
        .collect();
    // One row has a kernel of its own.
    for rows in [1, 2] {
        let d = COUNT / rows;
        let row = |r: usize| {
            let all = r * d..(r + 1) * d;
            all.clone().map(gate).chain(all.map(up))
        };
        let input: Vec<T> = (0..rows).flat_map(row).collect();
        let got = activated(backend, op, &input, d)?;
        let mut wrong = 0;
        for (i, (&got, &want)) in got.iter().zip(&wanted).enumerate() {
            if got == want || got.is_nan() && want.is_nan() {
                continue;
            }
            wrong += 1;
            if got.is_nan() || want.is_nan() || got.ulps_between(want) > 1 {
                return Err(failed(format!(
                    "of gate {:e} and up {:e} it makes {:e}, not {:e}",
                    gate(i).to_f32(),
                    up(i).to_f32(),
                    got.to_f32(),
                    want.to_f32()
                )));
            }
        }
        if wrong * 1000 > COUNT {
            return Err(failed(format!(
                "{wrong} of {COUNT} results are not the nearest"
            )));
        }
    }
    Ok(())
}

/// Every finite code of E4M3, subnormal ones too, comes out as its value.
fn fp8<B: Matmul>(backend: &B) -> Result<()> {
    const FORMAT: WeightFormat = WeightFormat::Fp8 {
        scales: ScaleFormat::E8M0,
        block: [1, 16],
    };
    if multiplies(backend, Float::F32, FORMAT) {
        fp8_by::<_, f32>(backend, FORMAT)
    } else if multiplies(backend, Float::BF16, FORMAT) {
        fp8_by::<_, bf16>(backend, FORMAT)
    } else if multiplies(backend, Float::F16, FORMAT) {
        fp8_by::<_, f16>(backend, FORMAT)
    } else {
        Ok(())
    }
}

fn fp8_by<B: Matmul, T: Element>(backend: &B, format: WeightFormat) -> Result<()> {
    let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f != 0x7f).collect();
    // A row for each code, of which all but the first element are 0.
    let mut weight = vec![0; codes.len() * 16];
    for (row, code) in weight.chunks_exact_mut(16).zip(&codes) {
        row[0] = *code;
    }
    let ones = vec![E8M0::ONE.0; codes.len()];
    let host = HostWeight::new([codes.len(), 16], format, &weight, &ones)?;
    let loaded = backend.load_weight(&[host])?;
    let x = ([T::from_f64(1.0); 16], RowLayout::contiguous(1, 16));
    let got = multiplied(backend, (&x.0, x.1), &loaded, codes.len())?;
    let wanted: Vec<f32> = codes.iter().map(|code| E4M3(*code).to_f32()).collect();
    expect("the decoding of e4m3", &got, &wanted)
}

/// Every code of E2M1, at an even column and at an odd one, comes out as its value.
fn fp4<B: Matmul>(backend: &B) -> Result<()> {
    const CODES: usize = 16;
    const COLS: usize = WeightFormat::FP4_GROUP;
    if !multiplies(backend, Float::BF16, WeightFormat::Fp4) {
        return Ok(());
    }
    // A row for each code in the lower half of a byte, and one in the upper half; all other codes are 0.
    let mut weight = vec![0; 2 * CODES * COLS / 2];
    for (row, bytes) in weight.chunks_exact_mut(COLS / 2).enumerate() {
        bytes[row % (COLS / 2)] = ((row % CODES) << (4 * (row / CODES))) as u8;
    }
    let ones = vec![E8M0::ONE.0; 2 * CODES];
    let shape = [2 * CODES, COLS];
    let host = HostWeight::new(shape, WeightFormat::Fp4, &weight, &ones)?;
    let loaded = backend.load_weight(&[host])?;
    let wanted: Vec<f32> = (0..2 * CODES)
        .map(|row| E2M1((row % CODES) as u8).to_f32())
        .collect();
    for tokens in [1, FEW_USUAL + 1] {
        let x = vec![bf16::ONE; tokens * COLS];
        let layout = RowLayout::contiguous(tokens, COLS);
        let got = multiplied(backend, (&x, layout), &loaded, shape[0])?;
        for row in got.chunks_exact(shape[0]) {
            expect("the decoding of e2m1", row, &wanted)?;
        }
    }
    Ok(())
}
