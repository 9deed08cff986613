//! Which kernels multiply the rows of experts, and how many workgroups there can be.
//!
//! ## Method
//! 1. How many rows each expert has only the device knows. An expert's rows go where a matmul by itself would send
//!    them: up to [`FEW_USUAL`] to GEMVs, more to tiles. Both are dispatched where the number of all rows allows either.
//!    Where cooperative matrices take them, from [`LEAST_COOPERATIVE`] rows on, tiles are as high as most experts have
//!    rows.
//! 2. Up to [`MOST_ROWS`] rows of FP4 under ordinary scales find their experts by their routes, without items, unless
//!    sums are to be those of a matmul by itself.
//! 3. An item needs a row, so there are no more items than rows; nor more than its experts can have.
//! 4. What is not bf16 in whole vectors, or has codes that are NaN, goes to kernels of any type, four rows at a time.
//! 5. The experts' outputs lie in scratch memory: as many columns at a time as have [`OUTPUT_BYTES`].

use std::fmt;

use swiglu_core::{Float, Request, Shape};

use super::experts::Stack;
use crate::device::Facts;
use crate::pipelines::{DeviceFormat, FEW_USUAL, GroupedKernel, GroupedKind, GroupedTile, Half};

/// Bytes of the experts' outputs that are made at a time, at most.
const OUTPUT_BYTES: usize = 128 << 20;

/// Columns of outputs are made so many at a time, or a multiple, or all.
const COLUMNS: usize = 64;

/// From so many rows of an expert on cooperative matrices are faster than GEMVs.
const LEAST_COOPERATIVE: usize = 4;

/// Up to so many rows of a layer are faster one by one, though some of them share an expert.
const MOST_ROWS: usize = 768;

/// What decides how a half of a layer's experts is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupedOperands {
    pub(super) tokens: usize,
    /// Rows of all tokens, T · k, and experts that they go to.
    pub(super) rows: usize,
    pub(super) experts: usize,
    /// Whether cooperative matrices take the experts' weights, in FP4.
    pub(super) exact_in_f16: bool,
    /// Whether their scales, of FP4, are ordinary.
    pub(super) ordinary: bool,
    /// Whether x is bf16 in whole vectors, and codes are none of NaN.
    pub(super) usual: bool,
}

/// How the rows of experts are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupedPlan {
    /// For few rows of an expert.
    pub(super) few: GroupedKind,
    /// So many rows are few.
    pub(super) most_few: usize,
    /// For more, where there can be.
    pub(super) tiles: Option<GroupedKind>,
    rows: usize,
}

impl GroupedPlan {
    pub(super) fn new(facts: &Facts, operands: &GroupedOperands) -> Self {
        let GroupedOperands {
            tokens,
            rows,
            experts,
            exact_in_f16,
            ordinary,
            usual,
        } = *operands;
        if !usual {
            return Self {
                few: GroupedKind::Any,
                most_few: rows,
                tiles: None,
                rows,
            };
        }
        if ordinary && !facts.ordered && rows <= MOST_ROWS {
            return Self {
                few: GroupedKind::Row,
                most_few: rows,
                tiles: None,
                rows,
            };
        }
        let (most_few, tiles) = if facts.cooperative && exact_in_f16 {
            let tile = GroupedTile::holding(rows, experts);
            (LEAST_COOPERATIVE - 1, GroupedKind::Cooperative(tile))
        } else if facts.software {
            // As a matmul by itself.
            (FEW_USUAL / 2, GroupedKind::Tiles)
        } else {
            (FEW_USUAL, GroupedKind::Tiles)
        };
        Self {
            few: if tokens == 1 {
                GroupedKind::One
            } else {
                GroupedKind::Eight
            },
            most_few,
            tiles: (rows > most_few).then_some(tiles),
            rows,
        }
    }

    /// Items that experts with few rows can have.
    pub(super) fn few_items(&self, experts: usize) -> usize {
        let height = self.few.height() as usize;
        let of_expert = self.most_few.div_ceil(height);
        // Each expert has one that is not full.
        let full = self.rows / height + experts;
        self.rows.min(experts.saturating_mul(of_expert)).min(full)
    }

    /// Items that experts with more rows can have.
    pub(super) fn tile_items(&self, experts: usize) -> usize {
        let Some(tiles) = self.tiles else {
            return 0;
        };
        let with_many = experts.min(self.rows / (self.most_few + 1));
        if with_many == 0 {
            return 0;
        }
        // Each has one that is not full.
        self.rows / tiles.height() as usize + with_many
    }
}

impl fmt::Display for GroupedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.few.height();
        match self.few {
            GroupedKind::Row => f.write_str("grouped_row"),
            GroupedKind::Any => write!(f, "grouped_any({rows} rows)"),
            _ => write!(f, "grouped_gemv({rows} rows)"),
        }?;
        let Some(tiles) = self.tiles else {
            return Ok(());
        };
        let (rows, few) = (tiles.height(), self.most_few);
        let (kernel, across) = match tiles {
            GroupedKind::Cooperative(tile) => ("grouped_cooperative", tile.shape().rows),
            _ => ("grouped_tiles", rows),
        };
        write!(
            f,
            ", beyond {few} rows of an expert {kernel}({rows} x {across})"
        )
    }
}

/// Columns of the experts' outputs that are made at a time.
pub(super) fn columns_at_a_time(facts: &Facts, rows: usize, cols: usize) -> usize {
    let most = usize::try_from(facts.bindings.bytes).unwrap_or(usize::MAX);
    let bytes = OUTPUT_BYTES.min(most.saturating_sub(256));
    let fit = bytes / rows.saturating_mul(2).max(1) / COLUMNS * COLUMNS;
    cols.min(fit.max(COLUMNS))
}

/// The bytes of scratch memory that a call takes.
pub(crate) fn scratch(facts: &Facts, request: &Request, shape: &Shape) -> Option<usize> {
    let Shape { rows, cols, depth } = *shape;
    let bytes = |rows: usize, cols: usize, size| rows.saturating_mul(cols).saturating_mul(size);
    match request {
        Request::Route { .. } => Some(bytes(rows, cols, 4)),
        // x as it is multiplied.
        Request::GroupedGatedMatmul { quant, .. } => {
            Some(quant.map_or(0, |_| bytes(rows, depth, 2)))
        }
        Request::GroupedMatmulSum { routing, .. } => {
            let rows = rows.saturating_mul(routing.top_k());
            Some(bytes(rows, columns_at_a_time(facts, rows, cols), 2))
        }
        _ => None,
    }
}

/// The kernels of a half of a layer's experts, for operands without gaps.
pub(crate) fn plan(facts: &Facts, request: &Request, shape: &Shape) -> Option<String> {
    let (half, weight, float, quant, routing) = match request {
        Request::GroupedGatedMatmul {
            weight,
            x,
            quant,
            routing,
            ..
        } => (Half::GateUp, weight, *x, quant, routing),
        Request::GroupedMatmulSum {
            weight,
            quant,
            routing,
            ..
        } => (Half::Down, weight, Float::BF16, quant, routing),
        _ => return None,
    };
    let Shape { rows, cols, depth } = *shape;
    let (parts, part_rows) = match half {
        Half::GateUp => (2, cols / 2),
        Half::Down => (1, cols),
    };
    let stack = Stack::new(*weight, parts, [part_rows, depth]).ok()?;
    let per_buffer = stack.per_buffer(facts.bindings.bytes).ok()?;
    let float = quant.map_or(float, |_| Float::BF16);
    let plan = GroupedPlan::new(
        facts,
        &GroupedOperands {
            tokens: rows,
            rows: rows.saturating_mul(routing.top_k()),
            experts: routing.experts(),
            exact_in_f16: stack.form.format == DeviceFormat::Fp4,
            ordinary: stack.form.format == DeviceFormat::Fp4,
            usual: stack.is_usual(float),
        },
    );
    let mut shown = match (half, quant) {
        (Half::GateUp, Some(_)) => format!("requantize; {plan} and activation; requantize"),
        (Half::GateUp, None) => format!("{plan} and activation"),
        (Half::Down, _) => {
            let rows = rows.saturating_mul(routing.top_k());
            let at_a_time = columns_at_a_time(facts, rows, cols).max(1);
            match cols.div_ceil(at_a_time) {
                0 | 1 => format!("{plan}; sum_routes"),
                times => format!("{times} x ({plan}; sum_routes)"),
            }
        }
    };
    let buffers = routing.experts().div_ceil(per_buffer);
    if buffers > 1 {
        shown += &format!(", experts in {buffers} buffers");
    }
    Some(shown)
}

impl Stack {
    /// Whether kernels for bf16 in whole vectors take its rows.
    pub(super) fn is_usual(&self, x: Float) -> bool {
        let kernel = GroupedKernel {
            half: Half::Down,
            weight: self.form.format,
            kind: GroupedKind::Tiles,
        };
        x == Float::BF16
            && kernel.kind.takes(kernel.weight)
            && self.form.cols.is_multiple_of(self.form.format.per_vector())
            && self.form.scale_shift().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{GatedActivation, Routing, Selection, WeightFormat};

    /// V4-Flash's layer in some format on T tokens.
    fn shown(facts: &Facts, weight: WeightFormat, x: Float, tokens: usize) -> [String; 2] {
        let routing = Routing::new(256, 6, 1.5, true, Selection::Score).unwrap();
        let first = Request::GroupedGatedMatmul {
            op: GatedActivation::deepseek_v4(),
            quant: None,
            routing,
            x,
            weight,
        };
        let second = Request::GroupedMatmulSum {
            quant: None,
            routing,
            weight,
            y: Float::BF16,
        };
        let shape = |cols, depth| Shape {
            rows: tokens,
            cols,
            depth,
        };
        [
            plan(facts, &first, &shape(4096, 4096)).unwrap(),
            plan(facts, &second, &shape(4096, 2048)).unwrap(),
        ]
    }

    #[test]
    fn few_rows_go_to_gemvs_and_many_to_tiles_too() {
        let (fp4, bf16) = (WeightFormat::Fp4, Float::BF16);
        let plain = Facts {
            cooperative: false,
            ..Facts::GPU
        };
        let tiles = "beyond 32 rows of an expert grouped_tiles(64 x 64)";
        let on_matrices = "beyond 3 rows of an expert grouped_cooperative";
        let row = "grouped_row";
        let eight = format!("grouped_gemv(8 rows), {tiles}");
        for (facts, weight, x, tokens, expected) in [
            (
                Facts::GPU,
                fp4,
                bf16,
                1,
                [
                    format!("{row} and activation, experts in 2 buffers"),
                    format!("{row}; sum_routes"),
                ],
            ),
            (
                Facts::GPU,
                WeightFormat::DEEPSEEK_V4,
                bf16,
                64,
                [
                    format!("{eight} and activation, experts in 3 buffers"),
                    format!("{eight}; sum_routes, experts in 2 buffers"),
                ],
            ),
            (
                plain,
                fp4,
                Float::F32,
                8192,
                [
                    "grouped_any(4 rows) and activation, experts in 2 buffers".to_owned(),
                    format!("4 x ({eight}; sum_routes)"),
                ],
            ),
            (
                Facts::GPU,
                fp4,
                bf16,
                1024,
                [
                    format!(
                        "grouped_gemv(8 rows), {on_matrices}(32 x 128) and activation, experts in 2 buffers"
                    ),
                    format!("grouped_gemv(8 rows), {on_matrices}(32 x 128); sum_routes"),
                ],
            ),
        ] {
            assert_eq!(
                shown(&facts, weight, x, tokens),
                expected,
                "{weight} {tokens}"
            );
        }
    }

    #[test]
    fn no_rows_make_more_items_than_there_is_room_for() {
        let mut state = 1_u32;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % bound
        };
        let software = Facts {
            software: true,
            ..Facts::GPU
        };
        for case in 0..2000 {
            let experts = 1 + below(40);
            let most = [2, 9, 40, 200][case % 4];
            let rows: Vec<usize> = (0..experts).map(|_| below(most)).collect();
            let count: usize = rows.iter().sum();
            for (facts, usual, exact_in_f16) in [
                (Facts::GPU, true, false),
                (Facts::GPU, true, true),
                (software, true, false),
                (Facts::GPU, false, false),
            ] {
                for tokens in [1, 50] {
                    let operands = GroupedOperands {
                        tokens,
                        rows: count,
                        experts,
                        exact_in_f16,
                        ordinary: false,
                        usual,
                    };
                    let plan = GroupedPlan::new(&facts, &operands);
                    let height = plan.few.height() as usize;
                    let (few, many): (Vec<usize>, Vec<usize>) =
                        rows.iter().partition(|&&rows| rows <= plan.most_few);
                    let items = few.iter().map(|rows| rows.div_ceil(height)).sum::<usize>();
                    assert!(items <= plan.few_items(experts), "{rows:?} {operands:?}");
                    let Some(tiles) = plan.tiles else {
                        assert!(many.is_empty(), "{rows:?} {operands:?}");
                        continue;
                    };
                    let tile = tiles.height() as usize;
                    let items = many.iter().map(|rows| rows.div_ceil(tile)).sum::<usize>();
                    assert!(items <= plan.tile_items(experts), "{rows:?} {operands:?}");
                }
            }
        }
    }

    #[test]
    fn outputs_are_made_as_many_columns_at_a_time_as_fit() {
        let least = Facts::LEAST;
        assert_eq!(columns_at_a_time(&least, 6, 7168), 7168);
        assert_eq!(columns_at_a_time(&least, 6 * 4096, 7168), 2688);
        assert_eq!(columns_at_a_time(&least, 1 << 20, 7168), 64);
        assert_eq!(columns_at_a_time(&least, 6, 50), 50);
    }
}
