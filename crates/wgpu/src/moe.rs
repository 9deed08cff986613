//! A layer of routed experts: the choice, the two halves of the experts, and the sum.
//!
//! ## Method
//! 1. Logits are a matmul to f32. One kernel lets tokens choose, another sorts their routes by expert. Nothing of it
//!    comes to the host.
//! 2. Few rows in FP4 find their experts by their routes. Of others a kernel makes items: for GEMVs where an
//!    expert has few rows, for tiles where it has many, as separate matmuls would be made. The workgroups of a grouped matmul are as many as there can be items; those
//!    beyond the last end at once.
//! 3. The first half takes a row's gates and ups, rounded to bf16, through the activation with the route's weight.
//!    The second rounds what the experts give to bf16; the last kernel adds up a token's rows, experts ascending,
//!    in f32.
//! 4. What is quantized goes to FP8 and back to bf16 before the matmul that reads it.

mod experts;
mod grouped;
mod passes;
mod plan;
mod route;

pub(crate) use experts::{alloc, expert_bytes, load};
pub(crate) use grouped::{first_half, second_half};
pub(crate) use plan::{plan, scratch};
pub(crate) use route::route;
