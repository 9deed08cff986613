//! Which kernel quantizes: a pure function of where the matrices lie, and of the call's options.
//!
//! ## Method
//! 1. Rows of whole 16-byte vectors, with one stride for both halves, go in vectors; others go
//!    element by element.
//! 2. DeepSeek's activations have kernels besides that know the format of their scales and take no
//!    options. They have 4, 8 or 16 elements a thread: small calls wait for one thread's work, in
//!    large ones addresses and scales cost less if a thread has more. Between them, of 16 bits with
//!    scales of a byte, it is 8 elements in few registers. The bounds and the blocks were measured on
//!    an H200.
//! 3. A call that counts the clamp's hits has large blocks: a block adds to the counters once. They
//!    are counted behind the codes, out of the cache.

use std::fmt;

/// A kernel of those of one activation and type, or of one type alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuantKernel {
    /// Single elements, 4 a thread.
    Element,
    /// 16-byte vectors, 8 elements a thread.
    Vectors,
    /// The same with 16, of many numbers of 16 bits without an activation.
    Many,
    /// Vectors for one format of scales and no options: 4, 8 or 16 elements a thread.
    Known(KnownElements),
}

/// Elements of a thread of a kernel that knows its scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownElements {
    Four,
    /// Eight, by a kernel of few registers.
    EightOfFew,
    Eight,
    Sixteen,
}

impl KnownElements {
    pub(crate) const ALL: [Self; 4] = [Self::Four, Self::EightOfFew, Self::Eight, Self::Sixteen];

    pub(crate) const fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::EightOfFew | Self::Eight => 8,
            Self::Sixteen => 16,
        }
    }

    /// In the names of kernels.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Four => "4",
            Self::EightOfFew => "8_few",
            Self::Eight => "8",
            Self::Sixteen => "16",
        }
    }
}

/// Threads of a block at most, and of one that counts.
pub(crate) const MOST_THREADS: u32 = 512;

/// What the kernels of an activation are, and what a call asks of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FusedCall {
    /// Whether there are kernels that know their scales.
    pub(crate) tuned: bool,
    /// Whether hits are to be counted; without a clamp nothing is hit.
    pub(crate) counts: bool,
    /// A route weight, batches, or no rounding of y before amax.
    pub(crate) has_options: bool,
    /// Whether numbers have 16 bits.
    pub(crate) halves: bool,
    /// Whether scales are bytes, else f32s.
    pub(crate) powers: bool,
}

/// How a quantization is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuantPlan {
    pub(crate) kernel: QuantKernel,
    /// Threads of a block.
    pub(crate) threads: u32,
}

impl QuantPlan {
    /// The plan for `count` numbers, in vectors or not.
    pub(crate) const fn of_numbers(vectors: bool, count: u64) -> Self {
        Self {
            kernel: if vectors {
                QuantKernel::Vectors
            } else {
                QuantKernel::Element
            },
            threads: if count < 1 << 20 { 128 } else { 256 },
        }
    }

    /// The plan for a quantization of `count` numbers of 16 bits in groups of `group`.
    pub(crate) const fn of_halves(vectors: bool, group: usize, count: u64) -> Self {
        let (kernel, threads) = match count {
            0x20_0000.. if vectors && group >= 16 => (QuantKernel::Many, 256),
            0x10_0000.. if vectors => (QuantKernel::Vectors, 512),
            _ => return Self::of_numbers(vectors, count),
        };
        Self { kernel, threads }
    }

    /// The plan for an activation of `count` outputs.
    pub(crate) const fn fused(call: FusedCall, vectors: bool, count: u64) -> Self {
        if call.counts {
            return Self {
                threads: MOST_THREADS,
                ..Self::of_numbers(vectors, count)
            };
        }
        if !call.tuned || call.has_options || !vectors {
            return Self::of_numbers(vectors, count);
        }
        let (elements, threads) = match count {
            0..0x2_0000 => (KnownElements::Four, 256),
            0x2_8000..=0x3_4000 if call.halves && call.powers => (KnownElements::EightOfFew, 256),
            0x2_8000..=0x3_4000 if !call.powers => (KnownElements::Four, 128),
            0x2_0000..0x12_0000 => (KnownElements::Four, 512),
            0x12_0000..0x60_0000 => (KnownElements::Eight, 256),
            0x60_0000.. => (KnownElements::Sixteen, 128),
        };
        Self {
            kernel: QuantKernel::Known(elements),
            threads,
        }
    }

    /// Elements that a thread takes.
    pub(crate) const fn elements(&self) -> usize {
        match self.kernel {
            QuantKernel::Element => 4,
            QuantKernel::Vectors => 8,
            QuantKernel::Many => 16,
            QuantKernel::Known(elements) => elements.count(),
        }
    }
}

impl fmt::Display for QuantPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (elements, threads) = (self.elements(), self.threads);
        let how = match self.kernel {
            QuantKernel::Element => "single elements",
            QuantKernel::Vectors | QuantKernel::Many => "vectors",
            QuantKernel::Known(_) => "vectors, for this format of scales",
        };
        write!(
            f,
            "{how}, {elements} elements a thread, blocks of {threads} threads"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: FusedCall = FusedCall {
        tuned: true,
        counts: false,
        has_options: false,
        halves: false,
        powers: true,
    };

    #[test]
    fn tuned_activations_change_their_kernels_with_the_size() {
        let at = |count| {
            let plan = QuantPlan::fused(PLAIN, true, count);
            (plan.elements(), plan.threads)
        };
        for (count, below, from) in [
            (0x2_0000, (4, 256), (4, 512)),
            (0x12_0000, (4, 512), (8, 256)),
            (0x60_0000, (8, 256), (16, 128)),
        ] {
            assert_eq!((at(count - 1), at(count)), (below, from), "{count:#x}");
        }
        let of = |halves, powers, count| {
            let call = FusedCall {
                halves,
                powers,
                ..PLAIN
            };
            let plan = QuantPlan::fused(call, true, count);
            (plan.kernel, plan.threads)
        };
        let known = QuantKernel::Known;
        let few = (known(KnownElements::EightOfFew), 256);
        let others = (known(KnownElements::Four), 512);
        for count in [0x2_8000, 64 * 3072, 0x3_4000] {
            assert_eq!(of(true, true, count), few);
            let of_f32s = (known(KnownElements::Four), 128);
            assert_eq!(
                [true, false].map(|halves| of(halves, false, count)),
                [of_f32s; 2]
            );
        }
        assert_eq!(of(true, true, 0x3_4001), others);
        assert_eq!(of(true, false, 0x3_4001), others);
        assert_eq!(of(true, true, 0x2_7fff), others);
    }

    #[test]
    fn options_unaligned_rows_and_other_forms_take_the_general_kernels() {
        let count = 1 << 20;
        let kernel = |call, vectors| QuantPlan::fused(call, vectors, count).kernel;
        let known = QuantKernel::Known(KnownElements::Four);
        assert_eq!(kernel(PLAIN, true), known);
        assert_eq!(kernel(PLAIN, false), QuantKernel::Element);
        let options = FusedCall {
            has_options: true,
            ..PLAIN
        };
        assert_eq!(kernel(options, true), QuantKernel::Vectors);
        let other = FusedCall {
            tuned: false,
            ..PLAIN
        };
        assert_eq!(kernel(other, true), QuantKernel::Vectors);
        let counting = FusedCall {
            counts: true,
            ..PLAIN
        };
        for (vectors, kernel) in [(true, QuantKernel::Vectors), (false, QuantKernel::Element)] {
            let plan = QuantPlan::fused(counting, vectors, 1);
            assert_eq!((plan.kernel, plan.threads), (kernel, 512));
        }
    }

    #[test]
    fn large_matrices_take_larger_blocks() {
        let threads = |count| QuantPlan::of_numbers(true, count).threads;
        assert_eq!((threads((1 << 20) - 1), threads(1 << 20)), (128, 256));
        let of = |group, count| {
            let plan = QuantPlan::of_halves(true, group, count);
            (plan.elements(), plan.threads)
        };
        assert_eq!(of(128, (1 << 20) - 1), (8, 128));
        assert_eq!(of(128, 1 << 20), (8, 512));
        assert_eq!([of(128, 1 << 21), of(16, 1 << 21)], [(16, 256); 2]);
        assert_eq!(of(8, 1 << 21), (8, 512));
        let element = QuantPlan::of_halves(false, 128, 1 << 21);
        assert_eq!(element, QuantPlan::of_numbers(false, 1 << 21));
    }

    #[test]
    fn a_plan_prints_its_kernel() {
        let text = QuantPlan::fused(PLAIN, true, 1).to_string();
        let expected =
            "vectors, for this format of scales, 4 elements a thread, blocks of 256 threads";
        assert_eq!(text, expected);
    }
}
