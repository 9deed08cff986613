//! What only this backend has: batches, graphs, programmatic launches, bare pointers, and calls
//! beyond 2^31 elements.

use std::io::Write;
use std::sync::{Arc, MutexGuard};

use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, sys};
use half::bf16;
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Element, Float, GatedActivation, Rounding, RowLayout, reference};
use swiglu_cuda::{Activations, LaunchOptions, RawActCall, RawGateUp, RawMatrix, cudarc, probe};

mod common;
use common::turn;

struct Gpu {
    _turn: MutexGuard<'static, ()>,
    stream: Arc<CudaStream>,
    activations: Activations,
}

/// The device, or a skip by name.
fn gpu() -> Option<Gpu> {
    let turn = turn();
    let open = || -> Result<Gpu, Box<dyn std::error::Error>> {
        let context = CudaContext::new(probe()?.ordinal)?;
        // SAFETY: every slice is used on one stream alone.
        unsafe { context.disable_event_tracking() };
        Ok(Gpu {
            _turn: turn,
            stream: context.new_stream()?,
            activations: Activations::new(&context)?,
        })
    };
    match open() {
        Ok(gpu) => Some(gpu),
        Err(reason) => {
            swiglu_conformance::may_skip("cuda", &reason.to_string(), "cuda");
            None
        }
    }
}

fn values(count: usize) -> Vec<bf16> {
    Numbers::new(7).values(count, 15.0)
}

/// The reference, row by row.
fn expected(op: &GatedActivation, input: &[bf16], d: usize) -> Vec<bf16> {
    let row = |row: &[bf16]| -> Vec<bf16> {
        (0..d)
            .map(|j| op.positions(d, j))
            .map(|(g, u)| reference::gated(op, row[g], row[u]))
            .collect()
    };
    input.chunks_exact(2 * d).flat_map(row).collect()
}

fn close(got: &[bf16], want: &[bf16]) {
    assert_eq!(got.len(), want.len());
    let far = |(g, w): (&bf16, &bf16)| g.ulps_between(*w) > 1;
    let at = got.iter().zip(want).position(far);
    assert_eq!(at, None, "{:?}", at.map(|i| (got[i], want[i])));
}

#[test]
fn masked_rows_of_a_batch_are_neither_read_nor_written() {
    let Some(gpu) = gpu() else { return };
    let op = GatedActivation::deepseek_v4();
    for (rows, d) in [(5, 24), (7, 13), (64, 2048)] {
        let counts = [3, 0, rows as i32, 1, -1];
        let mut input = values(counts.len() * rows * 2 * d);
        for (e, &count) in counts.iter().enumerate() {
            let from = (e * rows + count.max(0) as usize) * 2 * d;
            input[from..(e + 1) * rows * 2 * d].fill(bf16::NAN);
        }
        let poison = bf16::from_bits(0x7fa5);
        let on_device = gpu.stream.clone_htod(&input).unwrap();
        let device_counts = gpu.stream.clone_htod(&counts).unwrap();
        let mut output = gpu
            .stream
            .clone_htod(&vec![poison; input.len() / 2])
            .unwrap();
        let options = LaunchOptions::programmatic();
        gpu.activations
            .act_and_mul_batched(
                &gpu.stream,
                &op,
                &on_device,
                &mut output,
                [rows, d],
                &device_counts,
                options,
            )
            .unwrap();
        let got = gpu.stream.clone_dtoh(&output).unwrap();
        let want = expected(&op, &input, d);
        for (t, (got, want)) in got.chunks(d).zip(want.chunks(d)).enumerate() {
            if ((t % rows) as i32) < counts[t / rows] {
                close(got, want);
            } else {
                assert!(got.iter().all(|y| y.to_bits() == 0x7fa5), "row {t}");
            }
        }
        // A count too many, or too few.
        let short = gpu.stream.clone_htod(&counts[1..]).unwrap();
        let call = gpu.activations.act_and_mul_batched(
            &gpu.stream,
            &op,
            &on_device,
            &mut output,
            [rows, d],
            &short,
            options,
        );
        assert!(call.is_err());
    }
}

#[test]
fn captured_calls_replay_on_new_values_with_and_without_programmatic_launch() {
    let Some(gpu) = gpu() else { return };
    let (op, d) = (GatedActivation::deepseek_v4(), 96);
    for options in [LaunchOptions::default(), LaunchOptions::programmatic()] {
        let mut input = gpu.stream.clone_htod(&values(64 * 2 * d)).unwrap();
        let mut middle = gpu.stream.alloc_zeros::<bf16>(64 * d).unwrap();
        let mut output = gpu.stream.alloc_zeros::<bf16>(32 * d).unwrap();
        gpu.stream.synchronize().unwrap();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        gpu.stream.begin_capture(mode).unwrap();
        // The second call reads what the first writes: it must wait for it.
        gpu.activations
            .act_and_mul(&gpu.stream, &op, &input, &mut middle, d, options)
            .unwrap();
        gpu.activations
            .act_and_mul(&gpu.stream, &op, &middle, &mut output, d, options)
            .unwrap();
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = gpu.stream.end_capture(flags).unwrap().unwrap();
        for seed in 0..50 {
            let new: Vec<bf16> = Numbers::new(seed).values(64 * 2 * d, 15.0);
            gpu.stream.memcpy_htod(&new, &mut input).unwrap();
            graph.launch().unwrap();
            let middle = gpu.stream.clone_dtoh(&middle).unwrap();
            close(&middle, &expected(&op, &new, d));
            let output = gpu.stream.clone_dtoh(&output).unwrap();
            close(&output, &expected(&op, &middle, d));
        }
    }
}

#[test]
fn bare_pointers_at_any_alignment_give_the_same_bits() {
    let Some(mut gpu) = gpu() else { return };
    let stream = gpu.stream.clone();
    let gpu = &mut gpu;
    let (op, rows, d) = (GatedActivation::deepseek_v4(), 5, 64);
    let data = values(rows * 2 * d);
    let want = {
        let input = stream.clone_htod(&data).unwrap();
        let mut output = stream.alloc_zeros::<bf16>(rows * d).unwrap();
        gpu.activations
            .act_and_mul(
                &stream,
                &op,
                &input,
                &mut output,
                d,
                LaunchOptions::default(),
            )
            .unwrap();
        stream.clone_dtoh(&output).unwrap()
    };
    close(&want, &expected(&op, &data, d));
    for (at, to) in [(0, 0), (1, 0), (0, 1), (3, 5), (8, 8)] {
        let mut shifted = vec![bf16::NAN; at];
        shifted.extend(&data);
        let input = stream.clone_htod(&shifted).unwrap();
        let mut output = stream.alloc_zeros::<bf16>(rows * d + to).unwrap();
        {
            let (input, _r) = input.device_ptr(&stream);
            let (output, _w) = output.device_ptr_mut(&stream);
            let matrix = |address, layout| RawMatrix {
                address,
                float: Float::BF16,
                layout,
            };
            let input = input + 2 * at as u64;
            let rows_of = |cols| RowLayout::contiguous(rows, cols);
            let call = |input| RawActCall {
                input: RawGateUp::Merged(matrix(input, rows_of(2 * d))),
                output: matrix(output, rows_of(d).with_offset(to)),
                batches: None,
            };
            // SAFETY: the addresses are of the slices above, which hold the rows.
            unsafe {
                let cu = stream.cu_stream();
                gpu.activations
                    .act_and_mul_raw(cu, &op, &call(input), LaunchOptions::default())
                    .unwrap();
                let odd = call(input + 1);
                assert!(
                    gpu.activations
                        .act_and_mul_raw(cu, &op, &odd, LaunchOptions::default())
                        .is_err()
                );
            }
        }
        let got = stream.clone_dtoh(&output).unwrap();
        assert_eq!(got[to..], want, "input off by {at}, output by {to}");
    }
}

#[test]
fn offsets_beyond_2_to_the_31_are_reached() {
    let Some(gpu) = gpu() else { return };
    let op = GatedActivation::deepseek_v4();
    // 2^31 + 2^13 elements of input, in vectors and in single elements.
    for (rows, d) in [((1 << 18) + 1, 4096), (1_048_592, 1025)] {
        let Ok(mut input) = gpu.stream.alloc_zeros::<bf16>(rows * 2 * d) else {
            let _ = writeln!(std::io::stderr(), "skipped: cuda: too little memory");
            return;
        };
        let mut output = gpu.stream.alloc_zeros::<bf16>(rows * d).unwrap();
        let last = values(2 * d);
        let from = (rows - 1) * 2 * d;
        gpu.stream
            .memcpy_htod(&last, &mut input.slice_mut(from..))
            .unwrap();
        gpu.activations
            .act_and_mul(
                &gpu.stream,
                &op,
                &input,
                &mut output,
                d,
                LaunchOptions::default(),
            )
            .unwrap();
        let got = gpu
            .stream
            .clone_dtoh(&output.slice((rows - 1) * d..))
            .unwrap();
        close(&got, &expected(&op, &last, d));
        let first = gpu.stream.clone_dtoh(&output.slice(..d)).unwrap();
        assert!(first.iter().all(|y| *y == bf16::ZERO));
    }
}

#[test]
fn nothing_is_launched_for_no_rows_and_wrong_calls_are_named() {
    let Some(gpu) = gpu() else { return };
    let op = GatedActivation::silu_and_mul();
    let empty = gpu.stream.null::<bf16>().unwrap();
    let mut output = gpu.stream.alloc_zeros::<bf16>(4).unwrap();
    let call = |input: &cudarc::driver::CudaSlice<bf16>, output: &mut _, d, options| {
        gpu.activations
            .act_and_mul(&gpu.stream, &op, input, output, d, options)
    };
    let options = LaunchOptions::default();
    call(&empty, &mut output, 4, options).unwrap();
    let input = gpu.stream.alloc_zeros::<bf16>(16).unwrap();
    let short = call(&input, &mut output, 4, options).unwrap_err();
    assert!(short.to_string().starts_with("output: expected"), "{short}");
    let input = gpu.stream.alloc_zeros::<bf16>(8).unwrap();
    let threads = call(&input, &mut output, 4, options.with_threads(33)).unwrap_err();
    assert!(threads.to_string().starts_with("threads"), "{threads}");
}

/// With `SWIGLU_DUMP` set to a folder, leaves there what `tests/against_pytorch.py` compares: the
/// results of every gate of 16 bits against 64 ups, in both modes.
#[test]
fn every_gate_against_64_ups() {
    fn sweep<T: Element + cudarc::driver::DeviceRepr>(gpu: &Gpu, name: &str) {
        let ups: Vec<T> = Numbers::new(11).values(64, 15.0);
        for (label, op) in [
            ("clamp", GatedActivation::deepseek_v4()),
            ("plain", GatedActivation::silu_and_mul()),
        ] {
            for rounding in [Rounding::Official, Rounding::Eager] {
                let op = op.with_rounding(rounding);
                let d = 1 << 16;
                let rows = ups.iter().flat_map(|up| {
                    let gates = (0..1 << 16).map(T::from_bits);
                    gates.chain(std::iter::repeat_n(*up, d))
                });
                let input: Vec<T> = rows.collect();
                let input = gpu.stream.clone_htod(&input).unwrap();
                let mut output = gpu.stream.clone_htod(&vec![T::default(); 64 * d]).unwrap();
                gpu.activations
                    .act_and_mul(
                        &gpu.stream,
                        &op,
                        &input,
                        &mut output,
                        d,
                        LaunchOptions::default(),
                    )
                    .unwrap();
                let got: Vec<T> = gpu.stream.clone_dtoh(&output).unwrap();
                for (i, y) in got.iter().enumerate() {
                    let (gate, up) = (T::from_bits((i % d) as u32), ups[i / d]);
                    let want = reference::gated(&op, gate, up);
                    if y.is_nan() || want.is_nan() {
                        assert_eq!(y.to_bits(), want.to_bits(), "{op} {gate:?}");
                        continue;
                    }
                    // Eager's arithmetic is PyTorch's, whose exp overflows below -88.7.
                    let ordinary = (2f32.powi(-20)..60.0).contains(&gate.to_f32().abs());
                    if rounding == Rounding::Official && ordinary {
                        assert!(y.ulps_between(want) <= 1, "{op} {gate:?} {up:?}");
                        let exact = f64::from(reference::gated(&op, gate.to_f32(), up.to_f32()));
                        let next = T::from_bits((want.to_bits() & 0x7fff) + 1).to_f32();
                        let ulp = f64::from(next) - f64::from(want.to_f32()).abs();
                        let error = (f64::from(y.to_f32()) - exact).abs();
                        assert!(
                            error <= 0.51 * ulp || !next.is_finite(),
                            "{op} {gate:?} {up:?}"
                        );
                    }
                }
                if let Ok(folder) = std::env::var("SWIGLU_DUMP") {
                    let mode = format!("{rounding:?}").to_lowercase();
                    let path = format!("{folder}/{name}_{label}_{mode}.bin");
                    std::fs::write(path, bytemuck::cast_slice(&got)).unwrap();
                    let path = format!("{folder}/{name}_ups.bin");
                    std::fs::write(path, bytemuck::cast_slice(&ups)).unwrap();
                }
            }
        }
    }
    let Some(gpu) = gpu() else { return };
    sweep::<bf16>(&gpu, "bf16");
    sweep::<half::f16>(&gpu, "f16");
}
