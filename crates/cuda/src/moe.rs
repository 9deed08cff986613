//! A layer of routed experts: the router, the two halves of the experts, and the sum. What a call runs is a plan; nothing
//! that the router decides comes to the host.

mod call;
mod describe;
mod kernels;
mod plan;
mod route;
mod rows;

pub(crate) use call::Moe;
pub(crate) use plan::MOST_EXPERTS;
pub(crate) use route::Marks;
