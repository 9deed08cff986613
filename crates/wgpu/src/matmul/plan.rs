//! Which kernels multiply x by a buffer of a weight's rows, and how many tokens each takes.
//!
//! ## Method
//! 1. What GEMVs of the usual type take: whole vectors of one type, a weight without NaN among its
//!    codes, and scales that a shift finds. They are faster than tiles for four times as many tokens
//!    as those of any type.
//! 2. Few tokens go in groups of what a GEMV holds; many in one dispatch, as far as bindings and
//!    workgroups go.
//! 3. Where there are cooperative matrices, more than eight tokens of the usual type go to them, by a weight
//!    that is exact in f16: to the largest tiles of which there are enough for a large device.
//! 4. Others go to large tiles where there are enough of them, or to small ones.
//!
//! All groups are equal but the last, which may be for fewer tokens and so for another kernel.

use std::fmt;

use swiglu_core::Float;

use crate::device::Facts;
use crate::launch::{RowSpan, Scratch, Workgroups, in_workgroups};
use crate::pipelines::{
    ANY_TOKENS, COOPERATIVE_DEPTH, CooperativeFormat, CooperativeKernel, CooperativeShape,
    CooperativeTile, DeviceFormat, FEW_ANY, FEW_USUAL, GemvKind, GemvTokens, LEAST_COOPERATIVE,
    MatmulKernel, ROW_END, ROWS, TileKind,
};

/// So many tiles of either size keep a large device busy.
const MANY_WIDE: usize = 192;
const MANY_MIDDLE: usize = 128;

/// The operands of a matmul by successive rows of a weight in one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatmulOperands {
    pub(crate) tokens: usize,
    pub(crate) x: RowSpan,
    pub(crate) x_float: Float,
    pub(crate) y: RowSpan,
    pub(crate) y_float: Float,
    pub(crate) weight: DeviceFormat,
    /// Elements in a row of the weight, and its rows in the buffer.
    pub(crate) k: usize,
    pub(crate) rows: usize,
    /// Whether no code is NaN, and scales are found by a shift.
    pub(crate) plain_codes: bool,
    /// Whether the weight's rows are exact in f16, maybe under powers of two.
    pub(crate) exact_in_f16: bool,
    /// Whether the weight has a pipeline for dense rows of x.
    pub(crate) dense: bool,
}

impl MatmulOperands {
    /// Whether rows, of x and of the weight, are whole vectors.
    fn is_aligned(&self) -> bool {
        let whole = |n: usize| n.is_multiple_of(self.x.per_vector());
        self.k.is_multiple_of(self.weight.per_vector())
            && whole(self.x.first)
            && (self.tokens == 1 || whole(self.x.stride() as usize))
    }

    fn is_usual(&self) -> bool {
        self.x_float == self.weight.usual_x()
    }

    /// Whether GEMVs of the usual type take it.
    fn is_for_usual_gemvs(&self) -> bool {
        self.is_aligned() && self.is_usual() && self.plain_codes
    }

    /// Up to so many tokens GEMVs are faster.
    fn few(&self, facts: &Facts) -> usize {
        if self.cooperative(facts).is_some() {
            return LEAST_COOPERATIVE - 1;
        }
        match (self.is_for_usual_gemvs(), facts.software) {
            (true, false) => FEW_USUAL,
            (true, true) => FEW_USUAL / 2,
            (false, _) => FEW_ANY,
        }
    }

    /// Whether few tokens go through GEMVs of the usual type.
    pub(super) fn is_few_for_usual_gemvs(&self, facts: &Facts) -> bool {
        self.is_for_usual_gemvs() && self.tokens <= self.few(facts)
    }

    /// The most tokens that a GEMV takes at a time.
    fn gemv_tokens(&self) -> usize {
        if self.is_for_usual_gemvs() {
            GemvTokens::MOST
        } else {
            ANY_TOKENS
        }
    }

    /// The tokens of a dispatch.
    pub(super) fn per_dispatch(&self, facts: &Facts) -> usize {
        let limits = &facts.bindings;
        let small = TileKind::Small { aligned: true }.side() as usize;
        let most = if self.tokens <= self.few(facts) {
            self.gemv_tokens()
        } else {
            small * limits.workgroups as usize
        };
        let most = match self.cooperative(facts) {
            Some(format) if format.is_scaled() => most.min(self.scratch_rows(facts)),
            _ => most,
        };
        most.min(self.x.rows_per_window(limits))
            .min(self.y.rows_per_window(limits))
            .max(1)
    }

    fn gemv_kind(&self, tokens: usize) -> GemvKind {
        match GemvTokens::holding(tokens) {
            Some(tokens) if self.is_for_usual_gemvs() => GemvKind::Usual(tokens),
            _ => GemvKind::Any {
                aligned: self.is_aligned(),
            },
        }
    }

    /// The format for cooperative matrices, where they take it.
    fn cooperative(&self, facts: &Facts) -> Option<CooperativeFormat> {
        let pairs = |n: usize| n.is_multiple_of(2);
        let whole_words =
            self.y_float == Float::F32 || pairs(self.y.first) && pairs(self.y.stride() as usize);
        let takes = facts.cooperative
            && self.exact_in_f16
            && self.is_for_usual_gemvs()
            && self.k.is_multiple_of(COOPERATIVE_DEPTH as usize)
            && pairs(self.rows)
            && whole_words;
        CooperativeFormat::of(self.weight).filter(|_| takes)
    }

    /// Rows of x in f16 that are made at a time; tiles take them whole.
    fn scratch_rows(&self, facts: &Facts) -> usize {
        let bytes = facts.bindings.bytes.min(Scratch::MOST);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let rows = bytes / (2 * (self.k + ROW_END));
        let tile = CooperativeTile::Wide.shape().tokens as usize;
        if rows < tile {
            rows
        } else {
            rows - rows % tile
        }
    }

    /// The tiles for so many tokens.
    fn cooperative_tile(&self, facts: &Facts, tokens: usize) -> CooperativeTile {
        if let Some(tile) = facts.cooperative_tile {
            return CooperativeTile::ALL[tile % CooperativeTile::ALL.len()];
        }
        let narrow = CooperativeTile::Narrow;
        if tokens <= narrow.shape().tokens as usize {
            return narrow;
        }
        let enough = |tile: CooperativeTile, least: usize| {
            let [t, r] = [tile.shape().tokens, tile.shape().rows].map(|n| n as usize);
            tokens.div_ceil(t) * self.rows.div_ceil(r) >= least
        };
        let wide = CooperativeTile::Wide.shape();
        let full = tokens >= wide.tokens as usize
            && self.rows >= wide.rows as usize
            && self.k.is_multiple_of(wide.depth as usize);
        if full && enough(CooperativeTile::Wide, MANY_WIDE) {
            CooperativeTile::Wide
        } else if enough(CooperativeTile::Middle, MANY_MIDDLE) {
            CooperativeTile::Middle
        } else {
            CooperativeTile::Low
        }
    }

    /// The kernel for a dispatch of so many tokens, and its workgroups.
    fn step(&self, facts: &Facts, tokens: usize) -> MatmulStep {
        let int = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let rows = int(self.rows);
        let few = tokens <= self.gemv_tokens();
        if few && facts.cooperative_tile.is_none() {
            let [x, y] = in_workgroups(&facts.bindings, rows.div_ceil(ROWS));
            return MatmulStep {
                kernel: MatmulKernel::Gemv(self.weight, self.gemv_kind(tokens)),
                workgroups: [x, y, 1],
            };
        }
        let tiles = |side: u32| [rows.div_ceil(side), int(tokens).div_ceil(side), 1];
        if let Some(weight) = self.cooperative(facts) {
            let tile = self.cooperative_tile(facts, tokens);
            let kernel = CooperativeKernel { weight, tile };
            let in_a_row = weight.is_scaled() || self.x.stride() as usize == self.k;
            let dense = self.dense && in_a_row && tile == CooperativeTile::Wide;
            let CooperativeShape {
                tokens: t, rows: r, ..
            } = tile.shape();
            return MatmulStep {
                kernel: MatmulKernel::Cooperative { kernel, dense },
                workgroups: [rows.div_ceil(r), int(tokens).div_ceil(t), 1],
            };
        }
        let [across, down, _] = tiles(TileKind::Large.side());
        let large = self.is_usual()
            && self.is_aligned()
            && self.k.is_multiple_of(TileKind::Large.depth() as usize)
            && across.saturating_mul(down) >= facts.least_large_tiles;
        let kind = if large {
            TileKind::Large
        } else {
            TileKind::Small {
                aligned: self.is_aligned(),
            }
        };
        MatmulStep {
            kernel: MatmulKernel::Tiles(self.weight, kind),
            workgroups: tiles(kind.side()),
        }
    }
}

/// One dispatch of a matmul.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatmulStep {
    pub(crate) kernel: MatmulKernel,
    pub(crate) workgroups: Workgroups,
}

/// The dispatches of a matmul by one buffer of the weight.
pub(crate) type MatmulPlan = TokenSteps<MatmulStep>;

impl MatmulPlan {
    pub(crate) fn new(facts: &Facts, operands: &MatmulOperands) -> Self {
        let per_dispatch = operands.per_dispatch(facts);
        Self::of(operands.tokens, per_dispatch, |tokens| {
            operands.step(facts, tokens)
        })
    }
}

/// Tokens in groups, each with its step: all for as many tokens but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenSteps<S> {
    tokens: usize,
    per_dispatch: usize,
    full: S,
    last: S,
}

impl<S: Copy> TokenSteps<S> {
    pub(super) fn of(tokens: usize, per_dispatch: usize, step: impl Fn(usize) -> S) -> Self {
        let rest = match tokens % per_dispatch {
            0 => per_dispatch,
            rest => rest,
        };
        Self {
            tokens,
            per_dispatch,
            full: step(per_dispatch.min(tokens)),
            last: step(rest.min(tokens)),
        }
    }

    /// The first token of each dispatch, how many it takes, and its step.
    pub(crate) fn dispatches(&self) -> impl Iterator<Item = (usize, usize, S)> + use<S> {
        let Self {
            tokens,
            per_dispatch,
            full,
            last,
        } = *self;
        let firsts = (0..tokens).step_by(per_dispatch);
        firsts.map(move |first| match tokens - first {
            rest if rest <= per_dispatch => (first, rest, last),
            _ => (first, per_dispatch, full),
        })
    }

    /// The kernels, with the numbers of dispatches where there are several.
    pub(super) fn show<K: fmt::Display + PartialEq>(
        &self,
        f: &mut fmt::Formatter<'_>,
        kernel: impl Fn(&S) -> K,
    ) -> fmt::Result {
        let count = self.tokens.div_ceil(self.per_dispatch).max(1);
        let (full, last) = (kernel(&self.full), kernel(&self.last));
        let times = |n: usize| {
            if n == 1 {
                String::new()
            } else {
                format!("{n} x ")
            }
        };
        if count == 1 || full == last {
            return write!(f, "{}{last}", times(count));
        }
        write!(f, "{}{full}, then {last}", times(count - 1))
    }
}

impl<S> TokenSteps<Option<S>> {
    /// None if there is no step for some tokens.
    pub(super) fn transposed(self) -> Option<TokenSteps<S>> {
        Some(TokenSteps {
            tokens: self.tokens,
            per_dispatch: self.per_dispatch,
            full: self.full?,
            last: self.last?,
        })
    }
}

impl fmt::Display for MatmulPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, |step| step.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V4-Pro's gate and up by T tokens, in the type that the weight usually comes with.
    fn v4_pro(tokens: usize, weight: DeviceFormat) -> MatmulOperands {
        let float = weight.usual_x();
        MatmulOperands {
            tokens,
            x: RowSpan::contiguous(float.size(), 7168),
            x_float: float,
            y: RowSpan::contiguous(float.size(), 6144),
            y_float: float,
            weight,
            k: 7168,
            rows: 6144,
            plain_codes: true,
            exact_in_f16: true,
            dense: true,
        }
    }

    fn shown(operands: &MatmulOperands) -> String {
        MatmulPlan::new(&Facts::GPU, operands).to_string()
    }

    #[test]
    fn few_tokens_go_eight_at_a_time_and_many_in_tiles() {
        use DeviceFormat::{BF16, E4m3, F16, F32};
        for (tokens, weight, expected) in [
            (1, BF16, "gemv(bf16 by bf16, T <= 1)"),
            (8, E4m3, "gemv(bf16 by e4m3, T <= 8)"),
            (11, E4m3, "matmul_cooperative(16 x 16, bf16 by e4m3)"),
            (
                20,
                F32,
                "2 x gemv(f32 by f32, T <= 8), then gemv(f32 by f32, T <= 4)",
            ),
            (32, F32, "4 x gemv(f32 by f32, T <= 8)"),
            (33, F32, "matmul_tiles(64 x 64, by f32, whole vectors)"),
            (17, BF16, "matmul_cooperative(64 x 32, bf16 by bf16)"),
            (256, E4m3, "matmul_cooperative(128 x 64, bf16 by e4m3)"),
            (4096, BF16, "matmul_cooperative(128 x 128, bf16 by bf16)"),
            (4096, F16, "matmul_cooperative(128 x 128, f16 by f16)"),
        ] {
            assert_eq!(shown(&v4_pro(tokens, weight)), expected);
        }
    }

    #[test]
    fn what_is_not_usual_takes_kernels_of_any_type_and_place() {
        let mut operands = v4_pro(6, DeviceFormat::BF16);
        operands.x_float = Float::F32;
        operands.x = RowSpan::contiguous(4, 7168);
        let any = "gemv_any(by bf16, whole vectors)";
        assert_eq!(shown(&operands), format!("2 x {any}"));
        let mut operands = v4_pro(6, DeviceFormat::E4m3);
        operands.plain_codes = false;
        assert_eq!(shown(&operands), "2 x gemv_any(by e4m3, whole vectors)");
        let mut operands = v4_pro(4096, DeviceFormat::F16);
        operands.x = operands.x.part(1, 7168);
        let expected = "matmul_tiles(64 x 64, by f16, any place)";
        assert_eq!(shown(&operands), expected);
    }

    #[test]
    fn software_and_ordered_sums_have_plans_of_their_own() {
        let software = Facts {
            software: true,
            least_large_tiles: u32::MAX,
            ..Facts::GPU
        };
        let plan = MatmulPlan::new(&software, &v4_pro(17, DeviceFormat::F32));
        let small = "matmul_tiles(64 x 64, by f32, whole vectors)";
        assert_eq!(plan.to_string(), small);
        let ordered = Facts {
            cooperative: false,
            ..Facts::GPU
        };
        let plan = MatmulPlan::new(&ordered, &v4_pro(4096, DeviceFormat::F16));
        assert_eq!(plan.to_string(), "matmul_tiles(128 x 128, f16 by f16)");
    }

    #[test]
    fn the_widest_tiles_take_whole_steps_only() {
        let mut operands = v4_pro(4096, DeviceFormat::BF16);
        operands.k = 7168 - 32;
        operands.x = RowSpan::contiguous(2, operands.k);
        let middle = "matmul_cooperative(128 x 64, bf16 by bf16)";
        assert_eq!(shown(&operands), middle);
    }

    #[test]
    fn every_token_is_in_one_dispatch() {
        let facts = Facts::GPU.with_bindings_of(1 << 17);
        for tokens in [0, 1, 8, 70] {
            let plan = MatmulPlan::new(&facts, &v4_pro(tokens, DeviceFormat::BF16));
            let mut next = 0;
            for (first, count, step) in plan.dispatches() {
                assert!(first == next && count <= 9);
                // The last is for fewer tokens, and of few there are GEMVs.
                let gemv = matches!(step.kernel, MatmulKernel::Gemv(..));
                assert_eq!(gemv, count <= 8, "{tokens}");
                next += count;
            }
            assert_eq!(next, tokens);
        }
    }
}
