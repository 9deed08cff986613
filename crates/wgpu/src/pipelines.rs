//! The kernels that there are: their names, their text and constants, and the pipelines of them.

mod activation;
mod cache;
mod compile;
mod cooperative;
mod cooperative_tiles;
mod grouped;
mod grouped_cooperative;
mod grouped_text;
mod kernel;
mod matmul;
mod matmul_text;
mod moe;
mod quantize;
pub(crate) mod self_test;
mod shader;
mod table;
#[cfg(test)]
mod twins;

pub(crate) use activation::{ActivationKernel, SixteenBit, VECTOR_WORKGROUP, WORKGROUP};
pub use cache::CACHE_VARIABLE;
pub(crate) use cache::PipelineCache;
pub(crate) use compile::storage_bindings;
pub(crate) use cooperative::{
    COOPERATIVE_DEPTH, COOPERATIVE_SUBGROUPS, CooperativeFormat, CooperativeKernel,
    CooperativeTile, LEAST_COOPERATIVE, ROW_END,
};
pub(crate) use cooperative_tiles::CooperativeShape;
pub(crate) use grouped::{GroupedKernel, GroupedKind, Half, RowShare, expert_buffers};
pub(crate) use grouped_cooperative::GroupedTile;
pub(crate) use kernel::Kernel;
pub(crate) use matmul::{
    ANY_TOKENS, DeviceFormat, FEW_ANY, FEW_USUAL, GatedKernel, GemvKind, GemvTokens, LaneSums,
    MatmulKernel, ROWS, TWO_BUFFERS, Tier, TileKind,
};
pub(crate) use moe::MoeKernel;
pub(crate) use quantize::QuantizeKernel;
pub(crate) use shader::FUNCTIONS;
pub(crate) use table::{MoePipelines, Pipelines, QuantizePipelines, TOO_FEW_BUFFERS, UNDECLARED};
