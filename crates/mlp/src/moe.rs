//! The whole feed-forward layer of DeepSeek-V4: a router, routed experts, a shared one and their
//! sum.

mod config;
mod layer;
mod names;
mod weights;
mod workspace;

pub use config::MoeConfig;
pub use layer::{DeepseekV4Moe, MoeStages};
pub use weights::MoeWeights;
pub use workspace::MoeWorkspace;
