//! Which kernels a router runs: a pure function of its shape, its types, where x lies, and the device.
//!
//! ## Method
//! Logits of few tokens in bf16 have a kernel of their own; others are a matmul. Of few tokens one block then lets them choose
//! and sorts; else blocks choose, and others sort.

use std::fmt;

use swiglu_core::{Accumulation, Float};

use crate::{matmul::MatmulFacts, weight::WeightType};

/// Tokens whose logits have a kernel of their own.
const FEW_TOKENS: usize = 64;

/// The blocks that share k, and the experts of each: `SPLITS` and `EXPERTS` in route.cu.
const LOGITS_SPLITS: usize = 8;
const LOGITS_EXPERTS: usize = 16;

/// Routes that blocks sort in shared memory, of fewer experts than so many: `NEAR` and `NEAR_EXPERTS` in sort.cuh.
const NEAR: usize = 1024;
const NEAR_EXPERTS: usize = 1 << 21;

/// Tokens that one block can choose for and sort, what remains of a token's experts once 32 at a time have been ranked.
const TOGETHER: usize = 16;
const CANDIDATES: usize = 128;

/// Tokens up to which it does: of 16 it took 10 us longer than two launches on an H200.
const FEW_TOGETHER: usize = 4;

/// Logits of all its tokens, at most.
pub(in crate::moe) const TOGETHER_LOGITS: usize = 8192;

/// Threads of the block that chooses and sorts: a warp for each of those.
pub(in crate::moe) const TOGETHER_THREADS: u32 = 32 * TOGETHER as u32;

/// Bytes of its dynamic shared memory: a score for each logit.
pub(in crate::moe) const fn together_shared(logits: usize) -> u32 {
    4 * logits as u32
}

/// How logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::moe) enum Logits {
    /// `route_logits`, of so many blocks.
    Own([u32; 2]),
    /// A matmul to f32.
    Matmul,
}

/// What the plan of a router depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::moe) struct RouteProblem {
    pub(in crate::moe) tokens: usize,
    pub(in crate::moe) hidden: usize,
    pub(in crate::moe) experts: usize,
    pub(in crate::moe) top_k: usize,
    pub(in crate::moe) x: Float,
    pub(in crate::moe) gate: WeightType,
    /// Whether rows of x begin at multiples of 16 bytes, and the gate's follow one another.
    pub(in crate::moe) in_vectors: bool,
}

/// How tokens choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::moe) struct RoutePlan {
    pub(in crate::moe) logits: Logits,
    /// Whether one block chooses and sorts; else blocks of `route_choose` and of `route_sort`.
    pub(in crate::moe) apart: Option<[u32; 2]>,
}

impl RoutePlan {
    pub(in crate::moe) fn new(problem: &RouteProblem, facts: &MatmulFacts) -> Self {
        let RouteProblem {
            tokens,
            experts,
            top_k,
            ..
        } = *problem;
        let bf16 = problem.x == Float::BF16 && problem.gate == WeightType::Bf16;
        let vectors = problem.in_vectors && problem.hidden.is_multiple_of(8);
        let any_order = facts.accumulation != Accumulation::Ordered;
        let own = bf16 && vectors && any_order && tokens <= FEW_TOKENS;
        // A warp takes a token, or an expert, of which there is one more for none; a thread an expert or a route.
        let warps = |count: usize| count.div_ceil(4) as u32;
        let routes = tokens.saturating_mul(top_k);
        let sort = if routes <= NEAR && experts < NEAR_EXPERTS {
            warps((experts + 1 + routes).div_ceil(32))
        } else {
            warps(experts + 1)
        };
        let together = own
            && tokens <= FEW_TOGETHER
            && top_k <= 32
            && experts.is_multiple_of(32)
            && (experts / 32).saturating_mul(top_k) <= CANDIDATES
            && tokens.saturating_mul(experts) <= TOGETHER_LOGITS;
        Self {
            logits: if own {
                let blocks = experts.div_ceil(LOGITS_EXPERTS);
                Logits::Own([blocks as u32, LOGITS_SPLITS as u32])
            } else {
                Logits::Matmul
            },
            apart: (!together).then(|| [warps(tokens), sort]),
        }
    }

    /// Logits that are to be added up, at most, of so many tokens.
    pub(in crate::moe) const fn most_splits(tokens: usize) -> usize {
        if tokens <= FEW_TOKENS {
            LOGITS_SPLITS
        } else {
            1
        }
    }

    /// Those of this plan.
    pub(in crate::moe) const fn splits(&self) -> u32 {
        match self.logits {
            Logits::Own([_, splits]) => splits,
            Logits::Matmul => 1,
        }
    }
}

impl fmt::Display for RoutePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.logits {
            Logits::Own([x, y]) => write!(f, "route_logits: {x} x {y} blocks")?,
            Logits::Matmul => f.write_str("a matmul")?,
        }
        match self.apart {
            None => f.write_str("; route_choose_and_sort: 1 block"),
            Some([choose, sort]) => write!(
                f,
                "; route_choose: {choose} blocks; route_sort: {sort} blocks"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
