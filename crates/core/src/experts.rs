//! The weights of a layer's routed experts, in a backend's memory.

use std::ops::Range;

use crate::{Error, HostWeight, Result, WeightFormat};

/// What the experts of a layer are, or those of one rank: all of one shape and one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertsShape {
    /// Which of the layer's experts these are; with expert parallelism a part of them.
    pub range: Range<usize>,
    /// Elements in a row of x and y (H).
    pub hidden: usize,
    /// Elements in a row of `act` (I).
    pub intermediate: usize,
    /// How the gate and up weights are stored.
    pub gate_up: WeightFormat,
    /// How the down weights are stored.
    pub down: WeightFormat,
}

impl ExpertsShape {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.range.len()
    }

    /// Checks one expert's weights: gate and up \[I, H\], down \[H, I\].
    ///
    /// # Errors
    /// The first whose shape or format is another.
    pub fn check(
        &self,
        gate: &HostWeight<'_>,
        up: &HostWeight<'_>,
        down: &HostWeight<'_>,
    ) -> Result<()> {
        let wide = [self.intermediate, self.hidden];
        for (argument, weight, [rows, cols], format) in [
            ("gate", gate, wide, self.gate_up),
            ("up", up, wide, self.gate_up),
            ("down", down, [self.hidden, self.intermediate], self.down),
        ] {
            let got = [weight.rows(), weight.cols()];
            if got != [rows, cols] || weight.format() != format {
                let expected = format!("[{rows}, {cols}] of {format}");
                let got = format!("[{}, {}] of {}", got[0], got[1], weight.format());
                return Err(Error::argument(argument, expected, got));
            }
        }
        Ok(())
    }
}

/// Routed experts in the form that a backend multiplies with: what
/// [`crate::GroupedMatmul::load_expert`] fills, one expert after another.
///
/// By default `gate_up` and `down` have a weight for each expert of the shape's range, in order. A
/// backend whose kernels want all experts in one piece may keep them so.
#[derive(Debug)]
pub struct Experts<Weight> {
    shape: ExpertsShape,
    /// How many are loaded.
    loaded: usize,
    /// \[2I, H\] each, gate rows first.
    pub gate_up: Vec<Weight>,
    /// \[H, I\] each.
    pub down: Vec<Weight>,
}

impl<Weight> Experts<Weight> {
    /// None yet of so many.
    pub const fn new(shape: ExpertsShape) -> Self {
        Self {
            shape,
            loaded: 0,
            gate_up: Vec::new(),
            down: Vec::new(),
        }
    }

    /// What they are.
    pub const fn shape(&self) -> &ExpertsShape {
        &self.shape
    }

    /// How many are loaded so far: the place of the next in the shape's range.
    pub const fn loaded(&self) -> usize {
        self.loaded
    }

    /// Takes the next expert, checked, whose weights the caller has put where they belong.
    ///
    /// # Errors
    /// As [`ExpertsShape::check`], or one more than there are.
    pub fn count_next(
        &mut self,
        gate: &HostWeight<'_>,
        up: &HostWeight<'_>,
        down: &HostWeight<'_>,
    ) -> Result<()> {
        let count = self.shape.count();
        if self.loaded == count {
            let expected = format!("{count} experts");
            return Err(Error::argument("experts", expected, "one more"));
        }
        self.shape.check(gate, up, down)?;
        self.loaded += 1;
        Ok(())
    }

    /// Checks that all are there.
    ///
    /// # Errors
    /// Fewer.
    pub fn check_complete(&self) -> Result<()> {
        let count = self.shape.count();
        if self.loaded == count {
            return Ok(());
        }
        let expected = format!("{count} experts loaded");
        Err(Error::argument("experts", expected, self.loaded))
    }
}
