//! The reference as a backend that is watched, and that errs or refuses where a test says so.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::reference::{Reference, ReferenceWeight};
use swiglu_core::{
    ActAndMul, Backend, Float, GateUp, GatedActivation, HostBuffer, HostWeight, Matmul,
    QuantOptions, Quantization, Quantize, Quantized, QuantizedMut, Request, Result, Rounding,
    RowLayout, ScaleLayout, ScaleOrder, Shape, Support, Tensor, TensorMut,
};

pub struct Probe {
    pub allocations: AtomicUsize,
    /// The calls, in order.
    pub calls: Mutex<Vec<&'static str>>,
    /// Whether it refuses a request.
    pub refuses: fn(&Request) -> bool,
    /// Whether its matmul with an activation is one kernel, which leaves `gate_up` unwritten.
    pub fuses: bool,
    /// Whether its matmuls by gate and up, and by down, quantize on the way.
    pub quantizes: [bool; 2],
    /// Whether its matmul by gate and up takes numbers and gives the codes of activations.
    pub gives_codes: bool,
    /// A fault: it rounds so, whatever is asked for.
    pub rounds: Option<Rounding>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            allocations: AtomicUsize::new(0),
            calls: Mutex::default(),
            refuses: |_| false,
            fuses: false,
            quantizes: [false; 2],
            gives_codes: false,
            rounds: None,
        }
    }
}

impl Probe {
    pub fn allocated(&self) -> usize {
        self.allocations.load(Ordering::Relaxed)
    }

    pub fn called(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }

    fn faulty(&self, op: &GatedActivation) -> GatedActivation {
        op.with_rounding(self.rounds.unwrap_or(op.rounding()))
    }

    /// More than the reference needs, and different for each shape.
    const fn scratch_bytes(rows: usize, cols: usize, depth: usize) -> usize {
        rows * (7 * cols + depth)
    }
}

fn reading(x: Tensor<'_, Probe>) -> Tensor<'_, Reference> {
    Tensor::new(x.view, x.float, x.layout)
}

fn writing(y: TensorMut<'_, Probe>) -> TensorMut<'_, Reference> {
    TensorMut::new(y.view, y.float, y.layout)
}

fn halves(input: GateUp<'_, Probe>) -> GateUp<'_, Reference> {
    match input {
        GateUp::Merged(input) => GateUp::Merged(reading(input)),
        GateUp::Split { gate, up } => GateUp::Split {
            gate: reading(gate),
            up: reading(up),
        },
    }
}

fn reading_codes(x: Quantized<'_, Probe>) -> Quantized<'_, Reference> {
    Quantized {
        codes: x.codes,
        layout: x.layout,
        scales: x.scales,
        scale_layout: x.scale_layout,
    }
}

fn writing_codes(y: QuantizedMut<'_, Probe>) -> QuantizedMut<'_, Reference> {
    QuantizedMut {
        codes: y.codes,
        layout: y.layout,
        scales: y.scales,
        scale_layout: y.scale_layout,
    }
}

impl Backend for Probe {
    type Buffer = HostBuffer;
    type View<'a> = &'a [u8];
    type ViewMut<'a> = &'a mut [u8];

    fn platform(&self) -> &'static str {
        "probe"
    }
    fn description(&self) -> String {
        String::new()
    }
    fn supports(&self, request: &Request) -> Support {
        if (self.refuses)(request) {
            return Support::No("it was asked not to".to_owned());
        }
        Reference.supports(request)
    }
    /// One for every request but those of matmuls without an activation or a quantization.
    fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        match request {
            Request::Matmul { .. } => None,
            Request::QuantizingGatedMatmul { .. } if !self.quantizes[0] => None,
            Request::QuantizingMatmul { .. } if !self.quantizes[1] => None,
            Request::QuantizingGatedMatmulQuant { .. } if !self.gives_codes => None,
            _ => Some(format!("{} rows", shape.rows)),
        }
    }
    fn scratch(&self, request: &Request, shape: &Shape) -> usize {
        match request {
            Request::QuantizedMatmul { .. } => {
                Self::scratch_bytes(shape.rows, shape.cols, shape.depth)
            }
            _ => 0,
        }
    }
    fn alloc(&self, bytes: usize) -> Result<HostBuffer> {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        Reference.alloc(bytes)
    }
    fn len(&self, buffer: &HostBuffer) -> usize {
        buffer.len()
    }
    fn upload(&self, buffer: &mut HostBuffer, data: &[u8]) -> Result<()> {
        Reference.upload(buffer, data)
    }
    fn download(&self, buffer: &HostBuffer, data: &mut [u8]) -> Result<()> {
        Reference.download(buffer, data)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn view(buffer: &HostBuffer) -> &[u8] {
        Reference::view(buffer)
    }
    fn view_mut(buffer: &mut HostBuffer) -> &mut [u8] {
        Reference::view_mut(buffer)
    }
    fn as_view<'a>(view: &'a &mut [u8]) -> &'a [u8] {
        view
    }
    fn reborrow<'a>(view: &'a mut &mut [u8]) -> &'a mut [u8] {
        view
    }
    fn view_len(view: &&[u8]) -> usize {
        view.len()
    }
}

impl ActAndMul for Probe {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        self.note("act_and_mul");
        Reference.act_and_mul(&self.faulty(op), halves(input), writing(output))
    }
}

impl Quantize for Probe {
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        output: QuantizedMut<'_, Self>,
        options: QuantOptions<'_, Self>,
    ) -> Result<()> {
        self.note("act_and_mul_quant");
        assert!(options.route.is_none() && options.batch.is_none() && options.hits.is_none());
        let (op, output) = (self.faulty(op), writing_codes(output));
        Reference.act_and_mul_quant(&op, quant, halves(input), output, QuantOptions::default())
    }
    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self>,
        output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        self.note("quantize");
        Reference.quantize(quant, reading(input), writing_codes(output))
    }
    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        Reference.dequantize(quant, reading_codes(input), writing(output))
    }
}

impl Matmul for Probe {
    type Weight = ReferenceWeight;

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<ReferenceWeight> {
        Reference.load_weight(parts)
    }
    fn weight_shape(&self, weight: &ReferenceWeight) -> [usize; 2] {
        Reference.weight_shape(weight)
    }
    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        Reference.weight_bytes(weight)
    }
    fn matmul(
        &self,
        x: Tensor<'_, Self>,
        weight: &ReferenceWeight,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        self.note("matmul");
        Reference.matmul(reading(x), weight, writing(y))
    }
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Self>,
        weight: &ReferenceWeight,
        mut gate_up: TensorMut<'_, Self>,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        self.note("matmul_act_and_mul");
        if !self.fuses {
            self.matmul(x, weight, gate_up.reborrow())?;
            return self.act_and_mul(op, gate_up.as_tensor().into(), act);
        }
        let (layout, float) = (gate_up.layout, gate_up.float);
        let mut inside = HostBuffer::zeroed(gate_up.view.len())?;
        let between = TensorMut::new(inside.bytes_mut(), float, layout);
        Reference.matmul(reading(x), weight, between)?;
        let between = Tensor::new(inside.bytes(), float, layout);
        Reference.act_and_mul(&self.faulty(op), between.into(), writing(act))
    }
    fn matmul_quantized(
        &self,
        quant: &Quantization,
        x: Quantized<'_, Self>,
        weight: &ReferenceWeight,
        scratch: &mut [u8],
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        self.note("matmul_quantized");
        let [cols, depth] = self.weight_shape(weight);
        let asked_for = Self::scratch_bytes(x.layout.rows, cols, depth);
        assert!(
            scratch.len() >= asked_for,
            "{} of {asked_for}",
            scratch.len()
        );
        scratch.fill(0xff);
        let mut widened = HostBuffer::zeroed(x.layout.rows * depth * 2)?;
        let widened = widened.bytes_mut();
        Reference.matmul_quantized(quant, reading_codes(x), weight, widened, writing(y))
    }
    fn quantizing_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &ReferenceWeight,
        scratch: &mut [u8],
        act: TensorMut<'_, Self>,
    ) -> Result<bool> {
        if !self.quantizes[0] {
            return Ok(false);
        }
        self.note("quantizing_matmul_act_and_mul");
        let layout = RowLayout::contiguous(act.layout.rows, 2 * act.layout.cols);
        let mut inside = HostBuffer::zeroed(layout.rows * layout.cols * act.float.size())?;
        let between = TensorMut::new(inside.bytes_mut(), act.float, layout);
        self.multiply_quantizing(quant, x, weight, scratch, between)?;
        let between = Tensor::new(inside.bytes(), act.float, layout);
        Reference.act_and_mul(&self.faulty(op), between.into(), writing(act))?;
        Ok(true)
    }
    fn quantizing_matmul_act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &ReferenceWeight,
        scratch: &mut [u8],
        act: QuantizedMut<'_, Self>,
    ) -> Result<bool> {
        if !self.gives_codes {
            return Ok(false);
        }
        self.note("quantizing_matmul_act_and_mul_quant");
        let layout = RowLayout::contiguous(act.layout.rows, 2 * act.layout.cols);
        let mut inside = HostBuffer::zeroed(layout.rows * layout.cols * Float::BF16.size())?;
        let between = TensorMut::new(inside.bytes_mut(), Float::BF16, layout);
        self.multiply_quantizing(quant, x, weight, scratch, between)?;
        let between = Tensor::new(inside.bytes(), Float::BF16, layout);
        let (op, options) = (self.faulty(op), QuantOptions::default());
        Reference.act_and_mul_quant(&op, quant, between.into(), writing_codes(act), options)?;
        Ok(true)
    }
    fn quantizing_matmul(
        &self,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &ReferenceWeight,
        scratch: &mut [u8],
        y: TensorMut<'_, Self>,
    ) -> Result<bool> {
        if !self.quantizes[1] {
            return Ok(false);
        }
        self.note("quantizing_matmul");
        self.multiply_quantizing(quant, x, weight, scratch, writing(y))?;
        Ok(true)
    }
}

impl Probe {
    /// y = quant(x) · wᵀ.
    fn multiply_quantizing(
        &self,
        quant: &Quantization,
        x: Tensor<'_, Self>,
        weight: &ReferenceWeight,
        scratch: &mut [u8],
        y: TensorMut<'_, Reference>,
    ) -> Result<()> {
        let RowLayout { rows, cols, .. } = x.layout;
        let asked_for = Self::scratch_bytes(rows, self.weight_shape(weight)[0], cols);
        assert!(
            scratch.len() >= asked_for,
            "{} of {asked_for}",
            scratch.len()
        );
        let groups = quant.groups(cols);
        let order = ScaleOrder::RowMajor;
        let scale_layout = ScaleLayout::contiguous(quant.format(), order, rows, groups);
        let mut codes = HostBuffer::zeroed(rows * cols)?;
        let mut scales = HostBuffer::zeroed(scale_layout.bytes()?)?;
        let mut widened = HostBuffer::zeroed(2 * rows * cols)?;
        let mut codes = QuantizedMut::<Reference> {
            codes: codes.bytes_mut(),
            layout: RowLayout::contiguous(rows, cols),
            scales: scales.bytes_mut(),
            scale_layout,
        };
        Reference.quantize(quant, reading(x), codes.reborrow())?;
        let widened = widened.bytes_mut();
        Reference.matmul_quantized(quant, codes.as_quantized(), weight, widened, y)
    }
}
