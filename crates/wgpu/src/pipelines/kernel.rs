//! Every kernel by one name: its text, and what it needs of a device.

use super::activation::{ActivationKernel, VECTOR_WORKGROUP, WORKGROUP};
use super::cooperative::{self, CooperativeKernel};
use super::grouped::{GroupedKind, ROW_BYTES};
use super::matmul::{
    DeviceFormat, GatedKernel, GemvKind, LANES, MatmulKernel, ROWS, TWO_BUFFERS, Tier, TileKind,
};
use super::matmul_text;
use super::moe::{MOE_BUFFERS, MoeKernel};
use super::quantize::{self, QUANTIZE_BUFFERS, QuantizeKernel};
use super::shader::Shader;
use crate::device::{Facts, Needs};

/// Storage buffers of the kernels that activate: gates, ups and the output.
const ACTIVATION_BUFFERS: u32 = 3;

/// Storage buffers of the kernels that multiply: x, the weight, its scales and y.
const MATMUL_BUFFERS: u32 = 4;

/// Bytes of a workgroup's memory that quantization takes: the largest of each group, and counters.
const QUANTIZE_BYTES: u32 = (WORKGROUP * 8 / 32 + 3) * 4;

/// Bytes of a workgroup's memory that the largest GEMV takes: the sums of lanes, and those of
/// subgroups for eight tokens.
const GEMV_BYTES: u32 = (LANES * ROWS + ROWS * 8) * 8;

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    Activation(ActivationKernel),
    Quantize(QuantizeKernel),
    Dequantize,
    Matmul(MatmulKernel),
    /// Rows of bf16 as f16, for cooperative matrices.
    RowsAsF16,
    Gated(GatedKernel),
    /// Of a layer of routed experts.
    Moe(MoeKernel),
}

impl Kernel {
    /// All that a device with these facts runs.
    pub(crate) fn all(facts: &Facts) -> Vec<Self> {
        let formats = DeviceFormat::ALL.into_iter();
        let gemvs = formats
            .clone()
            .flat_map(|w| GemvKind::ALL.map(|kind| MatmulKernel::Gemv(w, kind)));
        let tiles = formats.flat_map(|w| TileKind::ALL.map(|kind| MatmulKernel::Tiles(w, kind)));
        let mut all: Vec<_> = ActivationKernel::ALL.map(Self::Activation).into();
        all.extend(gemvs.chain(tiles).map(Self::Matmul));
        if facts.quantizes {
            all.extend(QuantizeKernel::ALL.map(Self::Quantize));
            all.push(Self::Dequantize);
        }
        if facts.gated {
            all.extend(GatedKernel::all().map(Self::Gated));
        }
        if facts.moe {
            all.extend(MoeKernel::all(facts).map(Self::Moe));
        }
        if facts.cooperative {
            let any = |kernel| MatmulKernel::Cooperative {
                kernel,
                dense: false,
            };
            all.extend(CooperativeKernel::all().map(any).map(Self::Matmul));
            all.push(Self::RowsAsF16);
        }
        all
    }

    pub(super) fn shader(self, tier: Tier) -> Shader {
        match self {
            Self::Activation(kernel) => kernel.shader(),
            Self::Quantize(kernel) => kernel.shader(),
            Self::Dequantize => quantize::dequantization(),
            Self::Matmul(MatmulKernel::Gemv(weight, kind)) => matmul_text::gemv(tier, weight, kind),
            Self::Matmul(MatmulKernel::Tiles(weight, kind)) => {
                matmul_text::tiles(tier, weight, kind)
            }
            Self::Matmul(MatmulKernel::Cooperative { kernel, .. }) => kernel.shader(None),
            Self::RowsAsF16 => cooperative::rows_as_f16(),
            Self::Gated(kernel) => matmul_text::gated(tier, kernel),
            Self::Moe(kernel) => kernel.shader(tier),
        }
    }

    /// What a device must have for it. What is built only where it fits, such as kernels that also
    /// activate, needs nothing.
    pub(crate) const fn needs(self) -> Needs {
        match self {
            Self::Activation(kernel) => Needs {
                storage_buffers: ACTIVATION_BUFFERS,
                invocations: match kernel {
                    ActivationKernel::Words(_) => WORKGROUP,
                    ActivationKernel::Vectors(_)
                    | ActivationKernel::SiluVectors(_)
                    | ActivationKernel::NativeSilu(_)
                    | ActivationKernel::NativeRow(_) => VECTOR_WORKGROUP,
                },
                workgroup_bytes: 0,
            },
            Self::Quantize(_) | Self::Dequantize => Needs {
                storage_buffers: QUANTIZE_BUFFERS,
                invocations: WORKGROUP,
                workgroup_bytes: QUANTIZE_BYTES,
            },
            Self::Matmul(kernel) => Needs {
                storage_buffers: MATMUL_BUFFERS,
                invocations: 256,
                workgroup_bytes: match kernel {
                    MatmulKernel::Gemv(..) => GEMV_BYTES,
                    // Once where there is no room for two.
                    MatmulKernel::Tiles(..) => TWO_BUFFERS / 2,
                    MatmulKernel::Cooperative { .. } => 0,
                },
            },
            Self::Moe(kernel) => Needs {
                storage_buffers: MOE_BUFFERS,
                invocations: WORKGROUP,
                workgroup_bytes: match kernel {
                    MoeKernel::Choose => 8 * WORKGROUP + 4 * 512 + 16,
                    MoeKernel::Sort | MoeKernel::Schedule => 8 * WORKGROUP + 16,
                    MoeKernel::Requantize { .. } => QUANTIZE_BYTES,
                    MoeKernel::Sum => 0,
                    MoeKernel::Grouped(kernel) => match kernel.kind {
                        GroupedKind::Tiles => TWO_BUFFERS / 2 + 16,
                        GroupedKind::Row => ROW_BYTES,
                        // What there must be for any kernel on cooperative matrices.
                        GroupedKind::Cooperative(_) => 0,
                        _ => GEMV_BYTES + 4 * ROWS * 8 + 16,
                    },
                },
            },
            Self::Gated(_) | Self::RowsAsF16 => Needs {
                storage_buffers: MATMUL_BUFFERS,
                invocations: 0,
                workgroup_bytes: 0,
            },
        }
    }
}
