//! How an activation is cut into launches: a pure function of where its matrices lie.
//!
//! ## Method
//! 1. The access is the widest that every address, stride and length of the call allows: 32 or 16
//!    bytes of rows that are whole vectors, else 16 bytes of the output with inputs that lie
//!    anywhere. Halves with strides of their own go the last way, which has a stride for each.
//! 2. A launch has a thread for each vector, fewer than 2^31 of them: longer rows are cut into
//!    columns, and more rows than fit into several launches.

use std::fmt;

use swiglu_core::{Float, GatedActivation, Layout, Order};

use crate::{
    launch::{
        options::MANY,
        params::{ActParams, Divisor, Scalars},
    },
    view::RawMatrix,
};

/// Threads of one launch: their numbers are divided in 32 bits, with room for a last block.
pub(crate) const LAUNCH_THREADS: u64 = (1 << 31) - 4096;

/// Columns of one launch over rows that lie anywhere, which are counted in 31 bits.
const ANYWHERE_COLUMNS: u64 = 1 << 30;

/// Threads of a block over many rows that lie anywhere.
const ANYWHERE_THREADS: u32 = 256;

/// How a kernel reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Vectors of 16 bytes out of rows that lie anywhere.
    Any,
    /// Rows of whole vectors of 16 bytes.
    Bytes16,
    /// Of 32, from compute capability 10.0 on.
    Bytes32,
}

impl Access {
    pub(crate) const ALL: [Self; 3] = [Self::Any, Self::Bytes16, Self::Bytes32];

    /// The widest first.
    pub(crate) const fn of_whole_vectors(with_32_bytes: bool) -> &'static [Self] {
        if with_32_bytes {
            &[Self::Bytes32, Self::Bytes16]
        } else {
            &[Self::Bytes16]
        }
    }

    /// Outputs of one thread.
    pub(crate) const fn lanes(self, float: Float) -> usize {
        match self {
            Self::Any | Self::Bytes16 => 16 / float.size(),
            Self::Bytes32 => 32 / float.size(),
        }
    }

    /// The name in the names of kernels.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Bytes16 => "16bytes",
            Self::Bytes32 => "32bytes",
        }
    }
}

/// Where the rows of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPlace {
    /// Address of the first element.
    pub(crate) first: u64,
    /// Elements from row to row.
    pub(crate) stride: u64,
}

impl RowPlace {
    pub(crate) const fn of(matrix: &RawMatrix) -> Self {
        Self {
            first: matrix.first(),
            stride: matrix.layout.stride as u64,
        }
    }
}

/// Where the halves of an input lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HalfPlaces {
    pub(crate) gate: RowPlace,
    pub(crate) up: RowPlace,
    /// Elements from a gate to the next: 2 where the halves are interleaved, else 1.
    pub(crate) step: u64,
}

impl HalfPlaces {
    /// Those of one matrix \[T, 2d\]. Interleaved rows are found by their gates.
    pub(crate) const fn merged(op: &GatedActivation, rows: RowPlace, half: u64) -> Self {
        let after = RowPlace {
            first: rows.first + half,
            stride: rows.stride,
        };
        let (gate, up, step) = match (op.layout(), op.order()) {
            (Layout::Interleaved, _) => (rows, rows, 2),
            (Layout::Concatenated, Order::GateFirst) => (rows, after, 1),
            (Layout::Concatenated, Order::UpFirst) => (after, rows, 1),
        };
        Self { gate, up, step }
    }
}

/// What the plan of an activation depends on, beside the accesses that its kernels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActProblem {
    pub(crate) float: Float,
    pub(crate) rows: u64,
    /// Elements of a row of the output.
    pub(crate) d: u64,
    pub(crate) halves: HalfPlaces,
    pub(crate) output: RowPlace,
}

/// How an activation is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActPlan {
    pub(crate) access: Access,
    /// Outputs of one thread.
    lanes: u64,
    rows: u64,
    d: u64,
}

/// The outputs of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActPiece {
    row: u64,
    rows: u64,
    column: u64,
    columns: u64,
    /// Vectors of a row.
    row_vectors: u64,
}

impl ActPiece {
    /// Threads of the launch.
    pub(crate) const fn vectors(&self) -> u32 {
        (self.rows * self.row_vectors) as u32
    }
}

impl ActPlan {
    /// The plan of a call. `widths` are the accesses to rows of whole vectors, the widest first.
    pub(crate) fn new(problem: &ActProblem, widths: &[Access]) -> Self {
        let HalfPlaces { gate, up, .. } = problem.halves;
        let size = problem.float.size() as u64;
        let mut all = gate.first | up.first | problem.output.first | (problem.d * size);
        let mut one_stride = true;
        if problem.rows > 1 {
            all |= (gate.stride | problem.output.stride) * size;
            one_stride = gate.stride == up.stride;
        }
        let lanes = |access: Access| access.lanes(problem.float) as u64;
        let fits = |access: &&Access| one_stride && all.is_multiple_of(lanes(**access) * size);
        let access = widths.iter().find(fits).copied().unwrap_or(Access::Any);
        Self {
            access,
            lanes: lanes(access),
            rows: problem.rows,
            d: problem.d,
        }
    }

    /// Threads of a block of a launch of so many, where they are not what most kernels have: rows that lie anywhere
    /// take more instructions, which smaller blocks spread better (measured on an H200).
    pub(crate) fn threads(&self, vectors: u32) -> Option<u32> {
        (self.access == Access::Any && vectors >= MANY).then_some(ANYWHERE_THREADS)
    }

    /// The launches, which together cover every output once.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = ActPiece> + use<> {
        let Self {
            access,
            lanes,
            rows,
            d,
        } = *self;
        let most_columns = match access {
            Access::Any => ANYWHERE_COLUMNS,
            Access::Bytes16 | Access::Bytes32 => (LAUNCH_THREADS - 1) * lanes,
        };
        let columns = (0..d.div_ceil(most_columns)).map(move |i| i * most_columns);
        columns.flat_map(move |column| {
            let columns = (d - column).min(most_columns);
            // Where rows begin anywhere, the first and the last vector may be parts of one.
            let row_vectors = match access {
                Access::Any => (columns + 2 * (lanes - 1)) / lanes,
                Access::Bytes16 | Access::Bytes32 => columns / lanes,
            };
            let most_rows = (LAUNCH_THREADS / row_vectors).max(1);
            (0..rows.div_ceil(most_rows)).map(move |i| ActPiece {
                row: i * most_rows,
                rows: (rows - i * most_rows).min(most_rows),
                column,
                columns,
                row_vectors,
            })
        })
    }
}

impl fmt::Display for ActPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.access {
            Access::Any => f.write_str("16-byte vectors of rows that lie anywhere")?,
            Access::Bytes16 => f.write_str("16-byte vectors")?,
            Access::Bytes32 => f.write_str("32-byte vectors")?,
        }
        match self.pieces().count() {
            1 => Ok(()),
            launches => write!(f, ", {launches} launches"),
        }
    }
}

impl ActPiece {
    /// The parameters of the launch; `counts` are those of batches, 0 for none.
    pub(crate) fn params(
        &self,
        problem: &ActProblem,
        (counts, batch_rows): (u64, u32),
        scalars: Scalars,
    ) -> ActParams {
        let HalfPlaces { gate, up, step } = problem.halves;
        let size = problem.float.size() as u64;
        let first = |place: RowPlace, step: u64| {
            place.first + (self.row * place.stride + self.column * step) * size
        };
        ActParams {
            gate: first(gate, step),
            up: first(up, step),
            output: first(problem.output, 1),
            counts,
            gate_stride: gate.stride,
            up_stride: up.stride,
            output_stride: problem.output.stride,
            d: self.columns,
            vectors: self.vectors(),
            row_vectors: self.row_vectors as u32,
            by_row: Divisor::new(self.row_vectors as u32),
            batch_rows,
            first_row: self.row as u32,
            by_batch: Divisor::new(batch_rows),
            scalars,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[Access] = Access::of_whole_vectors(true);

    /// bf16 halves in one matrix without gaps.
    fn problem(rows: u64, d: u64) -> ActProblem {
        let place = |first, stride| RowPlace { first, stride };
        let op = GatedActivation::silu_and_mul();
        ActProblem {
            float: Float::BF16,
            rows,
            d,
            halves: HalfPlaces::merged(&op, place(0x1000, 2 * d), 2 * d),
            output: place(0x2000, d),
        }
    }

    #[test]
    fn accesses_are_as_wide_as_every_address_allows() {
        let access = |p: &ActProblem| ActPlan::new(p, BOTH).access;
        assert_eq!(access(&problem(3, 16)), Access::Bytes32);
        assert_eq!(access(&problem(3, 24)), Access::Bytes16);
        assert_eq!(access(&problem(3, 12)), Access::Any);
        let without = Access::of_whole_vectors(false);
        assert_eq!(
            ActPlan::new(&problem(3, 16), without).access,
            Access::Bytes16
        );
        let change = |change: fn(&mut ActProblem)| {
            let mut changed = problem(3, 16);
            change(&mut changed);
            access(&changed)
        };
        assert_eq!(change(|p| p.halves.gate.first += 2), Access::Any);
        assert_eq!(change(|p| p.halves.up.first += 16), Access::Bytes16);
        assert_eq!(change(|p| p.output.stride = 20), Access::Any);
        assert_eq!(change(|p| p.output.stride = 24), Access::Bytes16);
    }

    #[test]
    fn halves_with_strides_of_their_own_take_the_access_that_has_both() {
        let mut apart = problem(3, 16);
        apart.halves.up.stride = 64;
        assert_eq!(ActPlan::new(&apart, BOTH).access, Access::Any);
        // With one row strides have no say.
        apart.rows = 1;
        assert_eq!(ActPlan::new(&apart, BOTH).access, Access::Bytes32);
        let both = RowPlace {
            first: 0x4000,
            stride: 16,
        };
        apart = problem(3, 16);
        (apart.halves.gate, apart.halves.up) = (both, both);
        assert_eq!(ActPlan::new(&apart, BOTH).access, Access::Bytes32);
    }

    #[test]
    fn halves_lie_where_layout_and_order_say() {
        let rows = RowPlace {
            first: 0x1000,
            stride: 8,
        };
        let firsts = |op: &GatedActivation| {
            let halves = HalfPlaces::merged(op, rows, 8);
            (halves.gate.first, halves.up.first, halves.step)
        };
        assert_eq!(
            firsts(&GatedActivation::silu_and_mul()),
            (0x1000, 0x1008, 1)
        );
        assert_eq!(
            firsts(&GatedActivation::mul_and_silu()),
            (0x1008, 0x1000, 1)
        );
        assert_eq!(firsts(&GatedActivation::gpt_oss()), (0x1000, 0x1000, 2));
    }

    #[test]
    fn large_calls_are_cut_into_launches_that_cover_them() {
        for (rows, d) in [(3, 1 << 30), (1 << 33, 1), (1, 1 << 34), (70_000, 70_000)] {
            for widths in [&[][..], &[Access::Bytes16]] {
                let problem = problem(rows, d);
                let plan = ActPlan::new(&problem, widths);
                let (mut outputs, mut end) = (0, 0);
                for piece in plan.pieces() {
                    let p = piece.params(&problem, (0, 1), Scalars::default());
                    let rows = u64::from(p.vectors / p.row_vectors);
                    outputs += rows * p.d;
                    end = p.output - 0x2000 + 2 * ((rows - 1) * d + p.d);
                    assert!(p.vectors < 1 << 31);
                    assert!(plan.access != Access::Any || p.d <= 1 << 30);
                    // A row of vectors that begins one element before a multiple of 16 bytes.
                    let slack = if plan.access == Access::Any { 7 } else { 0 };
                    assert!(8 * u64::from(p.row_vectors) >= p.d + slack);
                }
                assert_eq!(outputs, rows * d);
                assert_eq!(end, 2 * outputs);
            }
        }
    }

    #[test]
    fn both_halves_advance_by_their_own_strides() {
        let mut problem = problem(1 << 32, 1);
        problem.halves.up.stride = 5;
        let plan = ActPlan::new(&problem, BOTH);
        let second = plan.pieces().nth(1).unwrap();
        let p = second.params(&problem, (0, 1), Scalars::default());
        let rows = second.row;
        assert_eq!(p.gate, 0x1000 + 2 * 2 * rows);
        assert_eq!(p.up, 0x1002 + 2 * 5 * rows);
        assert_eq!((p.gate_stride, p.up_stride), (2, 5));
    }

    #[test]
    fn many_rows_that_lie_anywhere_have_smaller_blocks() {
        let threads = |d, vectors| ActPlan::new(&problem(3, d), BOTH).threads(vectors);
        assert_eq!((threads(7, MANY - 1), threads(7, MANY)), (None, Some(256)));
        assert_eq!(threads(16, MANY), None);
    }

    #[test]
    fn a_plan_prints_its_accesses_and_launches() {
        let text = |rows, d| ActPlan::new(&problem(rows, d), BOTH).to_string();
        assert_eq!(text(3, 16), "32-byte vectors");
        assert_eq!(
            text(1 << 33, 1),
            "16-byte vectors of rows that lie anywhere, 5 launches"
        );
    }
}
