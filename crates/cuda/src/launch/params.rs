//! The kernels' parameters, each the twin of a struct in `kernels/`: same fields, same places.

use super::tensor_map::TensorMap;

/// A division turned into a multiplication, right for numerators below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Divisor {
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// `by` is at least 1 and at most 2^31.
    pub(crate) const fn new(by: u32) -> Self {
        if by <= 1 {
            return Self {
                multiplier: 0,
                shift: 0,
            };
        }
        let log = 32 - (by - 1).leading_zeros();
        let multiplier = (1_u64 << (31 + log)).div_ceil(by as u64);
        Self {
            multiplier: multiplier as u32,
            shift: log - 1,
        }
    }

    #[cfg(test)]
    const fn quotient(self, n: u32) -> u32 {
        if self.multiplier == 0 {
            return n;
        }
        ((n as u64 * self.multiplier as u64) >> 32) as u32 >> self.shift
    }
}

/// The numbers that an activation is made of: `Scalars` of `activation/functions.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Scalars {
    pub(crate) limit: f32,
    pub(crate) up_offset: f32,
    pub(crate) a: f32,
    pub(crate) b: f32,
}

/// `ActParams` of `activation/activation.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ActParams {
    pub(crate) gate: u64,
    pub(crate) up: u64,
    pub(crate) output: u64,
    pub(crate) counts: u64,
    pub(crate) gate_stride: u64,
    pub(crate) up_stride: u64,
    pub(crate) output_stride: u64,
    pub(crate) d: u64,
    pub(crate) vectors: u32,
    pub(crate) row_vectors: u32,
    pub(crate) by_row: Divisor,
    pub(crate) batch_rows: u32,
    pub(crate) first_row: u32,
    pub(crate) by_batch: Divisor,
    pub(crate) scalars: Scalars,
}

/// `QuantParams` of `quant/quantize.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct QuantParams {
    pub(crate) gate: u64,
    pub(crate) up: u64,
    pub(crate) codes: u64,
    pub(crate) scales: u64,
    pub(crate) route: u64,
    pub(crate) counts: u64,
    pub(crate) hits: u64,
    pub(crate) gate_stride: u64,
    pub(crate) up_stride: u64,
    pub(crate) codes_stride: u64,
    pub(crate) scale_row: u64,
    pub(crate) scale_word: u64,
    pub(crate) threads: u32,
    pub(crate) row_threads: u32,
    pub(crate) by_row: Divisor,
    pub(crate) batch_rows: u32,
    pub(crate) first_row: u32,
    pub(crate) by_batch: Divisor,
    pub(crate) d: u32,
    pub(crate) groups: u32,
    pub(crate) group_log: u32,
    pub(crate) word_log: u32,
    pub(crate) power_of_two: u32,
    pub(crate) materialize: u32,
    pub(crate) floor: f32,
    pub(crate) scalars: Scalars,
}

/// `MatmulParams` of `matmul/matmul.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct MatmulParams {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) y: u64,
    pub(crate) scales: u64,
    pub(crate) scale_rows: u64,
    pub(crate) x_stride: u64,
    pub(crate) y_stride: u64,
    pub(crate) t: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) scale_columns: u32,
    pub(crate) by_block: Divisor,
    pub(crate) y_type: u32,
}

/// `LimitParams` of `limits/limits.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct LimitParams {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) vectors: u32,
    pub(crate) rounds: u32,
}

/// `RoundParams` of `ranks/round.cu`.
#[cfg(feature = "nccl")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RoundParams {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
}

/// How a weight is packed: `Packing` of `matmul/packed.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Packing {
    pub(crate) streams: u32,
    pub(crate) groups: u32,
    /// From a group's first row to the next one's.
    pub(crate) group_rows: u32,
    /// From a group's first row to its ninth.
    pub(crate) half_rows: u32,
}

/// `PackedParams` of `matmul/packed_rows.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct PackedParams {
    pub(crate) matmul: MatmulParams,
    pub(crate) packing: Packing,
}

/// `StepParams` of `matmul/step.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct StepParams {
    pub(crate) w: u64,
    pub(crate) x: u64,
    pub(crate) y: u64,
    pub(crate) x_stride: u64,
    pub(crate) y_stride: u64,
    pub(crate) packing: Packing,
    pub(crate) t: u32,
    pub(crate) k: u32,
    pub(crate) y_type: u32,
    pub(crate) clamped: u32,
    pub(crate) eager: u16,
    pub(crate) next_late: u16,
    pub(crate) scalars: Scalars,
}

/// `QuantizingParams` of `matmul/decode_codes.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct QuantizingParams {
    pub(crate) step: StepParams,
    pub(crate) floor: f32,
}

/// `WidenCodesParams` of `matmul/decode_codes.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct WidenCodesParams {
    pub(crate) x: u64,
    pub(crate) to: u64,
    pub(crate) x_stride: u64,
    pub(crate) groups: u32,
    pub(crate) row_groups: u32,
    pub(crate) by_row: Divisor,
    pub(crate) floor: f32,
}

/// `WarpgroupParams` of `matmul/warpgroups_stages.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct WarpgroupParams {
    pub(crate) x: TensorMap,
    pub(crate) step: StepParams,
    pub(crate) rows: u32,
}

/// `CodesParams` of `matmul/codes.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct CodesParams {
    pub(crate) x: TensorMap,
    pub(crate) w: TensorMap,
    pub(crate) x_scales: u64,
    pub(crate) w_scales: u64,
    pub(crate) y: u64,
    pub(crate) y_stride: u64,
    pub(crate) scale_row: u64,
    pub(crate) scale_word: u64,
    pub(crate) word_log: u32,
    pub(crate) power_of_two: u32,
    pub(crate) scale_columns: u32,
    pub(crate) t: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) rows: u32,
    pub(crate) y_type: u32,
}

/// `CodeTilesParams` of `matmul/code_tiles.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct CodeTilesParams {
    pub(crate) codes: CodesParams,
    pub(crate) y_scales: u64,
    pub(crate) y_scale_row: u64,
    pub(crate) y_scale_word: u64,
    pub(crate) y_word_log: u32,
    pub(crate) gated: u32,
    pub(crate) up_scales: u32,
    pub(crate) floor: f32,
    pub(crate) scalars: Scalars,
}

/// `MappedParams` of `matmul/mapped_sums.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct MappedParams {
    pub(crate) weight: TensorMap,
    pub(crate) x: TensorMap,
    pub(crate) step: StepParams,
    pub(crate) tile_groups: u32,
    pub(crate) parts_log: u32,
    pub(crate) stages: u32,
    pub(crate) x_stages: u32,
    pub(crate) ahead: u32,
    pub(crate) first_stage: u16,
    pub(crate) first_x_stage: u16,
    pub(crate) gated: u32,
    pub(crate) tile_tokens: u32,
}

/// `ExpertsParams` of `moe/experts.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ExpertsParams {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) scales: u64,
    pub(crate) scale_rows: u64,
    pub(crate) y: u64,
    pub(crate) offsets: u64,
    pub(crate) sorted: u64,
    pub(crate) weights: u64,
    pub(crate) x_stride: u64,
    pub(crate) y_stride: u64,
    pub(crate) w_stride: u64,
    pub(crate) scale_stride: u64,
    pub(crate) scale_row_stride: u64,
    pub(crate) outputs: u32,
    pub(crate) k: u32,
    pub(crate) first: u32,
    pub(crate) experts: u32,
    pub(crate) top_k: u32,
    pub(crate) scale_columns: u32,
    pub(crate) by_block: Divisor,
    pub(crate) pieces: u32,
    pub(crate) by_pieces: Divisor,
    pub(crate) format: u32,
    pub(crate) x_type: u32,
    pub(crate) form: u32,
    pub(crate) scalars: Scalars,
    pub(crate) sorted_before: u32,
}

/// `GatherParams` of `moe/experts_warpgroups.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct GatherParams {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) offsets: u64,
    pub(crate) sorted: u64,
    pub(crate) from_stride: u64,
    pub(crate) columns: u32,
    pub(crate) first: u32,
    pub(crate) experts: u32,
    pub(crate) top_k: u32,
}

/// `GatheredParams` of `moe/experts_warpgroups.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct GatheredParams {
    pub(crate) x: TensorMap,
    pub(crate) experts: ExpertsParams,
}

/// `PackParams` of `moe/experts_packed.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct PackParams {
    pub(crate) codes: u64,
    pub(crate) scales: u64,
    pub(crate) to: u64,
    pub(crate) mark: u64,
    pub(crate) rows: u32,
    pub(crate) k: u32,
    pub(crate) half_rows: u32,
    pub(crate) group_rows: u32,
}

/// `WidenParams` of `moe/rows.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct WidenParams {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) offsets: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) groups: u32,
    pub(crate) by_groups: Divisor,
    pub(crate) group: u32,
    pub(crate) first: u32,
    pub(crate) experts: u32,
    pub(crate) power_of_two: u32,
    pub(crate) from_type: u32,
    pub(crate) floor: f32,
}

/// `SumParams` of `moe/rows.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SumParams {
    pub(crate) outputs: u64,
    pub(crate) shared: u64,
    pub(crate) y: u64,
    pub(crate) offsets: u64,
    pub(crate) rows: u64,
    pub(crate) shared_stride: u64,
    pub(crate) y_stride: u64,
    pub(crate) tokens: u32,
    pub(crate) columns: u32,
    pub(crate) top_k: u32,
    pub(crate) first: u32,
    pub(crate) experts: u32,
    pub(crate) shared_type: u32,
    pub(crate) y_type: u32,
    pub(crate) sorted_before: u32,
}

/// `RouteParams` of `moe/choose.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RouteParams {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) logits: u64,
    pub(crate) bias: u64,
    pub(crate) bias_vl: u64,
    pub(crate) table: u64,
    pub(crate) token_ids: u64,
    pub(crate) image: u64,
    pub(crate) padding: u64,
    pub(crate) ids: u64,
    pub(crate) weights: u64,
    pub(crate) offsets: u64,
    pub(crate) sorted: u64,
    pub(crate) rows: u64,
    pub(crate) x_stride: u64,
    pub(crate) tokens: u32,
    pub(crate) hidden: u32,
    pub(crate) experts: u32,
    pub(crate) top_k: u32,
    pub(crate) by_top_k: Divisor,
    pub(crate) by_experts: Divisor,
    pub(crate) vocabulary: u32,
    pub(crate) normalize: u32,
    pub(crate) scale: f32,
    pub(crate) splits: u32,
    pub(crate) beside: u32,
}

#[cfg(test)]
mod tests;
