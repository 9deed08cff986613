//! Which kernel multiplies a few tokens by a packed weight: a decode step.

use std::fmt;

use swiglu_core::{GatedActivation, Order, Rounding};

use crate::{activation::Form, launch::params::Packing, weight::packing::unit_bytes};

/// Blocks of a cluster, which reads a stream: the kernels are compiled for it.
const CLUSTER: u32 = 2;

/// Warps of a block.
const WARPS: u32 = 8;

/// What a kernel does with its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepKind {
    /// Activates pairs of them.
    Gated,
    /// Stores them.
    Plain,
}

impl StepKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gated => "gated",
            Self::Plain => "plain",
        }
    }
}

/// A kernel of `decode.cu`, or of `decode_codes.cu` if it quantizes x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepKernel {
    pub(super) kind: StepKind,
    pub(super) quantizes: bool,
    /// Groups of a stream, at most.
    groups: u32,
    /// Tokens of a cluster, at most.
    tokens: u32,
    /// Units of a warp's ring.
    ring: u32,
    /// Units of x that a warp asks for at once.
    ahead: u32,
}

const fn step(kind: StepKind, groups: u32, tokens: u32, ring: u32, ahead: u32) -> StepKernel {
    StepKernel {
        kind,
        quantizes: false,
        groups,
        tokens,
        ring,
        ahead,
    }
}

const fn quantizing(kind: StepKind, groups: u32, tokens: u32, ring: u32, ahead: u32) -> StepKernel {
    StepKernel {
        quantizes: true,
        ..step(kind, groups, tokens, ring, ahead)
    }
}

impl StepKernel {
    /// All of them: those that do not quantize and those that do, of each kind by groups, and then by tokens.
    pub(super) const ALL: [Self; 32] = [
        step(StepKind::Gated, 4, 1, 3, 4),
        step(StepKind::Gated, 4, 8, 3, 2),
        step(StepKind::Gated, 4, 16, 2, 2),
        step(StepKind::Gated, 4, 32, 3, 1),
        step(StepKind::Gated, 5, 1, 3, 5),
        step(StepKind::Gated, 5, 8, 3, 1),
        step(StepKind::Gated, 5, 16, 2, 1),
        step(StepKind::Gated, 6, 1, 3, 7),
        step(StepKind::Gated, 6, 8, 2, 2),
        step(StepKind::Gated, 6, 16, 2, 1),
        step(StepKind::Plain, 4, 1, 2, 2),
        step(StepKind::Plain, 4, 8, 2, 2),
        step(StepKind::Plain, 4, 16, 2, 2),
        step(StepKind::Plain, 4, 32, 2, 1),
        step(StepKind::Plain, 5, 1, 2, 3),
        step(StepKind::Plain, 5, 8, 2, 1),
        step(StepKind::Plain, 5, 16, 2, 1),
        step(StepKind::Plain, 7, 1, 2, 6),
        step(StepKind::Plain, 7, 8, 2, 2),
        step(StepKind::Plain, 7, 16, 2, 1),
        quantizing(StepKind::Gated, 4, 1, 3, 4),
        quantizing(StepKind::Gated, 4, 8, 3, 2),
        quantizing(StepKind::Gated, 4, 16, 2, 2),
        quantizing(StepKind::Gated, 6, 1, 3, 8),
        quantizing(StepKind::Gated, 6, 8, 2, 2),
        quantizing(StepKind::Gated, 6, 16, 2, 2),
        quantizing(StepKind::Plain, 4, 1, 2, 2),
        quantizing(StepKind::Plain, 4, 8, 2, 2),
        quantizing(StepKind::Plain, 4, 16, 2, 2),
        quantizing(StepKind::Plain, 7, 1, 2, 4),
        quantizing(StepKind::Plain, 7, 8, 2, 2),
        quantizing(StepKind::Plain, 7, 16, 2, 2),
    ];

    pub(super) fn name(&self) -> String {
        let (kind, groups, tokens) = (self.kind.name(), self.groups, self.tokens);
        let of = if self.quantizes {
            "quantizing"
        } else {
            "decode"
        };
        format!("{of}_{kind}_{groups}_groups_{tokens}_tokens")
    }

    /// Bytes of dynamic shared memory of a block: its warps' rings, the sums that it receives, and x
    /// of several tokens.
    pub(super) const fn shared(&self) -> u32 {
        let rings = WARPS * self.ring * unit_bytes(self.groups as usize) as u32;
        let lanes = if self.tokens == 1 { 8 } else { 32 };
        let sums = self.groups * self.tokens.div_ceil(8);
        let x = match self.tokens {
            1 => 0,
            tokens => WARPS * self.ahead * tokens * 128,
        };
        rings + sums.div_ceil(CLUSTER) * lanes * 16 + x
    }
}

/// The activation behind a matmul, as a kernel's parameters: silu, clamped before it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepActivation {
    pub(super) clamped: bool,
    pub(super) eager: bool,
}

impl StepActivation {
    /// That of an operation on halves one behind the other; none for other functions.
    pub(super) fn of(op: &GatedActivation) -> Option<Self> {
        let form = Form::merged(op)?;
        let plain = form.is_tuned() && op.order() == Order::GateFirst;
        plain.then(|| Self {
            clamped: form.is_clamped(),
            eager: op.rounding() == Rounding::Eager,
        })
    }
}

/// Tokens up to which a weight is read again for as many as the largest kernel takes at a time. That was
/// faster on an H200 than the kernels for few rows.
const MOST_TOKENS: usize = 64;

/// Tokens up to which quantizing as x is read was faster there than before the matmul.
const MOST_QUANTIZED: usize = 16;

/// A launch of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepPlan {
    /// The place in [`StepKernel::ALL`].
    pub(super) place: usize,
    /// [`CLUSTER`] a stream, times how often the weight is read.
    pub(super) blocks: [u32; 2],
}

impl StepPlan {
    /// The plan of so many tokens by a packed weight; none where they are too many, or the streams
    /// too large, or not of pairs of rows for a gated one.
    pub(super) fn new(t: usize, packing: Packing, kind: StepKind) -> Option<Self> {
        Self::of_kernels(t, packing, kind, false)
    }

    /// The same by a kernel that quantizes x in groups of 128 with scales that are powers of two.
    pub(super) fn quantizing(t: usize, packing: Packing, kind: StepKind) -> Option<Self> {
        let plan = Self::of_kernels(t, packing, kind, true);
        plan.filter(|_| t <= MOST_QUANTIZED)
    }

    fn of_kernels(t: usize, packing: Packing, kind: StepKind, quantizes: bool) -> Option<Self> {
        let all = StepKernel::ALL;
        let of_kind = |k: &StepKernel| k.kind == kind && k.quantizes == quantizes;
        let fits = |k: &&StepKernel| of_kind(k) && packing.most_groups() <= k.groups as usize;
        let groups = all.iter().find(fits)?.groups;
        let of_groups = |k: &StepKernel| of_kind(k) && k.groups == groups;
        let enough = |k: &StepKernel| of_groups(k) && t <= k.tokens as usize;
        let first = all.iter().position(enough);
        let place = first.or_else(|| all.iter().rposition(of_groups))?;
        let times = t.div_ceil(all[place].tokens as usize);
        let pairs = kind == StepKind::Plain || packing.pairs();
        (pairs && (1..=MOST_TOKENS).contains(&t)).then_some(Self {
            place,
            blocks: [CLUSTER * packing.streams, times as u32],
        })
    }
}

impl fmt::Display for StepPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, [x, y]) = (StepKernel::ALL[self.place].name(), self.blocks);
        write!(
            f,
            "{name}: {} x {y} clusters of {CLUSTER} blocks",
            x / CLUSTER
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_kernels() {
        let sources = [
            include_str!("../../kernels/matmul/decode.cu"),
            include_str!("../../kernels/matmul/decode_codes.cu"),
        ];
        let lines: Vec<&str> = sources
            .iter()
            .flat_map(|source| source.lines())
            .filter(|line| line.starts_with("KERNEL("))
            .collect();
        assert_eq!(lines.len(), StepKernel::ALL.len());
        for (line, kernel) in lines.iter().zip(StepKernel::ALL) {
            let (kind, groups, tokens) = (kernel.kind.name(), kernel.groups, kernel.tokens);
            let (ring, ahead) = (kernel.ring, kernel.ahead);
            let of = format!("KERNEL({kind}, {groups}, {tokens}, {ring}, {ahead}, ");
            assert!(line.starts_with(&of), "{line} is not {of}");
        }
    }

    /// What a block may have on Hopper, but for the kernel's own shared variables.
    #[test]
    fn shared_memory_fits() {
        for kernel in StepKernel::ALL {
            assert!(kernel.shared() <= 227 * 1024 - 8192, "{kernel:?}");
        }
        assert_eq!(StepKernel::ALL[0].shared(), 8 * 3 * 4224 + 2 * 8 * 16);
        let of_sixteen = 8 * 2 * 7296 + 7 * 32 * 16 + 8 * 16 * 128;
        assert_eq!(StepKernel::ALL[19].shared(), of_sixteen);
    }

    #[test]
    fn only_silu_of_the_first_half_is_behind_a_matmul() {
        let of = |op: GatedActivation| StepActivation::of(&op);
        let v4 = GatedActivation::deepseek_v4();
        let clamped = |clamped, eager| Some(StepActivation { clamped, eager });
        assert_eq!(of(v4), clamped(true, false));
        assert_eq!(of(v4.with_rounding(Rounding::Eager)), clamped(true, true));
        assert_eq!(of(GatedActivation::silu_and_mul()), clamped(false, false));
        for op in GatedActivation::ALL {
            let is_one = [v4, GatedActivation::silu_and_mul()].contains(&op);
            assert_eq!(of(op).is_some(), is_one, "{op}");
        }
        let alpha = GatedActivation::silu_and_mul_with_clamp(7.0, 1.702, 1.0).unwrap();
        assert_eq!(of(alpha), None);
    }
}
