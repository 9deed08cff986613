//! One case of a quantisation, run on any backend.

use std::sync::{Mutex, MutexGuard, PoisonError};

use swiglu_core::reference::Reference;
use swiglu_core::{
    ActAndMul, ActAndMulQuant, Backend, Batch, DType, Element, GatedActivation, QuantOptions,
    Quantisation, QuantisedMut, RowLayout, ScaleLayout, ScaleOrder, ScalesMut, Tensor, TensorMut,
};
use swiglu_cuda::CudaBackend;

pub const POISON: u8 = 0xa5;

/// One test at a time: work that one does on the context spoils what another captures.
static TURN: Mutex<()> = Mutex::new(());

/// The device, or a skip by name.
pub fn open() -> Option<(CudaBackend, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match CudaBackend::open() {
        Ok(backend) => Some((backend, turn)),
        Err(reason) => {
            swiglu_testing::may_skip("cuda", &reason.to_string(), "quant");
            None
        }
    }
}

/// A buffer of these bytes.
pub fn filled<B: Backend>(backend: &B, bytes: &[u8]) -> B::Buffer {
    let mut buffer = backend.alloc(bytes.len()).unwrap();
    backend.upload(&mut buffer, bytes).unwrap();
    buffer
}

pub fn bytes<B: Backend>(backend: &B, buffer: &B::Buffer) -> Vec<u8> {
    let mut data = vec![0; backend.len(buffer)];
    backend.download(buffer, &mut data).unwrap();
    data
}

/// What the device's own activation gives, which the common suite tests.
pub fn activated<T: Element>(
    backend: &CudaBackend,
    op: &GatedActivation,
    x: &[T],
    d: usize,
) -> Vec<T> {
    let rows = x.len() / (2 * d);
    let input = filled(backend, bytemuck::cast_slice(x));
    let mut output = backend.alloc(rows * d * size_of::<T>()).unwrap();
    let input = Tensor::contiguous(&input, T::DTYPE, rows, 2 * d);
    let to = TensorMut::contiguous(&mut output, T::DTYPE, rows, d);
    backend.act_and_mul(op, input, to).unwrap();
    let chunks = bytes(backend, &output);
    let chunks = chunks.chunks_exact(size_of::<T>());
    chunks.map(bytemuck::pod_read_unaligned).collect()
}

/// One case: what is quantised, how, and into what.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// None: the input is quantised as it is.
    pub op: Option<&'a GatedActivation>,
    pub quant: Quantisation,
    pub order: ScaleOrder,
    pub rows: usize,
    pub d: usize,
    /// Elements between rows of input and of codes, and before the first of each.
    pub gap: usize,
    pub offset: usize,
    pub route: Option<&'a [f32]>,
    pub batch: Option<(usize, &'a [i32])>,
    pub hits: bool,
}

/// Codes, scales and counters, each with what lies around it.
pub type Outcome = (Vec<u8>, Vec<u8>, Vec<u8>);

impl<'a> Case<'a> {
    pub fn new(
        op: Option<&'a GatedActivation>,
        quant: Quantisation,
        rows: usize,
        d: usize,
    ) -> Self {
        Self {
            op,
            quant,
            order: ScaleOrder::RowMajor,
            rows,
            d,
            gap: 0,
            offset: 0,
            route: None,
            batch: None,
            hits: false,
        }
    }

    fn cols(&self) -> usize {
        self.d * if self.op.is_some() { 2 } else { 1 }
    }

    pub fn run<B: ActAndMulQuant, T: Element>(&self, backend: &B, input: &[T]) -> Outcome {
        let (rows, d, cols, gap) = (self.rows, self.d, self.cols(), self.gap);
        let groups = self.quant.groups(d);
        let layout = ScaleLayout::contiguous(self.quant.format(), self.order, rows, groups);
        let layout = layout.with_stride(layout.stride + gap);
        // NaN around the rows: what is read there would be seen.
        let mut x = vec![T::from_f32(f32::NAN); self.offset + rows * (cols + gap)];
        for (row, values) in input.chunks_exact(cols).enumerate() {
            let at = self.offset + row * (cols + gap);
            x[at..at + cols].copy_from_slice(values);
        }
        let x = filled(backend, bytemuck::cast_slice(&x));
        let input_layout = RowLayout::contiguous(rows, cols);
        let place = |l: RowLayout| l.with_stride(l.cols + gap).with_offset(self.offset);
        let poison = |bytes: usize| filled(backend, &vec![POISON; bytes]);
        let mut codes = poison(self.offset + rows * (d + gap) + 5);
        let mut scales = poison(layout.bytes().unwrap() + 8);
        let mut hits = filled(backend, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        let route = self.route.map(|r| filled(backend, bytemuck::cast_slice(r)));
        let counts = self
            .batch
            .map(|b| filled(backend, bytemuck::cast_slice(b.1)));
        let input = Tensor {
            buffer: &x,
            dtype: T::DTYPE,
            layout: place(input_layout),
        };
        let mut output = TensorMut::contiguous(&mut codes, DType::F8E4M3, rows, d);
        output.layout = place(output.layout);
        let output = QuantisedMut {
            codes: output,
            scales: ScalesMut {
                buffer: &mut scales,
                layout,
            },
        };
        match self.op {
            None => backend.quantise(&self.quant, input, output).unwrap(),
            Some(op) => {
                let batch = self.batch.zip(counts.as_ref());
                let options = QuantOptions {
                    route: route.as_ref(),
                    batch: batch.map(|((rows, _), counts)| Batch { rows, counts }),
                    hits: self.hits.then_some(&mut hits),
                };
                backend
                    .act_and_mul_quant(op, &self.quant, input, output, options)
                    .unwrap();
            }
        }
        (
            bytes(backend, &codes),
            bytes(backend, &scales),
            bytes(backend, &hits),
        )
    }

    /// The device and the reference give the same bytes.
    pub fn agrees<T: Element>(&self, backend: &CudaBackend, input: &[T]) {
        let (got, want) = (self.run(backend, input), self.run(&Reference, input));
        let at = (0..got.0.len()).find(|&i| got.0[i] != want.0[i]);
        let pair = at.map(|i| (i, got.0[i], want.0[i]));
        assert_eq!(pair, None, "codes of {self:?} {}", T::DTYPE);
        assert_eq!(got.1, want.1, "scales of {self:?} {}", T::DTYPE);
        assert_eq!(got.2, want.2, "counters of {self:?} {}", T::DTYPE);
    }
}
