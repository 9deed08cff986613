//! What only a wgpu device can do wrong: limits, the caller's own encoder, loss.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use swiglu_core::reference::Reference;
use swiglu_core::{
    Accumulation, ActAndMul, Backend, Element, Float, GateUp, GatedActivation, HostWeight, Matmul,
    RowLayout, Tensor, TensorMut, WeightFormat,
};
use swiglu_wgpu::{Buffer, Builder, WgpuBackend, wgpu};

/// The backend of a builder; without an adapter the test is skipped by name, unless
/// `SWIGLU_REQUIRE` asks for it.
fn open(builder: Builder) -> Option<WgpuBackend> {
    match builder.allow_software(true).open() {
        Ok(backend) => Some(backend),
        Err(reason) => {
            swiglu_conformance::may_skip("wgpu", &reason.to_string(), "device");
            None
        }
    }
}

/// A matrix without gaps that fills a buffer from its start.
fn read<T: Element>(buffer: &Buffer, rows: usize, cols: usize) -> Tensor<'_, WgpuBackend> {
    Tensor::contiguous(WgpuBackend::view(buffer), T::FLOAT, rows, cols)
}

fn write<T: Element>(buffer: &mut Buffer, rows: usize, cols: usize) -> TensorMut<'_, WgpuBackend> {
    TensorMut::contiguous(WgpuBackend::view_mut(buffer), T::FLOAT, rows, cols)
}

fn small_limits(binding: u64) -> wgpu::Limits {
    wgpu::Limits {
        max_storage_buffer_binding_size: binding,
        max_immediate_size: 128,
        ..wgpu::Limits::downlevel_defaults()
    }
}

fn values(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| (i * 7919 % 4001) as f32 / 500.0 - 4.0)
        .collect()
}

fn upload(backend: &WgpuBackend, data: &[f32]) -> Buffer {
    swiglu_conformance::filled(backend, bytemuck::cast_slice(data)).unwrap()
}

fn download(backend: &WgpuBackend, buffer: &Buffer) -> Vec<f32> {
    let mut data = vec![0.0; buffer.len() / 4];
    backend
        .download(buffer, bytemuck::cast_slice_mut(&mut data))
        .unwrap();
    data
}

/// An activation of rows and of a single long row is the same whether bindings are split or not.
#[test]
fn small_bindings_change_nothing() {
    let Some(whole) = open(WgpuBackend::builder()) else {
        return;
    };
    let split = open(WgpuBackend::builder().limits(small_limits(8192))).unwrap();
    for op in [GatedActivation::deepseek_v4(), GatedActivation::gpt_oss()] {
        for (rows, d) in [(100, 96), (1, 20_003), (3, 5000)] {
            let input = values(rows * 2 * d);
            let [a, b] = [&whole, &split].map(|g| g.act_and_mul_slice(&op, &input, d).unwrap());
            assert_eq!(a, b, "{op} {rows} x {d}");
            let halves: Vec<_> = input.iter().map(|&x| half::bf16::from_f32(x)).collect();
            let [a, b] = [&whole, &split].map(|g| g.act_and_mul_slice(&op, &halves, d).unwrap());
            assert_eq!(a, b, "{op} {rows} x {d} in bf16");
        }
    }
}

/// A weight and tokens that fill many bindings give what one binding gives.
#[test]
fn a_split_weight_is_one_weight() {
    let limits = small_limits(8192);
    let Some(backend) = open(WgpuBackend::builder().limits(limits)) else {
        return;
    };
    let (tokens, n, k) = (70, 37, 256);
    let integers =
        |count: usize| -> Vec<f32> { (0..count).map(|i| (i % 7) as f32 - 3.0).collect() };
    let (x, w) = (integers(tokens * k), integers(n * k));
    let format = WeightFormat::Float(Float::F32);
    let part = HostWeight::new([n, k], format, bytemuck::cast_slice(&w), &[]).unwrap();
    let weight = backend.load_weight(std::slice::from_ref(&part)).unwrap();
    let on_device = upload(&backend, &x);
    let mut y = backend.alloc(tokens * n * 4).unwrap();
    let to = write::<f32>(&mut y, tokens, n);
    backend
        .matmul(read::<f32>(&on_device, tokens, k), &weight, to)
        .unwrap();
    let oracle = Reference.load_weight(&[part]).unwrap();
    let mut want = vec![0.0_f32; tokens * n];
    let [from, to] = [k, n].map(|cols| RowLayout::contiguous(tokens, cols));
    let to = TensorMut::from_slice(&mut want, to);
    Reference
        .matmul(Tensor::from_slice(&x, from), &oracle, to)
        .unwrap();
    assert_eq!(download(&backend, &y), want);
}

/// More rows, and more workgroups, than one dimension of a dispatch has.
#[test]
fn rows_beyond_a_dimension_are_all_written() {
    let Some(backend) = open(WgpuBackend::builder()) else {
        return;
    };
    let relu = GatedActivation::fatrelu_and_mul(0.0).unwrap();
    let rows = 65_536 * 256 / 2 + 3;
    let mut input = vec![half::bf16::from_f32(2.0); 2 * rows];
    input[2 * rows - 2] = half::bf16::from_f32(3.0);
    let y = backend.act_and_mul_slice(&relu, &input, 1).unwrap();
    assert!(y[..rows - 1].iter().all(|y| y.to_f32() == 4.0));
    assert_eq!(y[rows - 1].to_f32(), 6.0);
}

/// The caller's device, queue, buffers and pass: nothing happens before the caller submits.
#[test]
fn a_callers_pass_is_recorded_into_and_not_submitted() {
    let Some(own) = open(WgpuBackend::builder()) else {
        return;
    };
    let (device, queue) = (own.device().raw().clone(), own.device().queue().clone());
    let backend = WgpuBackend::from_device(device.clone(), queue.clone()).unwrap();
    let input = values(2 * 64);
    let raw = |size| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: Buffer::USAGES,
            mapped_at_creation: false,
        })
    };
    let x = raw(2 * 64 * 4);
    queue.write_buffer(&x, 0, bytemuck::cast_slice(&input));
    let (x, mut y) = (Buffer::wrap(x).unwrap(), Buffer::wrap(raw(64 * 4)).unwrap());
    let op = GatedActivation::deepseek_v4();
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let (from, to) = (read::<f32>(&x, 1, 128), write::<f32>(&mut y, 1, 64));
    backend
        .record_act_and_mul(&mut pass, &op, from.into(), to)
        .unwrap();
    drop(pass);
    assert!(download(&backend, &y).iter().all(|&y| y == 0.0));
    queue.submit([encoder.finish()]);
    assert_eq!(
        download(&backend, &y),
        own.act_and_mul_slice(&op, &input, 64).unwrap()
    );
    // A buffer that is no kernel's, and one that is both input and output.
    let plain = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    assert!(
        Buffer::wrap(plain)
            .unwrap_err()
            .to_string()
            .starts_with("buffer: expected the usage")
    );
    let mut same = x.clone();
    let (from, to) = (read::<f32>(&x, 1, 128), write::<f32>(&mut same, 1, 64));
    let error = backend.act_and_mul(&op, from.into(), to);
    let error = error.unwrap_err().to_string();
    let expected = "output: expected another buffer";
    assert!(error.starts_with(expected), "{error}");
}

/// After the device is gone every call says so, and none hangs or panics.
#[test]
fn a_lost_device_is_an_error() {
    let Some(backend) = open(WgpuBackend::builder()) else {
        return;
    };
    let x = upload(&backend, &values(4));
    let mut y = backend.alloc(8).unwrap();
    backend.device().raw().destroy();
    let op = GatedActivation::deepseek_v4();
    let waited = backend.synchronize().unwrap_err().to_string();
    assert!(waited.contains("the device is lost"), "{waited}");
    let input: GateUp<'_, WgpuBackend> = read::<f32>(&x, 1, 4).into();
    let enqueued = backend.act_and_mul(&op, input, write::<f32>(&mut y, 1, 2));
    let enqueued = enqueued.unwrap_err().to_string();
    assert!(enqueued.contains("the device is lost"), "{enqueued}");
    for error in [
        backend.synchronize().unwrap_err(),
        backend.alloc(16).unwrap_err(),
        backend.upload(&mut y, &[0; 8]).unwrap_err(),
        backend.download(&y, &mut [0; 8]).unwrap_err(),
    ] {
        assert!(error.to_string().contains("the device is lost"), "{error}");
    }
}

/// A size that no device has is an error with that size.
#[test]
fn too_much_memory_is_an_error() {
    let Some(backend) = open(WgpuBackend::builder()) else {
        return;
    };
    for bytes in [usize::MAX, 1 << 50] {
        let error = backend.alloc(bytes).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("wgpu: out of memory allocating {bytes} bytes")
        );
    }
}

/// A tail that is no whole word leaves the word's other bytes alone.
#[test]
fn an_upload_of_odd_length_writes_its_bytes_only() {
    let Some(backend) = open(WgpuBackend::builder()) else {
        return;
    };
    let mut buffer = backend.alloc(10).unwrap();
    backend.upload(&mut buffer, &[9; 10]).unwrap();
    backend.upload(&mut buffer, &[1, 2, 3, 4, 5, 6]).unwrap();
    let mut data = [0; 10];
    backend.download(&buffer, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 9, 9, 9, 9]);
    assert!(backend.upload(&mut buffer, &[0; 11]).is_err());
    assert!(backend.download(&buffer, &mut [0; 11]).is_err());
}

/// No adapter of that name: an error that gives each adapter's reason.
#[test]
fn a_probe_without_a_match_gives_reasons() {
    let error = WgpuBackend::builder().adapter("no such adapter").open();
    assert!(error.unwrap_err().to_string().starts_with("no adapter: "));
}

/// A backend says which sums it was opened for, and never more than it has kernels for.
#[test]
fn the_class_of_sums_is_the_one_that_was_asked_for() {
    for (asked, promised) in [
        (Accumulation::Ordered, Accumulation::Ordered),
        (Accumulation::Fp8TensorCore, Accumulation::MatrixUnit),
    ] {
        let Some(backend) = open(WgpuBackend::builder().accumulation(asked)) else {
            return;
        };
        assert_eq!(backend.accuracy().accumulation, promised);
        let ordered = backend.description().ends_with("sums are ordered");
        assert_eq!(ordered, asked == Accumulation::Ordered);
    }
}
