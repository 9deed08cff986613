//! Which kernels multiply the rows of experts, and how many workgroups there can be.
//!
//! ## Method
//! 1. How many rows each expert has only the device knows. An expert's rows go where a matmul by itself would send
//!    them: up to [`FEW_USUAL`] to GEMVs, more to tiles. Both are dispatched where the number of all rows allows either.
//! 2. An item needs a row, so there are no more items than rows; nor more than its experts can have.
//! 3. What is not bf16 in whole vectors, or has codes that are NaN, goes to kernels of any type, four rows at a time.
//! 4. The experts' outputs lie in scratch memory: as many columns at a time as have [`OUTPUT_BYTES`].

use std::fmt;

use swiglu_core::{Float, Request, Shape};

use super::experts::Stack;
use crate::device::Facts;
use crate::pipelines::{FEW_USUAL, GROUPED_TILE, GroupedKernel, GroupedKind, Half};

/// Bytes of the experts' outputs that are made at a time, at most.
const OUTPUT_BYTES: usize = 128 << 20;

/// Columns of outputs are made so many at a time, or a multiple, or all.
const COLUMNS: usize = 64;

/// What decides how a half of a layer's experts is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupedOperands {
    pub(super) tokens: usize,
    /// Rows of all tokens, T · k.
    pub(super) rows: usize,
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
    /// Whether tiles take more.
    pub(super) tiles: bool,
    rows: usize,
}

impl GroupedPlan {
    pub(super) fn new(facts: &Facts, operands: &GroupedOperands) -> Self {
        let GroupedOperands {
            tokens,
            rows,
            usual,
        } = *operands;
        if !usual {
            return Self {
                few: GroupedKind::Any,
                most_few: rows,
                tiles: false,
                rows,
            };
        }
        // As a matmul by itself.
        let most_few = if facts.software {
            FEW_USUAL / 2
        } else {
            FEW_USUAL
        };
        Self {
            few: if tokens == 1 {
                GroupedKind::One
            } else {
                GroupedKind::Eight
            },
            most_few,
            tiles: rows > most_few,
            rows,
        }
    }

    /// Items that experts with few rows can have.
    pub(super) fn few_items(&self, experts: usize) -> usize {
        let of_expert = self.most_few.div_ceil(self.few.height() as usize);
        self.rows.min(experts.saturating_mul(of_expert))
    }

    /// Items that experts with more rows can have.
    pub(super) fn tile_items(&self, experts: usize) -> usize {
        if !self.tiles {
            return 0;
        }
        let with_many = experts.min(self.rows / (self.most_few + 1));
        if with_many == 0 {
            return 0;
        }
        // Each has one that is not full.
        self.rows / GROUPED_TILE as usize + with_many
    }
}

impl fmt::Display for GroupedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.few.height();
        match self.few {
            GroupedKind::Any => write!(f, "grouped_any({rows} rows)"),
            _ => write!(f, "grouped_gemv({rows} rows)"),
        }?;
        if self.tiles {
            write!(
                f,
                ", beyond {} rows of an expert grouped_tiles({GROUPED_TILE} x {GROUPED_TILE})",
                self.most_few
            )?;
        }
        Ok(())
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
