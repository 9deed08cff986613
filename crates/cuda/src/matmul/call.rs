//! The calls of matmuls: plans carried out.

mod codes;

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{Accumulation, Error as CoreError, Float, GatedActivation};

use super::{
    codes::CodesKernels,
    kernels::MatmulKernels,
    library::{Addresses, CublasLt, LibraryShape, WORKSPACE, alignment},
    mapped::{MappedKernels, MappedPlan},
    packed::{Around, PackedKernels},
    plan::{
        GatedPlan, MatmulFacts, MatmulPlan, MatmulProblem, OwnKernel, OwnPlan, PackedPlan, Route,
        ScalesShape,
    },
    scratch::{Room, Rooms},
    step::StepActivation,
};
use crate::{
    buffer::CudaBuffer,
    error::{Doing, Result},
    launch::driver::{Capability, driver_version},
    view::RawMatrix,
    weight::{CudaWeight, WeightType},
};

/// The kernels and the library, loaded into a context: what every stream uses.
struct Loaded {
    context: Arc<CudaContext>,
    kernels: MatmulKernels,
    /// Where the device has them.
    packed: Option<PackedKernels>,
    codes: Option<CodesKernels>,
    mapped: Option<MappedKernels>,
    /// Or why it is not there.
    library: Result<CublasLt, String>,
    /// Room for the largest FP8 weight loaded so far, decoded or unpacked, of each stream.
    rooms: Rooms<CudaBuffer>,
}

/// The matmuls of one stream.
pub(crate) struct Matmuls {
    loaded: Arc<Loaded>,
    pub(super) facts: MatmulFacts,
    /// cublasLt's, where that is there.
    workspace: Option<CudaBuffer>,
    room: Arc<Room<CudaBuffer>>,
}

/// What a plan depends on.
pub(super) fn problem(x: &RawMatrix, weight: &CudaWeight, y: &RawMatrix) -> MatmulProblem {
    let t = x.layout.rows;
    let stride = if t == 1 { 0 } else { x.layout.stride };
    let starts = x.first() | (stride * x.float.size()) as u64;
    MatmulProblem {
        t,
        n: weight.rows,
        k: weight.cols,
        x: x.float,
        weight: weight.elements,
        y: y.float,
        x_aligned: starts.is_multiple_of(16),
        scales: weight.scales.as_ref().map(|s| ScalesShape {
            columns: s.columns,
            block_columns: s.block_columns,
            exact_in_bf16: s.exact_in_bf16,
            factors: s.factors,
        }),
        packing: weight.packing,
    }
}

impl Matmuls {
    pub(crate) fn new(context: &Arc<CudaContext>, accumulation: Accumulation) -> Result<Self> {
        let library = CublasLt::open(context, driver_version()?.0)?;
        let facts = MatmulFacts {
            capability: Capability::of(context)?,
            multiprocessors: multiprocessors(context)?,
            library: library.as_ref().ok().map(CublasLt::kind),
            accumulation,
        };
        let packed = facts.has_packed_kernels();
        let loaded = Loaded {
            context: context.clone(),
            kernels: MatmulKernels::new(context)?,
            packed: packed.then(|| PackedKernels::new(context)).transpose()?,
            codes: packed.then(|| CodesKernels::new(context)).transpose()?,
            mapped: packed.then(|| MappedKernels::new(context)).transpose()?,
            library,
            rooms: Rooms::default(),
        };
        Self::of(Arc::new(loaded), facts)
    }

    fn of(loaded: Arc<Loaded>, facts: MatmulFacts) -> Result<Self> {
        let memory = |bytes| CudaBuffer::new(&loaded.context, bytes);
        Ok(Self {
            workspace: facts.library.map(|_| memory(WORKSPACE)).transpose()?,
            room: loaded.rooms.add(memory)?,
            facts,
            loaded,
        })
    }

    /// Those of another stream: the same kernels and algorithms, with memory of its own.
    pub(crate) fn on_another_stream(&self) -> Result<Self> {
        Self::of(self.loaded.clone(), self.facts)
    }

    /// What plans depend on beside their call.
    pub(crate) const fn facts(&self) -> &MatmulFacts {
        &self.facts
    }

    pub(crate) const fn set_accumulation(&mut self, accumulation: Accumulation) {
        self.facts.accumulation = accumulation;
    }

    /// How matmuls run, in a few words.
    pub(crate) fn describe(&self) -> String {
        match (self.facts.accumulation, &self.loaded.library) {
            (Accumulation::Ordered, _) => "ordered sums".to_owned(),
            (Accumulation::MatrixUnit | Accumulation::Fp8TensorCore, Ok(_)) => {
                "cublasLt".to_owned()
            }
            (Accumulation::MatrixUnit | Accumulation::Fp8TensorCore, Err(reason)) => {
                format!("own kernels: {reason}")
            }
        }
    }

    /// Sees to it that every stream has room to decode or unpack this weight, if that may happen.
    pub(crate) fn make_room(&self, weight: &CudaWeight) -> Result<()> {
        let anything = RawMatrix {
            address: 0,
            float: Float::BF16,
            layout: swiglu_core::RowLayout::contiguous(1, weight.cols),
        };
        let decodes = problem(&anything, weight, &anything).decodes(&self.facts);
        let codes = weight.rows * weight.cols;
        let bytes = match (self.facts.accumulation, weight.packing) {
            (Accumulation::MatrixUnit | Accumulation::Fp8TensorCore, _) if decodes => 2 * codes,
            (_, Some(_)) => codes,
            (_, None) => return Ok(()),
        };
        let memory = |bytes| CudaBuffer::new(&self.loaded.context, bytes);
        self.loaded.rooms.enlarge(bytes, memory)
    }

    /// Checks that a weight is one by itself and lies in the context that the kernels were loaded into.
    pub(super) fn check_weight(&self, weight: &CudaWeight) -> Result<()> {
        if weight.stack.is_some() {
            let expected = "a weight by itself";
            return Err(CoreError::argument("weight", expected, "routed experts").into());
        }
        if weight.data.context().cu_ctx() == self.loaded.context.cu_ctx() {
            return Ok(());
        }
        let expected = "a weight of the backend's context";
        Err(CoreError::argument("weight", expected, "another context's").into())
    }

    pub(super) fn packed(&self) -> Option<&PackedKernels> {
        self.loaded.packed.as_ref()
    }

    pub(super) fn codes(&self) -> Option<&CodesKernels> {
        self.loaded.codes.as_ref()
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.loaded
            .context
            .bind_to_thread()
            .doing("bind the context")
    }

    /// Enqueues y = x · wᵀ, the given way or the best.
    ///
    /// # Safety
    /// The call has been checked, and its memory lives until the stream has run it.
    pub(crate) unsafe fn matmul(
        &self,
        stream: sys::CUstream,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
        route: Option<Route>,
    ) -> Result<()> {
        self.check_weight(weight)?;
        x.check_aligned("x")?;
        y.check_aligned("y")?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        if x.layout.rows > i32::MAX as usize {
            return Err(CoreError::argument("x", "fewer than 2^31 rows", x.layout.rows).into());
        }
        self.bind()?;
        let problem = problem(x, weight, y);
        // The library may have no algorithm for a shape, which a plan cannot know.
        for facts in [self.facts, self.facts.without_library()] {
            let Some(plan) = MatmulPlan::new(&problem, &facts, route) else {
                break;
            };
            let addresses = [weight.data.address(), x.first(), y.first()];
            // SAFETY: by this function's contract; each plan is of this call.
            let done = unsafe {
                match plan {
                    MatmulPlan::Library => {
                        self.by_library(stream, weight.elements, x, weight, y, addresses)
                    }
                    MatmulPlan::Decode { .. } => self.by_decoding(stream, x, weight, y, addresses),
                    MatmulPlan::Packed(plan) => {
                        self.by_stream(stream, plan, x, weight, y, Around::default())
                    }
                    MatmulPlan::Mapped(plan) => self.by_map(stream, plan, x, weight, y, None),
                    MatmulPlan::Own(own) => self.by_own(stream, &own, x, weight, y),
                }
            }?;
            if done {
                return Ok(());
            }
        }
        Err(refused(x, route))
    }

    /// Enqueues the matmul of a decoded weight; false where the library has no algorithm for it,
    /// or a weight was loaded when nothing was to be decoded.
    unsafe fn by_decoding(
        &self,
        stream: sys::CUstream,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
        [_, x_at, y_at]: Addresses,
    ) -> Result<bool> {
        let room = self.room.lock();
        let enough = |b: &&CudaBuffer| b.len() >= 2 * weight.rows * weight.cols;
        let Some(buffer) = room.last().filter(enough) else {
            return Ok(false);
        };
        let addresses = [buffer.address(), x_at, y_at];
        // SAFETY: by the caller's contract; the buffer has room.
        unsafe {
            match (&self.loaded.packed, weight.packing) {
                (_, None) => self.loaded.kernels.decode(stream, weight, buffer)?,
                (Some(packed), Some(packing)) => {
                    packed.unpack(stream, (weight, packing), buffer, true)?;
                }
                (None, Some(_)) => return Ok(false),
            }
            self.by_library(stream, WeightType::Bf16, x, weight, y, addresses)
        }
    }

    /// Enqueues a kernel that streams the weight; false for one that is not packed.
    pub(super) unsafe fn by_stream(
        &self,
        stream: sys::CUstream,
        plan: PackedPlan,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
        around: Around<'_>,
    ) -> Result<bool> {
        let (Some(packed), Some(packing)) = (&self.loaded.packed, weight.packing) else {
            return Ok(false);
        };
        // SAFETY: by the caller's contract.
        unsafe { packed.stream(stream, plan, x, (weight, packing), y, around) }?;
        Ok(true)
    }

    /// Enqueues a kernel that reads the weight by a tensor map; false for a packed one, which no such plan is of.
    unsafe fn by_map(
        &self,
        stream: sys::CUstream,
        plan: MappedPlan,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
        activation: Option<(&GatedActivation, StepActivation)>,
    ) -> Result<bool> {
        let Some(mapped) = self
            .loaded
            .mapped
            .as_ref()
            .filter(|_| weight.packing.is_none())
        else {
            return Ok(false);
        };
        // SAFETY: by the caller's contract.
        unsafe { mapped.launch(stream, plan, x, weight, y, activation) }?;
        Ok(true)
    }

    /// Enqueues one of our own kernels, of a packed weight after it has been unpacked; false where
    /// there is no room for that.
    unsafe fn by_own(
        &self,
        stream: sys::CUstream,
        plan: &OwnPlan,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
    ) -> Result<bool> {
        let Some(packing) = weight.packing else {
            let weight = (weight, weight.data.address());
            // SAFETY: by the caller's contract.
            unsafe { self.loaded.kernels.matmul(stream, plan, x, weight, y) }?;
            return Ok(true);
        };
        let Some(packed) = &self.loaded.packed else {
            return Ok(false);
        };
        if let OwnKernel::Rows { place, .. } = plan.kernel {
            // SAFETY: by the caller's contract.
            unsafe { packed.few_rows(stream, (plan, place), x, (weight, packing), y) }?;
            return Ok(true);
        }
        let room = self.room.lock();
        let enough = |b: &&CudaBuffer| b.len() >= weight.rows * weight.cols;
        let Some(buffer) = room.last().filter(enough) else {
            return Ok(false);
        };
        // SAFETY: by the caller's contract; the buffer has room.
        unsafe {
            packed.unpack(stream, (weight, packing), buffer, false)?;
            let weight = (weight, buffer.address());
            self.loaded.kernels.matmul(stream, plan, x, weight, y)?;
        }
        Ok(true)
    }

    /// Enqueues `act = op(R(x · wᵀ))` as one kernel, R the rounding to `act`'s type; false where there
    /// is none for the call.
    ///
    /// # Safety
    /// As [`Self::matmul`].
    pub(crate) unsafe fn gated_matmul(
        &self,
        stream: sys::CUstream,
        op: &GatedActivation,
        x: &RawMatrix,
        weight: &CudaWeight,
        act: &RawMatrix,
    ) -> Result<bool> {
        let plan = problem(x, weight, act).gated(&self.facts);
        let (Some(plan), Some(activation)) = (plan, StepActivation::of(op)) else {
            return Ok(false);
        };
        x.check_aligned("x")?;
        act.check_aligned("output")?;
        self.bind()?;
        let activation = Some((op, activation));
        // SAFETY: by this function's contract.
        unsafe {
            match plan {
                GatedPlan::Packed(plan) => {
                    let around = Around {
                        activation,
                        ..Around::default()
                    };
                    self.by_stream(stream, plan, x, weight, act, around)
                }
                GatedPlan::Mapped(plan) => self.by_map(stream, plan, x, weight, act, activation),
            }
        }
    }

    /// Enqueues a matmul of one type; false where the library has no algorithm for it.
    unsafe fn by_library(
        &self,
        stream: sys::CUstream,
        input: WeightType,
        x: &RawMatrix,
        weight: &CudaWeight,
        y: &RawMatrix,
        addresses: Addresses,
    ) -> Result<bool> {
        let (Ok(library), Some(workspace)) = (&self.loaded.library, &self.workspace) else {
            return Ok(false);
        };
        let shape = LibraryShape {
            t: x.layout.rows,
            n: weight.rows,
            k: weight.cols,
            input,
            output: y.float,
            x_stride: x.layout.stride,
            y_stride: y.layout.stride,
            alignments: addresses.map(alignment),
        };
        // SAFETY: by the caller's contract.
        unsafe { library.matmul(shape, addresses, None, workspace, stream) }
    }
}

/// Those of the device.
fn multiprocessors(context: &CudaContext) -> Result<u32> {
    let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let count = context.attribute(count).doing("ask for the device")?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// The error of a call that no plan takes.
fn refused(x: &RawMatrix, route: Option<Route>) -> crate::error::Error {
    let (expected, got) = match route {
        Some(route) => (
            "a shape and types that the chosen way takes",
            format!("{route:?} of {} {}", x.float, x.layout),
        ),
        None => (
            "at most 4,194,240 rows for these types",
            format!("{} rows", x.layout.rows),
        ),
    };
    CoreError::argument("x", expected, got).into()
}
