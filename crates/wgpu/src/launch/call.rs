//! The calls that kernels read as immediate data: each is the struct of its name in WGSL, field by
//! field. `pipelines` has a test of their sizes and offsets.

use bytemuck::{Pod, Zeroable};
use swiglu_core::Float;

/// The number that stands for a type in the shaders.
pub(crate) const fn float_code(float: Float) -> u32 {
    match float {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::BF16 => 2,
    }
}

/// op.wgsl: what a call tells of the activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Op {
    pub(crate) function: u32,
    pub(crate) clamp_place: u32,
    pub(crate) eager: u32,
    pub(crate) limit: f32,
    pub(crate) first: f32,
    pub(crate) second: f32,
    pub(crate) up_add: f32,
    pub(crate) gate_guard: u32,
}

/// activation_call.wgsl: an activation on a window of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ActivationCall {
    pub(crate) units: u32,
    pub(crate) columns_log2: u32,
    pub(crate) row_units: u32,
    pub(crate) rows: u32,
    pub(crate) d: u32,
    pub(crate) gate_offset: u32,
    pub(crate) up_offset: u32,
    pub(crate) gate_stride: u32,
    pub(crate) up_stride: u32,
    pub(crate) in_step: u32,
    pub(crate) out_offset: u32,
    pub(crate) out_stride: u32,
    pub(crate) op: Op,
}

/// quantize_call.wgsl: a quantization, or its inverse, on a window of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QuantizeCall {
    pub(crate) row_units: u32,
    pub(crate) rows: u32,
    pub(crate) d: u32,
    pub(crate) gate_offset: u32,
    pub(crate) up_offset: u32,
    pub(crate) gate_stride: u32,
    pub(crate) up_stride: u32,
    pub(crate) in_step: u32,
    pub(crate) out_offset: u32,
    pub(crate) out_stride: u32,
    pub(crate) op: Op,
    pub(crate) quant: Quant,
}

/// quant.wgsl: how elements share scales, and what is done besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Quant {
    pub(crate) group: u32,
    pub(crate) groups: u32,
    pub(crate) format: u32,
    pub(crate) order: u32,
    pub(crate) scale_offset: u32,
    pub(crate) scale_stride: u32,
    pub(crate) floor: f32,
    pub(crate) rounded_to: u32,
    pub(crate) first_row: u32,
    pub(crate) batch_rows: u32,
    pub(crate) counts_offset: u32,
    pub(crate) route_offset: u32,
    pub(crate) hits_offset: u32,
    pub(crate) path: u32,
}

/// matmul_call.wgsl: a matmul on a window of tokens and a buffer of the weight's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct MatmulCall {
    pub(crate) tokens: u32,
    pub(crate) rows: u32,
    pub(crate) k: u32,
    pub(crate) row_vectors: u32,
    pub(crate) x_float: u32,
    pub(crate) x_offset: u32,
    pub(crate) x_stride: u32,
    pub(crate) y_float: u32,
    pub(crate) y_offset: u32,
    pub(crate) y_stride: u32,
    pub(crate) block_rows: u32,
    pub(crate) block_cols: u32,
    pub(crate) scale_cols: u32,
    pub(crate) scale_skip: u32,
    pub(crate) scale_shift: u32,
    pub(crate) gate_row: u32,
    pub(crate) up_row: u32,
    pub(crate) result_scale: f32,
    pub(crate) factors: u32,
    pub(crate) exponents: u32,
    pub(crate) op: Op,
}

/// rows_as_f16.wgsl: rows of bf16 that become such of f16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RowsCall {
    pub(crate) rows: u32,
    pub(crate) k: u32,
    pub(crate) offset: u32,
    pub(crate) stride: u32,
}

/// choose_experts.wgsl: the choice of a window of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ChooseCall {
    pub(crate) tokens: u32,
    pub(crate) experts: u32,
    pub(crate) top_k: u32,
    pub(crate) scale: f32,
    pub(crate) normalize: u32,
    pub(crate) vocabulary: u32,
    pub(crate) first_token: u32,
    pub(crate) logits_offset: u32,
    pub(crate) ids_offset: u32,
    pub(crate) image_offset: u32,
    pub(crate) padding_offset: u32,
    pub(crate) unused: u32,
    pub(crate) op: Op,
}

/// sort_routes.wgsl: routes in the order of experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SortCall {
    pub(crate) routes: u32,
    pub(crate) experts: u32,
    pub(crate) top_k: u32,
    pub(crate) unused: u32,
}

/// schedule_rows.wgsl: what the workgroups of grouped matmuls do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ScheduleCall {
    pub(crate) first: u32,
    pub(crate) experts: u32,
    pub(crate) few: u32,
    pub(crate) height: u32,
    pub(crate) tile: u32,
    pub(crate) few_items: u32,
    pub(crate) tile_items: u32,
    pub(crate) unused: u32,
}

/// grouped_call.wgsl: matmuls of the experts of one buffer, on windows of x and y.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GroupedCall {
    pub(crate) x_float: u32,
    pub(crate) x_offset: u32,
    pub(crate) x_stride: u32,
    pub(crate) x_first: u32,
    pub(crate) x_rows: u32,
    pub(crate) k: u32,
    pub(crate) row_vectors: u32,
    pub(crate) block_rows: u32,
    pub(crate) block_cols: u32,
    pub(crate) scale_cols: u32,
    pub(crate) scale_shift: u32,
    pub(crate) result_scale: f32,
    pub(crate) part_rows: u32,
    pub(crate) part_scale_rows: u32,
    pub(crate) first_expert: u32,
    pub(crate) end_expert: u32,
    pub(crate) top_k: u32,
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    pub(crate) y_offset: u32,
    pub(crate) y_stride: u32,
    pub(crate) first_col: u32,
    pub(crate) cols: u32,
    pub(crate) items: u32,
    pub(crate) op: Op,
}

/// sum_routes.wgsl: the sums of a window of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SumCall {
    pub(crate) tokens: u32,
    pub(crate) first_token: u32,
    pub(crate) pairs: u32,
    pub(crate) cols: u32,
    pub(crate) top_k: u32,
    pub(crate) first_expert: u32,
    pub(crate) end_expert: u32,
    pub(crate) stride: u32,
    pub(crate) outputs_offset: u32,
    pub(crate) shared_float: u32,
    pub(crate) shared_offset: u32,
    pub(crate) shared_stride: u32,
    pub(crate) y_float: u32,
    pub(crate) y_offset: u32,
    pub(crate) y_stride: u32,
    pub(crate) unused: u32,
    pub(crate) op: Op,
}

/// requantize.wgsl: a window of rows to FP8 and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RequantizeCall {
    pub(crate) row_units: u32,
    pub(crate) rows: u32,
    pub(crate) d: u32,
    pub(crate) from_offset: u32,
    pub(crate) from_stride: u32,
    pub(crate) to_offset: u32,
    pub(crate) to_stride: u32,
    pub(crate) first_row: u32,
    pub(crate) first_expert: u32,
    pub(crate) end_expert: u32,
    pub(crate) op: Op,
    pub(crate) quant: Quant,
}
