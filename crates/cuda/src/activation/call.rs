//! An activation over bare device memory, and what is checked of it.

use swiglu_core::{ActShape, Error as CoreError, Float, GatedActivation};

use super::plan::{ActProblem, HalfPlaces, RowPlace};
use crate::{
    error::Result,
    view::{RawMatrix, check_aligned},
};

/// Rows in batches, of which only the first few are in use: \[E, rows, 2d\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Rows of each batch.
    pub rows: usize,
    /// Address of one i32 for each batch: its rows in use. The others are neither read nor written.
    pub counts: u64,
}

impl Batches {
    /// Checks the batches of an input of so many rows.
    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        let whole = self.rows > 0 && rows.is_multiple_of(self.rows);
        if whole && rows < 1 << 31 {
            return check_aligned("counts", self.counts, 4);
        }
        let expected = format!("batches of {} rows, fewer than 2^31 in all", self.rows);
        Err(CoreError::argument("input", expected, rows).into())
    }
}

/// The input of an activation in bare device memory: core's `GateUp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawGateUp {
    /// One matrix \[T, 2d\].
    Merged(RawMatrix),
    /// A matrix \[T, d\] each, of one type. Their strides may differ; where both are whole 16-byte
    /// vectors, one stride is faster.
    Split {
        /// What goes through the function.
        gate: RawMatrix,
        /// What it is multiplied by.
        up: RawMatrix,
    },
}

impl RawGateUp {
    /// Checks shapes and strides, as core does for memory whose length it knows.
    pub(crate) fn check(&self) -> Result<ActShape> {
        match self {
            Self::Merged(input) => Ok(ActShape::of_input(&input.layout)?),
            Self::Split { gate, up } => {
                let (rows, d) = (gate.layout.rows, gate.layout.cols);
                if d == 0 {
                    return Err(CoreError::argument("gate", "at least one column", 0).into());
                }
                if up.float != gate.float {
                    return Err(CoreError::argument("up", gate.float.name(), up.float).into());
                }
                has_shape("up", up, ActShape { rows, d })?;
                gate.layout.end("gate")?;
                up.layout.end("up")?;
                Ok(ActShape { rows, d })
            }
        }
    }

    /// Checks that elements begin where the hardware reads them.
    pub(crate) fn check_aligned(&self) -> Result<()> {
        match self {
            Self::Merged(input) => input.check_aligned("input"),
            Self::Split { gate, up } => {
                gate.check_aligned("gate")?;
                up.check_aligned("up")
            }
        }
    }

    /// The elements' type.
    pub(crate) const fn float(&self) -> Float {
        match self {
            Self::Merged(input) => input.float,
            Self::Split { gate, .. } => gate.float,
        }
    }

    /// Where the halves lie, of `d` elements each.
    pub(crate) const fn halves(&self, op: &GatedActivation, d: usize) -> HalfPlaces {
        match self {
            Self::Merged(input) => {
                let half = (d * input.float.size()) as u64;
                HalfPlaces::merged(op, RowPlace::of(input), half)
            }
            Self::Split { gate, up } => HalfPlaces {
                gate: RowPlace::of(gate),
                up: RowPlace::of(up),
                step: 1,
            },
        }
    }
}

fn has_shape(argument: &'static str, matrix: &RawMatrix, shape: ActShape) -> Result<()> {
    let ActShape { rows, d } = shape;
    if (matrix.layout.rows, matrix.layout.cols) == (rows, d) {
        return Ok(());
    }
    let expected = format!("shape [{rows}, {d}]");
    Err(CoreError::argument(argument, expected, matrix.layout).into())
}

/// A call of an activation over bare device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawActCall {
    /// \[T, 2d\], or \[T, d\] twice.
    pub input: RawGateUp,
    /// \[T, d\] of the input's type.
    pub output: RawMatrix,
    /// Whether only some rows of each batch are in use.
    pub batches: Option<Batches>,
}

impl RawActCall {
    /// Checks shapes, types and strides.
    pub(crate) fn check(&self) -> Result<()> {
        let shape = self.input.check()?;
        let float = self.input.float();
        if self.output.float != float {
            return Err(CoreError::argument("output", float.name(), self.output.float).into());
        }
        has_shape("output", &self.output, shape)?;
        self.output.layout.end("output")?;
        Ok(())
    }

    /// Checks what shapes say nothing of: alignment, and batches.
    pub(crate) fn check_places(&self) -> Result<()> {
        self.input.check_aligned()?;
        self.output.check_aligned("output")?;
        match &self.batches {
            None => Ok(()),
            Some(batches) => batches.check(self.output.layout.rows),
        }
    }

    /// What the plan of this call depends on.
    pub(crate) const fn problem(&self, op: &GatedActivation) -> ActProblem {
        let d = self.output.layout.cols;
        ActProblem {
            float: self.output.float,
            rows: self.output.layout.rows as u64,
            d: d as u64,
            halves: self.input.halves(op, d),
            output: RowPlace::of(&self.output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::RowLayout;

    fn matrix(rows: usize, cols: usize) -> RawMatrix {
        RawMatrix {
            address: 0x1000,
            float: Float::BF16,
            layout: RowLayout::contiguous(rows, cols),
        }
    }

    fn message(call: &RawActCall) -> String {
        let checked = call.check().and_then(|()| call.check_places());
        checked.unwrap_err().to_string()
    }

    #[test]
    fn halves_in_two_matrices_are_checked_by_name() {
        let call = |gate, up, output| RawActCall {
            input: RawGateUp::Split { gate, up },
            output,
            batches: None,
        };
        let good = call(matrix(3, 4), matrix(3, 4), matrix(3, 4));
        good.check().unwrap();
        good.check_places().unwrap();
        let f32s = RawMatrix {
            float: Float::F32,
            ..matrix(3, 4)
        };
        let odd = RawMatrix {
            address: 0x1001,
            ..matrix(3, 4)
        };
        let short = RawMatrix {
            layout: RowLayout::contiguous(3, 4).with_stride(3),
            ..matrix(3, 4)
        };
        for (gate, up, output, start) in [
            (matrix(3, 0), matrix(3, 0), matrix(3, 0), "gate: expected"),
            (matrix(3, 4), f32s, matrix(3, 4), "up: expected bf16"),
            (
                matrix(3, 4),
                matrix(2, 4),
                matrix(3, 4),
                "up: expected shape",
            ),
            (
                matrix(3, 4),
                short,
                matrix(3, 4),
                "up: expected a row stride",
            ),
            (matrix(3, 4), odd, matrix(3, 4), "up: expected an address"),
            (odd, matrix(3, 4), matrix(3, 4), "gate: expected an address"),
            (matrix(3, 4), matrix(3, 4), f32s, "output: expected bf16"),
            (matrix(3, 4), matrix(3, 4), matrix(3, 5), "output: expected"),
        ] {
            let message = message(&call(gate, up, output));
            assert!(message.starts_with(start), "{message}");
        }
    }

    #[test]
    fn batches_are_whole() {
        let call = |rows, counts| RawActCall {
            input: RawGateUp::Merged(matrix(6, 8)),
            output: matrix(6, 4),
            batches: Some(Batches { rows, counts }),
        };
        call(3, 0x100).check_places().unwrap();
        assert!(message(&call(4, 0x100)).starts_with("input: expected batches"));
        assert!(message(&call(0, 0x100)).starts_with("input: expected batches"));
        assert!(message(&call(3, 0x102)).starts_with("counts: expected an address"));
    }
}
