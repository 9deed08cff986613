//! Ranks over NCCL: one on one device, and as many as there are devices.
#![cfg(feature = "nccl")]
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, sys};
use half::bf16;
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Backend, Communicator, Float, RowLayout, TensorMut};
use swiglu_cuda::{CudaBackend, NcclCommunicator, NcclId, cudarc};

mod common;
use common::{bytes, filled, open};

const LONG: Duration = Duration::from_secs(60);

/// An id, or a skip by the name of the test where the library is missing.
fn id(test: &str) -> Option<NcclId> {
    match NcclId::new() {
        Ok(id) => Some(id),
        Err(error) => {
            swiglu_conformance::may_skip("nccl", &error.to_string(), test);
            None
        }
    }
}

fn values(rows: &RowLayout, seed: u64) -> Vec<f32> {
    let len = rows.offset + rows.rows * rows.stride;
    Numbers::new(seed).values(len, 100.0)
}

#[test]
fn the_sum_of_one_rank_is_its_own_matrix_rounded_once() {
    let Some((cuda, _turn)) = open("nccl") else {
        return;
    };
    let Some(id) = id("one rank") else { return };
    let ranks = NcclCommunicator::new(&cuda, &id, 0, 1, LONG).unwrap();
    let whole = RowLayout::contiguous(5, 96);
    for layout in [whole, whole.with_stride(100).with_offset(4)] {
        let data = values(&layout, 3);
        let mut matrix = filled(&cuda, bytemuck::cast_slice(&data));
        let view = CudaBackend::view_mut(&mut matrix);
        ranks
            .all_reduce(&cuda, TensorMut::new(view, Float::F32, layout))
            .unwrap();
        ranks.wait(&cuda).unwrap();
        assert_eq!(bytes(&cuda, &matrix), bytemuck::cast_slice::<_, u8>(&data));

        let poison = vec![0xa5; 2 * data.len()];
        let mut y = filled(&cuda, &poison);
        let partial = TensorMut::new(CudaBackend::view_mut(&mut matrix), Float::F32, layout);
        let to = TensorMut::new(CudaBackend::view_mut(&mut y), Float::BF16, layout);
        ranks.all_reduce_into(&cuda, partial, to).unwrap();
        let mut expected = poison;
        for row in 0..layout.rows {
            for at in layout.row(row) {
                let y = bf16::from_f32(data[at]).to_le_bytes();
                expected[2 * at..][..2].copy_from_slice(&y);
            }
        }
        assert_eq!(bytes(&cuda, &y), expected, "{layout}");
    }
}

#[test]
fn a_captured_reduction_replays_on_new_values() {
    let Some((cuda, _turn)) = open("nccl in a graph") else {
        return;
    };
    let Some(id) = id("a graph") else { return };
    let ranks = NcclCommunicator::new(&cuda, &id, 0, 1, LONG).unwrap();
    let (rows, cols) = (4, 512);
    let mut partial = cuda.alloc(4 * rows * cols).unwrap();
    let mut y = cuda.alloc(2 * rows * cols).unwrap();
    let reduce = |partial: &mut _, y: &mut _| {
        let partial = CudaBackend::view_mut(partial);
        let partial = TensorMut::contiguous(partial, Float::F32, rows, cols);
        let y = TensorMut::contiguous(CudaBackend::view_mut(y), Float::BF16, rows, cols);
        ranks.all_reduce_into(&cuda, partial, y).unwrap();
    };
    reduce(&mut partial, &mut y);
    ranks.wait(&cuda).unwrap();
    let stream = cuda.stream();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    reduce(&mut partial, &mut y);
    let flags = sys::CUgraphInstantiate_flags(0);
    let graph = stream.end_capture(flags).unwrap().unwrap();
    for seed in 0..5 {
        let data: Vec<f32> = Numbers::new(seed).values(rows * cols, 100.0);
        cuda.upload(&mut partial, bytemuck::cast_slice(&data))
            .unwrap();
        graph.launch().unwrap();
        let expected: Vec<bf16> = data.iter().map(|&y| bf16::from_f32(y)).collect();
        assert_eq!(bytes(&cuda, &y), bytemuck::cast_slice::<_, u8>(&expected));
    }
}

#[test]
fn a_rank_that_never_comes_is_an_error_and_no_hang() {
    let Some((cuda, _turn)) = open("nccl without a rank") else {
        return;
    };
    let Some(id) = id("a missing rank") else {
        return;
    };
    let start = Instant::now();
    let error = NcclCommunicator::new(&cuda, &id, 0, 2, Duration::from_secs(3)).unwrap_err();
    let expected = "join the ranks: the other ranks did not come within 3 s";
    assert_eq!(error.to_string(), expected);
    // An hour would be a hang; how long an abort takes is NCCL's.
    assert!(start.elapsed() < Duration::from_secs(3600));
    let outside = NcclCommunicator::new(&cuda, &id, 2, 2, LONG).unwrap_err();
    assert_eq!(
        outside.to_string(),
        "rank: expected a rank below the world's 2, got 2"
    );
}

/// A backend for each device of the machine; a skip by the name of the test where there is one only.
fn devices(test: &str) -> Option<Vec<CudaBackend>> {
    let count = CudaContext::device_count().unwrap_or(0);
    if count < 2 {
        let reason = format!("{count} devices are there, 2 are needed");
        swiglu_conformance::may_skip("nccl on several devices", &reason, test);
        return None;
    }
    let open = |ordinal: i32| {
        let context = CudaContext::new(ordinal as usize).unwrap();
        CudaBackend::from_stream(context.new_stream().unwrap()).unwrap()
    };
    Some((0..count).map(open).collect())
}

#[test]
fn every_device_gets_the_sum_of_all() {
    let Some((_, _turn)) = open("nccl on several devices") else {
        return;
    };
    let Some(devices) = devices("the sum of all") else {
        return;
    };
    let Some(id) = id("several devices") else {
        return;
    };
    let (world, layout) = (
        devices.len(),
        RowLayout::contiguous(3, 1000).with_stride(1004),
    );
    let expected: Vec<f32> = {
        let parts: Vec<_> = (0..world)
            .map(|rank| values(&layout, rank as u64))
            .collect();
        let sum = |at: usize| parts.iter().map(|part| part[at]).sum();
        (0..parts[0].len()).map(sum).collect()
    };
    std::thread::scope(|scope| {
        for (rank, cuda) in devices.into_iter().enumerate() {
            let expected = &expected;
            scope.spawn(move || {
                let ranks = NcclCommunicator::new(&cuda, &id, rank, world, LONG).unwrap();
                let own = values(&layout, rank as u64);
                let mut matrix = filled(&cuda, bytemuck::cast_slice(&own));
                let mut y = filled(&cuda, &vec![0; 2 * own.len()]);
                let partial =
                    TensorMut::new(CudaBackend::view_mut(&mut matrix), Float::F32, layout);
                let to = TensorMut::new(CudaBackend::view_mut(&mut y), Float::BF16, layout);
                ranks.all_reduce_into(&cuda, partial, to).unwrap();
                ranks.wait(&cuda).unwrap();
                let bytes = bytes(&cuda, &y);
                let y: &[bf16] = bytemuck::cast_slice(&bytes);
                for at in (0..layout.rows).flat_map(|row| layout.row(row)) {
                    let (got, want) = (y[at].to_f32(), expected[at]);
                    assert!(
                        (got - want).abs() <= want.abs() / 128.0 + 1e-4,
                        "{got} for {want}"
                    );
                }
            });
        }
    });
}

#[test]
fn a_rank_that_dies_gives_the_others_an_error() {
    let Some((_, _turn)) = open("nccl on several devices") else {
        return;
    };
    let Some(devices) = devices("a rank that dies") else {
        return;
    };
    let Some(id) = id("a rank that dies") else {
        return;
    };
    let (world, timeout) = (devices.len(), Duration::from_secs(5));
    std::thread::scope(|scope| {
        for (rank, cuda) in devices.into_iter().enumerate() {
            scope.spawn(move || {
                let ranks = NcclCommunicator::new(&cuda, &id, rank, world, timeout).unwrap();
                let mut matrix = filled(&cuda, &[0; 4096]);
                let mut sum = || {
                    let view = CudaBackend::view_mut(&mut matrix);
                    ranks.all_reduce(&cuda, TensorMut::contiguous(view, Float::F32, 1, 1024))?;
                    ranks.wait(&cuda)
                };
                sum().unwrap();
                if rank == 0 {
                    // It leaves without the farewell that would keep the others.
                    std::mem::forget(ranks);
                    return;
                }
                let error = sum().unwrap_err().to_string();
                assert!(
                    error.contains("the other ranks did not come within 5 s"),
                    "{error}"
                );
                let after = sum().unwrap_err().to_string();
                assert!(after.contains("failed before"), "{after}");
            });
        }
    });
}
