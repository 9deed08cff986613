use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, sys};
use swiglu_core::{
    ActShape, DType, Element, Error as CoreError, GatedActivation, RowLayout, Support,
};

use crate::{
    Error, PLATFORM, Result,
    driver::{Function, Grid, Module},
    error::Doing,
    plan,
    select::{self, Access, SHAPES, TYPES},
};

static FATBIN: &[u8] = include_bytes!("../fatbin/activation.fatbin");

/// How a call is launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchOptions {
    /// Programmatic dependent launch: the kernel may start while the one before it in the stream
    /// runs its last blocks, and waits for that one's end before it loads. Takes half a microsecond
    /// off a small launch. Ignored below compute capability 9.0.
    pub programmatic: bool,
    /// Threads of a block, a multiple of 32 up to 1024; chosen by size if `None`.
    pub threads: Option<u32>,
}

impl LaunchOptions {
    /// An ordinary launch, as by default.
    pub const fn ordinary() -> Self {
        Self {
            programmatic: false,
            threads: None,
        }
    }

    /// With programmatic dependent launch.
    pub const fn programmatic() -> Self {
        Self {
            programmatic: true,
            ..Self::ordinary()
        }
    }

    /// With blocks of this many threads.
    #[must_use]
    pub const fn with_threads(self, threads: u32) -> Self {
        Self {
            threads: Some(threads),
            ..self
        }
    }

    /// Enough blocks for this many threads, on a device that `overlaps` launches or does not.
    pub(crate) fn grid(self, threads: u32, overlaps: bool) -> Result<Grid> {
        let block = self
            .threads
            .unwrap_or(if threads < MANY { FEW_THREADS } else { THREADS });
        if block == 0 || block > 1024 || !block.is_multiple_of(32) {
            let expected = "a multiple of 32 up to 1024";
            return Err(CoreError::argument("threads", expected, block).into());
        }
        Ok(Grid {
            blocks: [threads.div_ceil(block), 1],
            threads: block,
            shared: 0,
            programmatic: self.programmatic && overlaps,
        })
    }
}

/// Rows in batches, of which only the first few are in use: \[E, rows, 2d\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Rows of each batch.
    pub rows: usize,
    /// Address of one i32 for each batch: its rows in use. The others are neither read nor written.
    pub counts: u64,
}

impl Batches {
    /// Checks the batches of an input of so many rows.
    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        let whole = self.rows > 0 && rows.is_multiple_of(self.rows);
        if whole && rows < 1 << 31 {
            return Ok(());
        }
        let expected = format!("batches of {} rows, fewer than 2^31 in all", self.rows);
        Err(CoreError::argument("input", expected, rows).into())
    }
}

/// A call over bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawCall {
    /// The type of input and output.
    pub dtype: DType,
    /// Address of the input's buffer, aligned to its elements.
    pub input: u64,
    /// \[T, 2d\].
    pub input_layout: RowLayout,
    /// Address of the output's buffer, aligned to its elements.
    pub output: u64,
    /// \[T, d\].
    pub output_layout: RowLayout,
    /// Whether only some rows of each batch are in use.
    pub batches: Option<Batches>,
}

impl RawCall {
    fn check(&self) -> Result<ActShape> {
        let shape = ActShape::new(
            (self.dtype, &self.input_layout),
            (self.dtype, &self.output_layout),
        )?;
        for (argument, address) in [("input", self.input), ("output", self.output)] {
            if !plan::aligned(address, self.dtype) {
                let expected = format!("an address aligned to {} bytes", self.dtype.size());
                return Err(
                    CoreError::argument(argument, expected, format!("{address:#x}")).into(),
                );
            }
        }
        if let Some(batches) = &self.batches {
            batches.check(shape.rows)?;
        }
        Ok(shape)
    }
}

/// The activation's kernels, loaded into a context.
#[derive(Debug)]
pub struct Activations {
    context: Arc<CudaContext>,
    kernels: Vec<Option<Function>>,
    copy: Function,
    /// Widest first.
    widths: &'static [Access],
    overlaps: bool,
    _module: Module,
}

fn index(shape: usize, typed: usize, access: Access) -> usize {
    (shape * TYPES.len() + typed) * Access::ALL.len() + access as usize
}

impl Activations {
    /// Loads the kernels. This allocates; nothing after it does.
    ///
    /// # Errors
    /// A device older than the kernels, or a failure of the driver.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let (major, _) = context.compute_capability().doing("ask for the device")?;
        let module = Module::load(context, FATBIN)?;
        let widths: &[Access] = if major >= 10 {
            &[Access::Bytes32, Access::Bytes16]
        } else {
            &[Access::Bytes16]
        };
        let mut kernels = Vec::new();
        for shape in 0..SHAPES.len() {
            for typed in 0..TYPES.len() {
                for access in Access::ALL {
                    let there = access == Access::Any || widths.contains(&access);
                    let name = select::name(shape, typed, access).filter(|_| there);
                    kernels.push(name.map(|n| module.function(&n)).transpose()?);
                }
            }
        }
        Ok(Self {
            context: context.clone(),
            kernels,
            copy: module.function("copy_16bytes")?,
            widths,
            overlaps: major >= 9,
            _module: module,
        })
    }

    /// The context that the kernels were loaded into.
    pub const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Whether this activation runs in this type.
    pub fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        if select::typed(dtype, op.rounding()).is_none() {
            return Support::No(format!("{dtype} is storage only"));
        }
        match select::shape(op) {
            Some(_) => Support::Native,
            None => Support::No("no kernel was compiled for this form".to_owned()),
        }
    }

    /// Enqueues the activation on rows without gaps: input \[T, 2d\], output \[T, d\].
    ///
    /// # Errors
    /// An input that is not whole rows, an output that is not as many, or a failure of the driver.
    pub fn act_and_mul<T: Element>(
        &self,
        stream: &CudaStream,
        op: &GatedActivation,
        input: &impl DevicePtr<T>,
        output: &mut impl DevicePtrMut<T>,
        d: usize,
        options: LaunchOptions,
    ) -> Result<()> {
        let (rows, out) = GatedActivation::contiguous(input.len(), d)?;
        self.act_and_mul_rows(stream, op, (input, rows), (output, out), options)
    }

    /// Enqueues the activation on rows that lie where the layouts say.
    ///
    /// # Errors
    /// As [`ActShape::new`] and [`RowLayout::check`], or a failure of the driver.
    pub fn act_and_mul_rows<T: Element>(
        &self,
        stream: &CudaStream,
        op: &GatedActivation,
        (input, input_layout): (&impl DevicePtr<T>, RowLayout),
        (output, output_layout): (&mut impl DevicePtrMut<T>, RowLayout),
        options: LaunchOptions,
    ) -> Result<()> {
        self.same_context(stream)?;
        input_layout.check("input", input.len())?;
        output_layout.check("output", output.len())?;
        let (input, _read) = input.device_ptr(stream);
        let (output, _written) = output.device_ptr_mut(stream);
        let call = RawCall {
            dtype: T::DTYPE,
            input,
            input_layout,
            output,
            output_layout,
            batches: None,
        };
        // SAFETY: the rows lie inside of the slices, which cudarc keeps for the stream's work.
        unsafe { self.act_and_mul_raw(stream.cu_stream(), op, &call, options) }
    }

    /// Enqueues the activation on batches of which only some rows are in use: input
    /// \[E, rows, 2d\], output \[E, rows, d\], counts \[E\]. A row at or beyond its batch's count is
    /// neither read nor written.
    ///
    /// # Errors
    /// As [`Self::act_and_mul`], or counts that are not one for each batch.
    #[allow(clippy::too_many_arguments)]
    pub fn act_and_mul_batched<T: Element>(
        &self,
        stream: &CudaStream,
        op: &GatedActivation,
        input: &impl DevicePtr<T>,
        output: &mut impl DevicePtrMut<T>,
        [rows, d]: [usize; 2],
        counts: &impl DevicePtr<i32>,
        options: LaunchOptions,
    ) -> Result<()> {
        self.same_context(stream)?;
        let (input_layout, output_layout) = GatedActivation::contiguous(input.len(), d)?;
        output_layout.check("output", output.len())?;
        if counts.len().checked_mul(rows) != Some(input_layout.rows) {
            let expected = format!("{rows} rows for each of {} counts", counts.len());
            return Err(CoreError::argument("input", expected, input_layout.rows).into());
        }
        let (input, _read) = input.device_ptr(stream);
        let (counts, _counted) = counts.device_ptr(stream);
        let (output, _written) = output.device_ptr_mut(stream);
        let call = RawCall {
            dtype: T::DTYPE,
            input,
            input_layout,
            output,
            output_layout,
            batches: Some(Batches { rows, counts }),
        };
        // SAFETY: as above; there is a count for each batch.
        unsafe { self.act_and_mul_raw(stream.cu_stream(), op, &call, options) }
    }

    /// Enqueues the activation over bare memory on a bare stream.
    ///
    /// # Safety
    /// The stream belongs to this context (null is its default stream). The addresses are of
    /// device memory that holds the layouts and the counts, stays allocated until the stream has
    /// run the call, and that nothing else writes meanwhile (nor reads, the output's). Input and
    /// output do not overlap.
    ///
    /// # Errors
    /// As [`ActShape::new`], an address that is not aligned to its elements, or a failure of the
    /// driver.
    pub unsafe fn act_and_mul_raw(
        &self,
        stream: sys::CUstream,
        op: &GatedActivation,
        call: &RawCall,
        options: LaunchOptions,
    ) -> Result<()> {
        let shape = call.check()?;
        if shape.rows == 0 {
            return Ok(());
        }
        let found = select::shape(op).zip(select::typed(call.dtype, op.rounding()));
        let (Some((form, typed)), Support::Native) = (found, self.supports(op, call.dtype)) else {
            return Err(unsupported(op, call.dtype));
        };
        let widths = match self.kernels[index(form, typed, self.widths[0])] {
            Some(_) => self.widths,
            None => &[Access::Bytes16],
        };
        let access = plan::access(op, call, widths);
        let Some(kernel) = self.kernels[index(form, typed, access)] else {
            return Err(unsupported(op, call.dtype));
        };
        self.context.bind_to_thread().doing("bind the context")?;
        plan::launches(op, call, access, |params| {
            let grid = options.grid(params.vectors, self.overlaps)?;
            // SAFETY: by this function's contract, and the plan stays inside of the layouts.
            unsafe { kernel.launch(stream, grid, params) }
        })
    }

    /// Enqueues the limit that the activation is measured against: a kernel of the same shape
    /// that reads and writes as many bytes, in 16-byte vectors, of `outputs` bytes of output.
    ///
    /// # Safety
    /// As [`Self::act_and_mul_raw`], with 2·`outputs` bytes at `input` and `outputs`, a multiple
    /// of 16, at `output`, each aligned to 16 bytes.
    ///
    /// # Errors
    /// A failure of the driver.
    #[doc(hidden)]
    pub unsafe fn copy_raw(
        &self,
        stream: sys::CUstream,
        input: u64,
        output: u64,
        outputs: usize,
        options: LaunchOptions,
    ) -> Result<()> {
        let op = GatedActivation::silu_and_mul();
        let call = RawCall {
            dtype: DType::F32,
            input,
            input_layout: RowLayout::contiguous(1, outputs / 2),
            output,
            output_layout: RowLayout::contiguous(1, outputs / 4),
            batches: None,
        };
        self.context.bind_to_thread().doing("bind the context")?;
        plan::launches(&op, &call, Access::Bytes16, |params| {
            let grid = options.grid(params.vectors, self.overlaps)?;
            // SAFETY: by this function's contract.
            unsafe { self.copy.launch(stream, grid, params) }
        })
    }

    fn same_context(&self, stream: &CudaStream) -> Result<()> {
        if stream.context().cu_ctx() == self.context.cu_ctx() {
            return Ok(());
        }
        let expected = "a stream of the context that the kernels were loaded into";
        Err(CoreError::argument("stream", expected, "another context's").into())
    }
}

/// From so many threads on, blocks are large: the device starts a block in 1.2 ns, which with small
/// ones is more than their memory takes. Fewer threads are better spread in small blocks.
const MANY: u32 = 1 << 17;
const THREADS: u32 = 512;
const FEW_THREADS: u32 = 128;

pub(crate) fn unsupported(op: &GatedActivation, dtype: DType) -> Error {
    Error::Call(CoreError::Unsupported {
        platform: PLATFORM.to_owned(),
        what: op.name().to_owned(),
        dtype,
        reason: "no kernel was compiled for this form".to_owned(),
    })
}
