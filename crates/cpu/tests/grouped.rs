//! The matmuls of many experts in one call equal those of each expert by itself, bit for bit: in
//! every format, on each instruction set of this machine and in both classes of sums.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test helper is no #[test] function"
)]

use std::sync::Arc;

use fastrand::Rng;
use swiglu_core::{
    Accumulation, Backend, E4M3, Experts, ExpertsShape, Float, GatedActivation, GroupedMatmul,
    HostBuffer, HostRoutes, HostWeight, Matmul, Request, Routes, Routing, RowLayout, Selection,
    Shape, Tensor, TensorMut, WeightFormat, bf16, reference,
};
use swiglu_cpu::{CpuBackend, InstructionSet, PackedWeight, Settings};

const H: usize = 160;
const I: usize = 96;
const FORMATS: [WeightFormat; 3] = [
    WeightFormat::Fp4,
    WeightFormat::DEEPSEEK_V4,
    WeightFormat::Float(Float::BF16),
];

/// Those with a matrix unit.
const UNITS: [InstructionSet; 4] = [
    InstructionSet::AmxEmulated,
    InstructionSet::Amx,
    InstructionSet::Avx512Bf16Emulated,
    InstructionSet::Avx512Bf16,
];

fn backends() -> Vec<(String, CpuBackend)> {
    let mut all = Vec::new();
    for set in InstructionSet::ALL {
        match CpuBackend::with_instruction_set(set) {
            Ok(cpu) => {
                let cpu = cpu.with_accumulation(Accumulation::Ordered);
                all.push((set.to_string(), cpu));
            }
            Err(error) => eprintln!("skipped: {set}: {error}"),
        }
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3);
    let pool = Arc::new(pool.build().unwrap());
    let mut settings = Settings::default();
    settings.inline_multiplications = 0;
    let cpu = CpuBackend::new().with_settings(settings);
    all.push(("pool".to_owned(), cpu.with_pool(Arc::clone(&pool))));
    // Two rows and more are AMX's, and all are dot products.
    (settings.matrix_unit_rows, settings.matrix_unit_rows_fp8) = (2, 2);
    for set in UNITS {
        if let Ok(cpu) = CpuBackend::with_instruction_set(set) {
            let cpu = cpu.with_settings(settings).with_pool(Arc::clone(&pool));
            all.push((format!("unit of {set}"), cpu));
        }
    }
    all
}

fn weight(random: &mut Rng, format: WeightFormat, [n, k]: [usize; 2]) -> HostWeight<'static> {
    let mut data = Vec::new();
    for _ in 0..n * format.row_bytes(k) / if format.bits() == 16 { 2 } else { 1 } {
        let x = random.f32() - 0.5;
        match format {
            WeightFormat::Float(_) => data.extend(bf16::from_f32(x).to_le_bytes()),
            WeightFormat::Fp4 => data.push(random.u8(..)),
            _ => data.push(E4M3::from_f32_saturating(x * 8.0).0),
        }
    }
    let [rows, cols] = format.scale_grid([n, k]).unwrap();
    let scales = (0..rows * cols).map(|_| random.u8(122..127)).collect();
    HostWeight::owned([n, k], format, data, scales).unwrap()
}

/// Which experts each token has, and with which weights.
fn routes(random: &mut Rng, routing: &Routing, tokens: usize, skew: bool) -> HostRoutes {
    let (experts, k) = (routing.experts(), routing.top_k());
    let mut ids = Vec::new();
    for token in 0..tokens {
        let mut all: Vec<i32> = (0..experts as i32).collect();
        if !skew {
            random.shuffle(&mut all);
        }
        // Now and then no expert.
        let none = |at: usize| token % 5 == 3 && at == 1;
        ids.extend((0..k).map(|at| if none(at) { -1 } else { all[at] }));
    }
    let weights: Vec<f32> = ids
        .iter()
        .map(|&id| if id < 0 { 0.0 } else { 0.1 + random.f32() })
        .collect();
    HostRoutes::new(routing, &ids, &weights).unwrap()
}

struct Layer {
    routing: Routing,
    experts: Experts<PackedWeight>,
    /// Gate and up, and down, of each expert by itself.
    alone: Vec<[PackedWeight; 2]>,
}

impl Layer {
    fn new(cpu: &CpuBackend, format: WeightFormat, experts: usize, k: usize) -> Self {
        let mut random = Rng::with_seed(3);
        let routing = Routing::new(experts, k, 1.5, true, Selection::Score).unwrap();
        let shape = ExpertsShape {
            range: 0..experts,
            hidden: H,
            intermediate: I,
            gate_up: format,
            down: format,
        };
        let mut loaded = cpu.alloc_experts(shape).unwrap();
        let mut alone = Vec::new();
        for _ in 0..experts {
            let [gate, up] = [0, 1].map(|_| weight(&mut random, format, [I, H]));
            let down = weight(&mut random, format, [H, I]);
            let both = cpu.load_gate_up(gate.clone(), up.clone()).unwrap();
            alone.push([both, cpu.load_weight(std::slice::from_ref(&down)).unwrap()]);
            cpu.load_expert(&mut loaded, gate, up, down).unwrap();
        }
        Self {
            routing,
            experts: loaded,
            alone,
        }
    }

    fn scratch(
        &self,
        cpu: &CpuBackend,
        request: &Request,
        [rows, cols, depth]: [usize; 3],
    ) -> HostBuffer {
        let shape = Shape { rows, cols, depth };
        cpu.alloc(cpu.scratch(request, &shape)).unwrap()
    }

    fn acts(
        &self,
        cpu: &CpuBackend,
        x: &[bf16],
        layout: RowLayout,
        routes: &Routes<HostBuffer>,
    ) -> Vec<bf16> {
        let op = GatedActivation::deepseek_v4();
        let (t, format) = (layout.rows, self.experts.shape().gate_up);
        let request = Request::GroupedGatedMatmul {
            op,
            quant: None,
            routing: self.routing,
            x: Float::BF16,
            weight: format,
        };
        let mut scratch = self.scratch(cpu, &request, [t, 2 * I, H]);
        let mut act = vec![bf16::NAN; routes.count() * I];
        let to = TensorMut::from_slice(&mut act, RowLayout::contiguous(routes.count(), I));
        let x = Tensor::from_slice(x, layout);
        let scratch = scratch.bytes_mut();
        cpu.grouped_matmul_act_and_mul(&op, None, x, &self.experts, routes, scratch, to)
            .unwrap();
        act
    }

    fn sums(
        &self,
        cpu: &CpuBackend,
        act: &[bf16],
        shared: &[bf16],
        routes: &Routes<HostBuffer>,
    ) -> Vec<bf16> {
        let t = routes.tokens();
        let request = Request::GroupedMatmulSum {
            quant: None,
            routing: self.routing,
            weight: self.experts.shape().down,
            y: Float::BF16,
        };
        let mut scratch = self.scratch(cpu, &request, [t, H, I]);
        let mut y = vec![bf16::NAN; t * H];
        let all = RowLayout::contiguous(t, H);
        let act = Tensor::from_slice(act, RowLayout::contiguous(routes.count(), I));
        let shared = Some(Tensor::from_slice(shared, all));
        let to = TensorMut::from_slice(&mut y, all);
        let scratch = scratch.bytes_mut();
        cpu.grouped_matmul_sum(None, act, &self.experts, routes, shared, scratch, to)
            .unwrap();
        y
    }
}

/// R(rows · wᵀ) by itself.
fn matmul(cpu: &CpuBackend, x: &[bf16], k: usize, w: &PackedWeight) -> Vec<bf16> {
    let (rows, n) = (x.len() / k, cpu.weight_shape(w)[0]);
    let mut y = vec![bf16::NAN; rows * n];
    let x = Tensor::from_slice(x, RowLayout::contiguous(rows, k));
    cpu.matmul(
        x,
        w,
        TensorMut::from_slice(&mut y, RowLayout::contiguous(rows, n)),
    )
    .unwrap();
    y
}

fn bits(y: &[bf16]) -> Vec<u16> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// Tokens, experts, experts of a token, and whether all tokens have the same.
const CASES: [(usize, usize, usize, bool); 8] = [
    (1, 7, 3, false),
    (2, 7, 7, false),
    (5, 7, 3, false),
    (9, 4, 2, true),
    (40, 7, 3, false),
    // More experts than a wave, and more rows than one.
    (64, 150, 6, false),
    (300, 5, 2, false),
    (300, 5, 2, true),
];

#[test]
fn experts_together_equal_experts_alone() {
    let op = GatedActivation::deepseek_v4();
    for (name, cpu) in backends() {
        for (format, (tokens, experts, k, skew)) in FORMATS
            .into_iter()
            .flat_map(|f| CASES.map(|case| (f, case)))
        {
            if name == "scalar" && experts > 100 {
                continue;
            }
            let what = format!("{name}, {format}, {tokens} tokens, {experts} experts, {k} each");
            let layer = Layer::new(&cpu, format, experts, k);
            let mut random = Rng::with_seed(tokens as u64);
            let host = routes(&mut random, &layer.routing, tokens, skew);
            let mut routes = Routes::new(&cpu, &layer.routing, tokens).unwrap();
            routes.upload(&cpu, &host.ids, &host.weights).unwrap();
            let layout = RowLayout::contiguous(tokens, H)
                .with_stride(H + 3)
                .with_offset(1);
            let mut value = |scale: f32| bf16::from_f32(scale * (random.f32() - 0.5));
            let x: Vec<bf16> = (0..1 + tokens * (H + 3)).map(|_| value(40.0)).collect();
            let shared: Vec<bf16> = (0..tokens * H).map(|_| value(8.0)).collect();

            let acts = layer.acts(&cpu, &x, layout, &routes);
            let mut outputs = Vec::new();
            for (e, [gate_up, down]) in layer.alone.iter().enumerate() {
                let rows = host.offsets[e] as usize..host.offsets[e + 1] as usize;
                let of = |row: usize| host.sorted[row] as usize;
                let gathered = rows.clone().flat_map(|row| &x[layout.row(of(row) / k)]);
                let gathered: Vec<bf16> = gathered.copied().collect();
                let pairs = matmul(&cpu, &gathered, H, gate_up);
                for (row, pairs) in rows.clone().zip(pairs.chunks_exact(2 * I)) {
                    for (j, got) in acts[row * I..(row + 1) * I].iter().enumerate() {
                        let (gate, up, w) = (pairs[j], pairs[I + j], host.weights[of(row)]);
                        let want = reference::gated_routed(&op, gate, up, w);
                        let off = got.to_bits().abs_diff(want.to_bits());
                        assert!(off <= 1, "{what}: act[{row}, {j}] is {got}, not {want}");
                    }
                }
                outputs.extend(matmul(&cpu, &acts[rows.start * I..rows.end * I], I, down));
            }
            // Rows that are nobody's are not written.
            let all = outputs.len() / H;
            assert!(acts[all * I..].iter().all(|a| a.is_nan()), "{what}");

            let y = layer.sums(&cpu, &acts, &shared, &routes);
            let mut want = Vec::new();
            for (token, shared) in shared.chunks_exact(H).enumerate() {
                let own = &host.rows[token * k..(token + 1) * k];
                for (j, shared) in shared.iter().enumerate() {
                    let own = own.iter().filter(|row| **row >= 0);
                    let o = own.map(|&row| outputs[row as usize * H + j].to_f32());
                    want.push(bf16::from_f32(
                        o.fold(0.0, |sum, o| sum + o) + shared.to_f32(),
                    ));
                }
            }
            assert!(bits(&y) == bits(&want), "{what}");
        }
    }
}

/// With weights of 1 the first half is the gated matmul of each expert's rows, to the bit.
#[test]
fn the_first_half_is_the_fused_matmul_of_each_expert() {
    let op = GatedActivation::deepseek_v4();
    for (name, cpu) in backends() {
        for (format, (tokens, experts, k, skew)) in FORMATS
            .into_iter()
            .flat_map(|f| CASES[..5].iter().map(move |c| (f, *c)))
        {
            let layer = Layer::new(&cpu, format, experts, k);
            let mut random = Rng::with_seed(20 + tokens as u64);
            let host = routes(&mut random, &layer.routing, tokens, skew);
            let mut routes = Routes::new(&cpu, &layer.routing, tokens).unwrap();
            let ones = vec![1.0; host.ids.len()];
            routes.upload(&cpu, &host.ids, &ones).unwrap();
            let layout = RowLayout::contiguous(tokens, H);
            let x: Vec<bf16> = (0..tokens * H)
                .map(|_| bf16::from_f32(40.0 * (random.f32() - 0.5)))
                .collect();
            let acts = layer.acts(&cpu, &x, layout, &routes);
            for (e, [gate_up, _]) in layer.alone.iter().enumerate() {
                let rows = host.offsets[e] as usize..host.offsets[e + 1] as usize;
                let token = |row: usize| host.sorted[row] as usize / k;
                let gathered = rows.clone().flat_map(|row| &x[layout.row(token(row))]);
                let gathered: Vec<bf16> = gathered.copied().collect();
                let (count, mut want) = (rows.len(), vec![bf16::NAN; rows.len() * I]);
                let mut between = cpu.alloc(count * 2 * I * 2).unwrap();
                let between = between.bytes_mut();
                cpu.matmul_act_and_mul(
                    &op,
                    Tensor::from_slice(&gathered, RowLayout::contiguous(count, H)),
                    gate_up,
                    TensorMut::contiguous(between, Float::BF16, count, 2 * I),
                    TensorMut::from_slice(&mut want, RowLayout::contiguous(count, I)),
                )
                .unwrap();
                let got = &acts[rows.start * I..rows.end * I];
                assert!(
                    bits(got) == bits(&want),
                    "{name}, {format}, {tokens} tokens, expert {e}"
                );
            }
        }
    }
}
