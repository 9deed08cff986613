//! The kernels of a layer of routed experts: the choice, the two halves of the experts, and the sum.

use std::fmt;

use super::grouped::GroupedKernel;
use super::matmul::Tier;
use super::quantize::{QUANT, SCALES};
use super::shader::{ELEMENT, NUMERIC, OP, Shader, WORKGROUP_TEXT};
use crate::device::Facts;

pub(super) const CHOOSE: &str = include_str!("../shaders/choose_experts.wgsl");
pub(super) const SORT: &str = include_str!("../shaders/sort_routes.wgsl");
pub(super) const SCHEDULE: &str = include_str!("../shaders/schedule_rows.wgsl");
pub(super) const SUM: &str = include_str!("../shaders/sum_routes.wgsl");
pub(super) const REQUANTIZE: &str = include_str!("../shaders/requantize.wgsl");
const REQUANTIZE_FROM: &str = include_str!("../shaders/requantize_from.wgsl");
const REQUANTIZE_IN_PLACE: &str = include_str!("../shaders/requantize_in_place.wgsl");

/// Storage buffers of the kernel that chooses, which binds most.
pub(super) const MOE_BUFFERS: u32 = 8;

/// A kernel of a layer of routed experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoeKernel {
    /// Experts and weights of tokens, from logits.
    Choose,
    /// Routes in the order of experts.
    Sort,
    /// The rows of experts as items for workgroups.
    Schedule,
    /// Rows to FP8 and back, from elsewhere or in place.
    Requantize { in_place: bool },
    /// The sums of tokens.
    Sum,
    /// Matmuls of many experts.
    Grouped(GroupedKernel),
}

impl MoeKernel {
    /// All of them, by [`Self::index`] where they are not grouped matmuls.
    pub(crate) fn all(facts: &Facts) -> impl Iterator<Item = Self> + use<> {
        let others = [
            Self::Choose,
            Self::Sort,
            Self::Schedule,
            Self::Requantize { in_place: false },
            Self::Requantize { in_place: true },
            Self::Sum,
        ];
        others
            .into_iter()
            .chain(GroupedKernel::all(facts).map(Self::Grouped))
    }

    /// Its place among [`Self::PLACES`].
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Choose => 0,
            Self::Sort => 1,
            Self::Schedule => 2,
            Self::Requantize { in_place: false } => 3,
            Self::Requantize { in_place: true } => 4,
            Self::Sum => 5,
            Self::Grouped(kernel) => 6 + kernel.index(),
        }
    }

    pub(super) const PLACES: usize = 6 + GroupedKernel::PLACES;

    pub(super) fn shader(self, tier: Tier) -> Shader {
        let (entry, own) = match self {
            Self::Grouped(kernel) => return kernel.shader(tier),
            Self::Choose => ("choose_experts", [NUMERIC, ELEMENT, OP, CHOOSE].concat()),
            Self::Sort => ("sort_routes", SORT.to_owned()),
            Self::Schedule => ("schedule_rows", SCHEDULE.to_owned()),
            Self::Requantize { in_place } => {
                let from = if in_place {
                    REQUANTIZE_IN_PLACE
                } else {
                    REQUANTIZE_FROM
                };
                let shared = [NUMERIC, ELEMENT, OP, QUANT, SCALES];
                ("requantize", shared.concat() + REQUANTIZE + from)
            }
            Self::Sum => ("sum_routes", [NUMERIC, ELEMENT, OP, SUM].concat()),
        };
        Shader {
            source: WORKGROUP_TEXT.to_owned() + &own,
            entry,
            constants: Vec::new(),
            checked: true,
        }
    }
}

impl fmt::Display for MoeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Choose => f.write_str("choose_experts"),
            Self::Sort => f.write_str("sort_routes"),
            Self::Schedule => f.write_str("schedule_rows"),
            Self::Requantize { in_place: false } => f.write_str("requantize"),
            Self::Requantize { in_place: true } => f.write_str("requantize(in place)"),
            Self::Sum => f.write_str("sum_routes"),
            Self::Grouped(kernel) => write!(f, "{kernel}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_a_place_of_its_own() {
        let mut places: Vec<_> = MoeKernel::all(&Facts::GPU).map(MoeKernel::index).collect();
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!((places.len(), count), (44, 44));
        assert!(places.iter().all(|&place| place < MoeKernel::PLACES));
    }
}
