use swiglu_core::{
    Accuracy, ActAndMul, Backend, Element, Float, GateUp, GatedActivation, HostWeight, Matmul,
    RowLayout, Tensor, TensorMut, bf16,
};

use crate::{Failure, Size};

/// A backend under test, and what it is held to.
#[derive(Debug)]
pub struct Harness<B> {
    /// The backend.
    pub backend: B,
    /// How exact its results must be: what the backend says itself.
    pub accuracy: Accuracy,
    /// How much is run.
    pub size: Size,
    /// The file that keeps the seeds of random cases that failed once, to be tried first.
    pub regressions: Option<&'static str>,
    /// Whether what the backend does not run is told on standard error.
    pub tells_skips: bool,
}

/// Where the input and the output of an activation lie.
#[derive(Clone, Copy, Debug)]
pub struct ActLayouts {
    /// \[T, 2d\].
    pub input: RowLayout,
    /// \[T, d\].
    pub output: RowLayout,
}

impl ActLayouts {
    /// Rows without gaps.
    pub const fn contiguous(rows: usize, d: usize) -> Self {
        Self {
            input: RowLayout::contiguous(rows, 2 * d),
            output: RowLayout::contiguous(rows, d),
        }
    }

    /// Rows with gaps of the given elements behind each, from an offset.
    #[must_use]
    pub fn spread(self, gaps: [usize; 2], offsets: [usize; 2]) -> Self {
        let spread = |l: RowLayout, gap: usize, offset: usize| {
            l.with_stride(l.cols + gap).with_offset(offset)
        };
        Self {
            input: spread(self.input, gaps[0], offsets[0]),
            output: spread(self.output, gaps[1], offsets[1]),
        }
    }
}

/// Where the halves and the output of an activation lie whose gate and up are two matrices.
#[derive(Clone, Copy, Debug)]
pub struct SplitLayouts {
    /// \[T, d\].
    pub gate: RowLayout,
    /// \[T, d\].
    pub up: RowLayout,
    /// \[T, d\].
    pub output: RowLayout,
}

/// Elements behind the last row that must stay as they are.
const CANARY: usize = 67;

/// A NaN with a payload that no computation makes.
pub(crate) fn poison<T: Element>() -> T {
    T::from_bits(match T::FLOAT {
        Float::F32 => 0x7fa5_a5a5,
        Float::F16 => 0x7da5,
        Float::BF16 => 0x7fa5,
    })
}

/// Elements that `layout` needs.
pub(crate) fn extent(layout: &RowLayout) -> Result<usize, Failure> {
    Ok(layout.end("layout")?)
}

/// The elements of an output buffer that a layout does not cover must hold the poison.
fn check_untouched<T: Element>(layout: &RowLayout, data: &[T]) -> Result<(), Failure> {
    let mut covered = vec![false; data.len()];
    for t in 0..layout.rows {
        covered[layout.row(t)].fill(true);
    }
    let poison = poison::<T>().to_bits();
    let touched = |(_, (x, covered)): &(usize, (&T, &bool))| !**covered && x.to_bits() != poison;
    match data.iter().zip(&covered).enumerate().find(touched) {
        None => Ok(()),
        Some((at, (x, _))) => Err(Failure::new(format!(
            "element {at} lies outside of {layout} and was overwritten with {x:?} ({:#x})",
            x.to_bits()
        ))),
    }
}

/// The rows of a matrix, one after another.
pub(crate) fn gather<T: Element>(layout: &RowLayout, data: &[T]) -> Vec<T> {
    let rows = (0..layout.rows).flat_map(|t| &data[layout.row(t)]);
    rows.copied().collect()
}

/// A buffer with the rows at their places and poison between them.
pub(crate) fn scatter<T: Element>(layout: &RowLayout, rows: &[T]) -> Result<Vec<T>, Failure> {
    let mut data = vec![poison::<T>(); extent(layout)?];
    for (t, row) in rows.chunks_exact(layout.cols).enumerate() {
        data[layout.row(t)].copy_from_slice(row);
    }
    Ok(data)
}

/// A buffer of the device that holds these bytes.
///
/// # Errors
/// A failure of the backend.
pub fn filled<B: Backend>(backend: &B, bytes: &[u8]) -> swiglu_core::Result<B::Buffer> {
    let mut buffer = backend.alloc(bytes.len())?;
    backend.upload(&mut buffer, bytes)?;
    Ok(buffer)
}

/// All bytes of a buffer.
///
/// # Errors
/// A failure of the backend.
pub fn contents<B: Backend>(backend: &B, buffer: &B::Buffer) -> swiglu_core::Result<Vec<u8>> {
    let mut bytes = vec![0; backend.len(buffer)];
    backend.download(buffer, &mut bytes)?;
    Ok(bytes)
}

impl<B: Backend> Harness<B> {
    /// A backend that is held to its own [`Backend::accuracy`]. What it does not run is left out
    /// in silence.
    pub fn new(backend: B, size: Size) -> Self {
        Self {
            accuracy: backend.accuracy(),
            backend,
            size,
            regressions: None,
            tells_skips: false,
        }
    }

    /// The same, held to another accuracy.
    #[must_use]
    pub fn with_accuracy(self, accuracy: Accuracy) -> Self {
        Self { accuracy, ..self }
    }

    /// The same; what the backend does not run is told on standard error, by name.
    #[must_use]
    pub fn telling_skips(self) -> Self {
        Self {
            tells_skips: true,
            ..self
        }
    }

    /// The same, with a file for the seeds of random cases that fail.
    #[must_use]
    pub fn with_regressions(self, file: &'static str) -> Self {
        Self {
            regressions: Some(file),
            ..self
        }
    }

    /// A buffer of the device that holds `data`.
    ///
    /// # Errors
    /// A failure of the backend.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<B::Buffer, Failure> {
        self.upload_bytes(bytemuck::cast_slice(data))
    }

    /// A buffer of the device that holds these bytes.
    pub(crate) fn upload_bytes(&self, bytes: &[u8]) -> Result<B::Buffer, Failure> {
        Ok(filled(&self.backend, bytes)?)
    }

    /// The first bytes of a buffer.
    pub(crate) fn download_bytes(
        &self,
        buffer: &B::Buffer,
        count: usize,
    ) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; count];
        self.backend.download(buffer, &mut bytes)?;
        Ok(bytes)
    }

    /// A poisoned buffer for a matrix, with a canary behind it.
    pub(crate) fn poisoned<T: Element>(&self, layout: &RowLayout) -> Result<B::Buffer, Failure> {
        self.upload(&vec![poison::<T>(); extent(layout)? + CANARY])
    }

    /// The rows that a buffer from [`Self::poisoned`] holds, after a look at all that lies between.
    pub(crate) fn collect<T: Element>(
        &self,
        layout: &RowLayout,
        buffer: &B::Buffer,
    ) -> Result<Vec<T>, Failure> {
        let mut data = vec![T::default(); extent(layout)? + CANARY];
        self.backend
            .download(buffer, bytemuck::cast_slice_mut(&mut data))?;
        check_untouched(layout, &data)?;
        Ok(gather(layout, &data))
    }
}

/// A matrix that fills a buffer's first bytes or lies as its layout says.
pub(crate) fn tensor<B: Backend, T: Element>(
    buffer: &B::Buffer,
    layout: RowLayout,
) -> Tensor<'_, B> {
    Tensor::new(B::view(buffer), T::FLOAT, layout)
}

/// As [`tensor`], to be written.
pub(crate) fn tensor_mut<B: Backend, T: Element>(
    buffer: &mut B::Buffer,
    layout: RowLayout,
) -> TensorMut<'_, B> {
    TensorMut::new(B::view_mut(buffer), T::FLOAT, layout)
}

impl<B: ActAndMul> Harness<B> {
    /// Runs an activation on rows of 2d elements, given one after another; returns the rows of d.
    ///
    /// # Errors
    /// A failure of the backend, or an element outside of the output's rows that was overwritten.
    pub fn act_on_rows<T: Element>(
        &self,
        op: &GatedActivation,
        rows: &[T],
        layouts: ActLayouts,
    ) -> Result<Vec<T>, Failure> {
        let input = self.upload(&scatter(&layouts.input, rows)?)?;
        let mut output = self.poisoned::<T>(&layouts.output)?;
        let input = tensor::<B, T>(&input, layouts.input).into();
        let to = tensor_mut::<B, T>(&mut output, layouts.output);
        self.backend.act_and_mul(op, input, to)?;
        self.collect(&layouts.output, &output)
    }

    /// Runs an activation on gates and ups in two matrices, the rows of each given one after
    /// another; returns the rows of d.
    ///
    /// # Errors
    /// As [`Self::act_on_rows`].
    pub fn act_on_split<T: Element>(
        &self,
        op: &GatedActivation,
        [gates, ups]: [&[T]; 2],
        layouts: SplitLayouts,
    ) -> Result<Vec<T>, Failure> {
        let gates = self.upload(&scatter(&layouts.gate, gates)?)?;
        let ups = self.upload(&scatter(&layouts.up, ups)?)?;
        let mut output = self.poisoned::<T>(&layouts.output)?;
        let input = GateUp::Split {
            gate: tensor::<B, T>(&gates, layouts.gate),
            up: tensor::<B, T>(&ups, layouts.up),
        };
        let to = tensor_mut::<B, T>(&mut output, layouts.output);
        self.backend.act_and_mul(op, input, to)?;
        self.collect(&layouts.output, &output)
    }

    /// Runs an activation on pairs of gate and up.
    ///
    /// # Errors
    /// As [`Self::act_on_rows`].
    pub fn act_on_pairs<T: Element>(
        &self,
        op: &GatedActivation,
        pairs: &[(T, T)],
    ) -> Result<Vec<T>, Failure> {
        let d = pairs.len();
        let mut row = vec![T::default(); 2 * d];
        for (j, &(gate, up)) in pairs.iter().enumerate() {
            let (g, u) = op.positions(d, j);
            (row[g], row[u]) = (gate, up);
        }
        self.act_on_rows(op, &row, ActLayouts::contiguous(1, d))
    }
}

impl<B: Matmul> Harness<B> {
    /// Runs a matmul: the rows of x one after another to those of y.
    ///
    /// # Errors
    /// A failure of the backend, or an element outside of y's rows that was overwritten.
    pub fn matmul<X: Element, Y: Element>(
        &self,
        x: &[X],
        x_layout: RowLayout,
        parts: &[HostWeight<'_>],
        y_layout: RowLayout,
    ) -> Result<Vec<Y>, Failure> {
        let weight = self.backend.load_weight(parts)?;
        let x = self.upload(&scatter(&x_layout, x)?)?;
        let mut y = self.poisoned::<Y>(&y_layout)?;
        let from = tensor::<B, X>(&x, x_layout);
        let to = tensor_mut::<B, Y>(&mut y, y_layout);
        self.backend.matmul(from, &weight, to)?;
        self.collect(&y_layout, &y)
    }
}

impl<B: ActAndMul + Matmul> Harness<B> {
    /// Runs the gated half of an MLP in bf16: the rows of x, one after another, to those of the
    /// activations and of what lies between, which a backend may leave unwritten.
    ///
    /// # Errors
    /// A failure of the backend, or an element outside of the rows that was overwritten.
    pub(crate) fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: &[bf16],
        gate: HostWeight<'_>,
        up: HostWeight<'_>,
    ) -> Result<[Vec<bf16>; 2], Failure> {
        let (d, k) = (gate.rows(), gate.cols());
        let rows = x.len() / k;
        let layout = |cols| RowLayout::contiguous(rows, cols);
        let weight = self.backend.load_gate_up(gate, up)?;
        let x = self.upload(x)?;
        let mut gate_up = self.poisoned::<bf16>(&layout(2 * d))?;
        let mut act = self.poisoned::<bf16>(&layout(d))?;
        self.backend.matmul_act_and_mul(
            op,
            tensor::<B, bf16>(&x, layout(k)),
            &weight,
            tensor_mut::<B, bf16>(&mut gate_up, layout(2 * d)),
            tensor_mut::<B, bf16>(&mut act, layout(d)),
        )?;
        Ok([
            self.collect(&layout(d), &act)?,
            self.collect(&layout(2 * d), &gate_up)?,
        ])
    }
}
