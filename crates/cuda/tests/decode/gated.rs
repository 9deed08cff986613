//! A matmul with the activation behind it in one kernel, against the two.

use half::{bf16, f16};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    ActAndMul, Backend, Element, Float, GatedActivation, HostWeight, Matmul, Rounding, RowLayout,
    ScaleFormat, Tensor, TensorMut, WeightFormat,
};
use swiglu_cuda::{CudaBackend, CudaBuffer};

use crate::common::sums::fp8;
use crate::common::{bytes, filled, open};
use crate::mapped::BF16;
use crate::weights::{has_steps, random};

const POISON: u8 = 0xa5;

/// I and H: of one, four, five and six groups a stream.
const SHAPES: [[usize; 2]; 4] = [[96, 448], [2112, 128], [2640, 128], [3072, 192]];

fn tensor_mut<T: Element>(
    buffer: &mut CudaBuffer,
    rows: usize,
    cols: usize,
) -> TensorMut<'_, CudaBackend> {
    TensorMut::contiguous(CudaBackend::view_mut(buffer), T::FLOAT, rows, cols)
}

struct Half {
    x: Vec<bf16>,
    /// Gate and up.
    parts: [HostWeight<'static>; 2],
    i: usize,
}

impl Half {
    fn new(t: usize, [i, h]: [usize; 2], format: WeightFormat) -> Self {
        // Sums beyond ten and far below it.
        let part = |seed| random([i, h], format, seed);
        Self {
            x: Numbers::new(t as u64).values(t * h, 16.0),
            parts: [part(5), part(6)],
            i,
        }
    }

    /// The activations, by one call and by two; and whether the one left what lies between unwritten. Rows of the one
    /// call's are so many elements longer than they need to be, and begin at such an element.
    fn run<T: Element>(
        &self,
        backend: &CudaBackend,
        op: &GatedActivation,
        (gap, offset): (usize, usize),
    ) -> [Vec<T>; 2] {
        let [gate, up] = self.parts.clone();
        let (i, h) = (self.i, gate.cols());
        let (t, size) = (self.x.len() / h, T::FLOAT.size());
        let weight = backend.load_gate_up(gate, up).unwrap();
        let x = filled(backend, bytemuck::cast_slice(&self.x));
        let x = Tensor::contiguous(CudaBackend::view(&x), Float::BF16, t, h);
        let poisoned = |elements: usize| filled(backend, &vec![POISON; elements * size]);
        let stride = i + gap;
        let (mut between, mut act) = (poisoned(2 * t * i), poisoned(offset + t * stride));
        let layout = RowLayout::contiguous(t, i)
            .with_stride(stride)
            .with_offset(offset);
        let to = TensorMut::new(CudaBackend::view_mut(&mut act), T::FLOAT, layout);
        backend
            .matmul_act_and_mul(op, x, &weight, tensor_mut::<T>(&mut between, t, 2 * i), to)
            .unwrap();
        assert!(
            bytes(backend, &between).iter().all(|&b| b == POISON),
            "two kernels ran"
        );
        let fused = bytes(backend, &act);
        let fused: Vec<T> = fused
            .chunks_exact(size)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let poison: T = bytemuck::pod_read_unaligned(&vec![POISON; size]);
        for (at, y) in fused.iter().enumerate() {
            let inside = (0..t).any(|row| layout.row(row).contains(&at));
            assert!(
                inside || y.to_bits() == poison.to_bits(),
                "{at} was written"
            );
        }
        let fused = (0..t)
            .flat_map(|row| fused[layout.row(row)].to_vec())
            .collect();

        backend
            .matmul(x, &weight, tensor_mut::<T>(&mut between, t, 2 * i))
            .unwrap();
        let to = TensorMut::contiguous(CudaBackend::view_mut(&mut act), T::FLOAT, t, i);
        let middle = Tensor::contiguous(CudaBackend::view(&between), T::FLOAT, t, 2 * i);
        backend.act_and_mul(op, middle.into(), to).unwrap();
        let two = bytes(backend, &act);
        let two = two.chunks_exact(size).map(bytemuck::pod_read_unaligned);
        [fused, two.take(t * i).collect()]
    }
}

fn clamped(limit: f32) -> GatedActivation {
    GatedActivation::silu_and_mul_with_clamp(limit, 1.0, 0.0).unwrap()
}

fn same_bits<T: Element>(backend: &CudaBackend, half: &Half, op: &GatedActivation) {
    // Rows that vectors can be stored to, and others.
    for place in [(0, 0), (8, 16), (4, 4), (3, 1)] {
        let [fused, two] = half.run::<T>(backend, op, place);
        let differs = |at: &usize| fused[*at].to_bits() != two[*at].to_bits();
        let at = (0..two.len()).find(differs);
        let pair = at.map(|at| (at, fused[at], two[at]));
        assert!(
            pair.is_none(),
            "{op} in {}, {} of {:?} at {place:?}: {pair:?}",
            T::FLOAT,
            half.i,
            half.parts[0].format()
        );
        assert!(two.iter().any(|y| y.to_f32() != 0.0));
    }
}

/// Bit for bit, as both have the same sums: in every type, limit and rounding.
#[test]
fn one_kernel_gives_the_bits_of_two() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let v4 = WeightFormat::DEEPSEEK_V4;
    let half = Half::new(3, SHAPES[0], fp8(ScaleFormat::F32, [32, 32]));
    let limits = [0.333, 0.5, 1.0, 3.0, 7.0, 10.0, 10.03, 15.0];
    let ops = limits
        .map(clamped)
        .into_iter()
        .chain([GatedActivation::silu_and_mul()]);
    for op in ops {
        for rounding in [Rounding::Official, Rounding::Eager] {
            let op = op.with_rounding(rounding);
            same_bits::<bf16>(&backend, &half, &op);
            same_bits::<f16>(&backend, &half, &op);
            same_bits::<f32>(&backend, &half, &op);
        }
    }
    for shape in SHAPES {
        for t in [1, 2, 8, 9, 16] {
            same_bits::<bf16>(&backend, &Half::new(t, shape, v4), &clamped(1.0));
        }
    }
    let any_scales = fp8(ScaleFormat::F32, [128, 128]);
    for t in [17, 32, 33, 48] {
        for shape in [SHAPES[1], SHAPES[3]] {
            same_bits::<bf16>(&backend, &Half::new(t, shape, any_scales), &clamped(1.0));
        }
    }
    // By warpgroups, shards too.
    for shape in [SHAPES[1], SHAPES[3], [192, 448], [256, 128], [288, 128]] {
        for t in [17, 33, 65, 128, 129, 256] {
            same_bits::<bf16>(&backend, &Half::new(t, shape, v4), &clamped(1.0));
        }
    }
    for (shape, t) in [(SHAPES[1], 300), (SHAPES[1], 1023), (SHAPES[3], 257)] {
        let half = Half::new(t, shape, v4);
        same_bits::<bf16>(&backend, &half, &clamped(1.0));
        same_bits::<bf16>(&backend, &half, &GatedActivation::silu_and_mul());
    }
    for op in [clamped(1.0), GatedActivation::silu_and_mul()] {
        let eager = op.with_rounding(Rounding::Eager);
        for t in [40, 200] {
            let half = Half::new(t, SHAPES[1], fp8(ScaleFormat::E8M0, [32, 32]));
            same_bits::<f32>(&backend, &half, &op);
            same_bits::<f16>(&backend, &half, &eager);
            same_bits::<bf16>(&backend, &half, &eager);
        }
    }
}

/// By tensor maps, shards too.
#[test]
fn one_kernel_gives_the_bits_of_two_by_weights_in_bf16() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    for shape in [
        [8, 72],
        [192, 448],
        [256, 1096],
        [288, 128],
        SHAPES[1],
        SHAPES[3],
    ] {
        for t in [1, 3, 8, 17, 33, 63, 64, 65, 127, 128, 129, 200, 255, 256] {
            if t > 64 && shape[0] > 2112 {
                continue;
            }
            same_bits::<bf16>(&backend, &Half::new(t, shape, BF16), &clamped(1.0));
        }
    }
    for op in [clamped(1.0), clamped(10.0), GatedActivation::silu_and_mul()] {
        let half = Half::new(20, SHAPES[0], BF16);
        same_bits::<bf16>(&backend, &half, &op.with_rounding(Rounding::Eager));
        same_bits::<f32>(&backend, &half, &op);
    }
}

/// The clamp and the rounding are those asked for: each changes the bits.
#[test]
fn limit_and_rounding_reach_the_kernel() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    for format in [WeightFormat::DEEPSEEK_V4, BF16] {
        let half = Half::new(2, SHAPES[0], format);
        let run = |op: GatedActivation| half.run::<bf16>(&backend, &op, (0, 0))[0].clone();
        let plain = run(GatedActivation::silu_and_mul());
        let one = run(clamped(1.0));
        let largest = |y: &[bf16]| y.iter().fold(0.0_f32, |m, y| m.max(y.to_f32().abs()));
        assert!(largest(&plain) > 1.0 && largest(&one) <= 0.7343);
        assert_ne!(one, run(clamped(0.5)));
        assert_ne!(one, run(clamped(1.0).with_rounding(Rounding::Eager)));
        assert_ne!(
            plain,
            run(GatedActivation::silu_and_mul().with_rounding(Rounding::Eager))
        );
    }
}
