//! Whether kernels compute what they should on this device: small cases with known results.

use swiglu_core::{
    ActAndMul, Backend, BlockScales, DType, E4M3, E8M0, Element, GatedActivation, GatedMatmul,
    HostWeight, Matmul, RowLayout, Tensor, TensorMut, bf16, f16, reference,
};

use crate::device::Device;
use crate::matmul::FEW_USUAL;
use crate::shaders::{LANES, USUAL_TOKENS};
use crate::{Result, WgpuBackend, WgpuError};

/// Whether the lanes that share a row are one subgroup.
///
/// # Errors
/// Why not.
pub(crate) fn subgroups_fit(device: &Device) -> std::result::Result<(), String> {
    if !device.raw().features().contains(wgpu::Features::SUBGROUP) {
        return Err("the device has none".to_owned());
    }
    let info = device.info();
    let (least, most) = (info.subgroup_min_size, info.subgroup_max_size);
    if (least, most) != (LANES, LANES) {
        return Err(format!("theirs have {least} to {most} lanes, not {LANES}"));
    }
    Ok(())
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

/// Runs a matrix-vector product, a tiled one and an activation.
pub(crate) fn run(backend: &WgpuBackend) -> Result<()> {
    const ROWS: usize = 7;
    const COLS: usize = 300;
    let small = |i: usize| (i % 7) as f32 - 3.0;
    let weight: Vec<f32> = (0..ROWS * COLS).map(small).collect();
    let host = HostWeight::new(ROWS, COLS, DType::F32, bytemuck::cast_slice(&weight), None)?;
    let loaded = backend.load_weight(&[host])?;
    for (tokens, kernel) in [
        (1, "the matrix-vector product"),
        (FEW_USUAL + 1, "the tiled product"),
    ] {
        let x: Vec<f32> = (0..tokens * COLS).map(|i| small(i / 3)).collect();
        let mut on_device = backend.alloc(size_of_val(x.as_slice()))?;
        backend.upload(&mut on_device, bytemuck::cast_slice(&x))?;
        let mut y = backend.alloc(tokens * ROWS * size_of::<f32>())?;
        backend.matmul(
            Tensor::contiguous(&on_device, DType::F32, tokens, COLS),
            &loaded,
            TensorMut::contiguous(&mut y, DType::F32, tokens, ROWS),
        )?;
        let mut got = vec![0.0_f32; tokens * ROWS];
        backend.download(&y, bytemuck::cast_slice_mut(&mut got))?;
        // Sums of small integers: exact in any order.
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| a * b).sum();
        let rows = || weight.chunks_exact(COLS);
        let wanted: Vec<f32> = x
            .chunks_exact(COLS)
            .flat_map(|x| rows().map(move |w| dot(x, w)))
            .collect();
        expect(kernel, &got, &wanted)?;
    }
    fp8(backend)?;
    let relu = GatedActivation::fatrelu_and_mul(0.0)?;
    let input = [1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0_f32];
    let got = backend.act_and_mul_slice(&relu, &input, 4)?;
    expect("the activation", &got, &[5.0, 0.0, 21.0, -32.0])
}

/// A product of small integers in f16 on cooperative matrices, with tiles that are not full: of
/// rows of x that follow one another, and of rows that lie apart.
pub(crate) fn cooperative(backend: &WgpuBackend) -> Result<()> {
    const SHAPE: [usize; 3] = [140, 200, 96];
    let [tokens, rows, cols] = SHAPE;
    if !backend.device().has_cooperative_matrices() {
        return Ok(());
    }
    let integers = |n: usize| -> Vec<f16> {
        let small = |i: usize| f16::from_f32((i * 5 % 7) as f32 - 3.0);
        (0..n).map(small).collect()
    };
    let w = integers(rows * cols);
    let host = HostWeight::new(rows, cols, DType::F16, bytemuck::cast_slice(&w), None)?;
    let loaded = backend.load_weight(&[host])?;
    for stride in [cols, cols + 8] {
        let x = integers(tokens * stride);
        let mut on_device = backend.alloc(size_of_val(x.as_slice()))?;
        backend.upload(&mut on_device, bytemuck::cast_slice(&x))?;
        let mut got = vec![0.0_f32; tokens * rows];
        let mut y = backend.alloc(size_of_val(got.as_slice()))?;
        backend.matmul(
            Tensor {
                buffer: &on_device,
                dtype: DType::F16,
                layout: RowLayout::contiguous(tokens, cols).with_stride(stride),
            },
            &loaded,
            TensorMut::contiguous(&mut y, DType::F32, tokens, rows),
        )?;
        backend.download(&y, bytemuck::cast_slice_mut(&mut got))?;
        let dot = |x: &[f16], w: &[f16]| -> f32 {
            let terms = x.iter().zip(w);
            terms.map(|(a, b)| a.to_f32() * b.to_f32()).sum()
        };
        let wanted: Vec<f32> = x
            .chunks_exact(stride)
            .flat_map(|x| w.chunks_exact(cols).map(move |w| dot(&x[..cols], w)))
            .collect();
        expect("the product on cooperative matrices", &got, &wanted)?;
    }
    Ok(())
}

/// The gated half of an MLP is the same in one kernel as in two, for each number of tokens that a
/// kernel is made for.
///
/// # Errors
/// The first element that is not.
pub(crate) fn gated(backend: &WgpuBackend) -> Result<()> {
    const D: usize = 24;
    const COLS: usize = 520;
    let op = GatedActivation::deepseek_v4();
    let numbers = |n: usize, step: usize| -> Vec<bf16> {
        let small = |i: usize| bf16::from_f32((i * step % 37) as f32 / 16.0 - 1.0);
        (0..n).map(small).collect()
    };
    let w = numbers(2 * D * COLS, 5);
    let host = HostWeight::new(2 * D, COLS, DType::BF16, bytemuck::cast_slice(&w), None)?;
    let weight = backend.load_weight(&[host])?;
    for tokens in USUAL_TOKENS.map(|tokens| tokens as usize) {
        let x = numbers(tokens * COLS, 11);
        let mut on_device = backend.alloc(size_of_val(x.as_slice()))?;
        backend.upload(&mut on_device, bytemuck::cast_slice(&x))?;
        let x = || Tensor::contiguous(&on_device, DType::BF16, tokens, COLS);
        let mut between = backend.alloc(tokens * 2 * D * 2)?;
        let mut act = backend.alloc(tokens * D * 2)?;
        let mut activated = |fused: bool| -> Result<Vec<bf16>> {
            let mut between = TensorMut::contiguous(&mut between, DType::BF16, tokens, 2 * D);
            let mut to = TensorMut::contiguous(&mut act, DType::BF16, tokens, D);
            if fused {
                let between = between.reborrow();
                backend.matmul_act_and_mul(&op, x(), &weight, between, to.reborrow())?;
            } else {
                backend.matmul(x(), &weight, between.reborrow())?;
                backend.act_and_mul(&op, between.as_ref(), to.reborrow())?;
            }
            let mut got = vec![bf16::ZERO; tokens * D];
            backend.download(to.buffer, bytemuck::cast_slice_mut(&mut got))?;
            Ok(got)
        };
        let widened = |y: Vec<bf16>| -> Vec<f32> { y.into_iter().map(bf16::to_f32).collect() };
        let (want, got) = (widened(activated(false)?), widened(activated(true)?));
        expect("the gated product", &got, &want)?;
    }
    Ok(())
}

/// Every gate of 16 bits through silu, with and without a limit, is within an ulp of what it should
/// be, and nearly always right.
///
/// # Errors
/// The first result that is not, or how many are wrong.
pub(crate) fn native(backend: &WgpuBackend) -> Result<()> {
    for op in [
        GatedActivation::silu_and_mul(),
        GatedActivation::deepseek_v4(),
    ] {
        every_gate::<f16>(backend, &op)?;
        every_gate::<bf16>(backend, &op)?;
    }
    Ok(())
}

fn every_gate<T: Element>(backend: &WgpuBackend, op: &GatedActivation) -> Result<()> {
    const COUNT: usize = 1 << 16;
    const UPS: [f32; 7] = [1.0, -0.3, 7.1, 0.011, -1.3, 300.0, -0.0007];
    let failed = |message| WgpuError::SelfTest {
        kernel: format!("the native {op} in {}", T::DTYPE),
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
        let got = backend.act_and_mul_slice(op, &input, d)?;
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
fn fp8(backend: &WgpuBackend) -> Result<()> {
    let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f != 0x7f).collect();
    // A row for each code, of which all but the first element are 0.
    let mut weight = vec![0; codes.len() * 16];
    for (row, code) in weight.chunks_exact_mut(16).zip(&codes) {
        row[0] = *code;
    }
    let one = BlockScales {
        data: &vec![E8M0::ONE.0; codes.len()],
        dtype: DType::E8M0,
        block: [1, 16],
    };
    let host = HostWeight::new(codes.len(), 16, DType::F8E4M3, &weight, Some(one))?;
    let loaded = backend.load_weight(&[host])?;
    let mut x = backend.alloc(16 * size_of::<f32>())?;
    backend.upload(&mut x, bytemuck::cast_slice(&[1.0_f32; 16]))?;
    let mut got = vec![0.0_f32; codes.len()];
    let mut y = backend.alloc(size_of_val(got.as_slice()))?;
    backend.matmul(
        Tensor::contiguous(&x, DType::F32, 1, 16),
        &loaded,
        TensorMut::contiguous(&mut y, DType::F32, 1, codes.len()),
    )?;
    backend.download(&y, bytemuck::cast_slice_mut(&mut got))?;
    let wanted: Vec<f32> = codes.iter().map(|code| E4M3(*code).to_f32()).collect();
    expect("the decoding of f8_e4m3", &got, &wanted)
}
