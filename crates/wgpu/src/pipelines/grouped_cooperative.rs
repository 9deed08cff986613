//! Matmuls of experts with many rows of FP4 on cooperative matrices: their tiles, and their text.

use super::cooperative_tiles::{CooperativeShape, DIRECT, MATRICES, Operations, Steps};

const KERNEL: &str = include_str!("../shaders/grouped_cooperative.wgsl");

/// Codes in a vector of the weight, which an invocation loads at once.
const RAW: u32 = 32;

/// The tiles that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupedTile {
    /// With longer steps than others.
    Flat,
    Low,
    Middle,
    High,
}

impl GroupedTile {
    pub(crate) const ALL: [Self; 4] = [Self::Flat, Self::Low, Self::Middle, Self::High];

    pub(crate) const fn shape(self) -> CooperativeShape {
        let [tokens, depth, down, across, slices] = match self {
            Self::Flat => [16, 128, 1, 4, 2],
            Self::Low => [32, 64, 1, 4, 2],
            Self::Middle => [64, 64, 2, 4, 1],
            Self::High => [128, 64, 2, 4, 1],
        };
        CooperativeShape {
            tokens,
            rows: 128,
            depth,
            down,
            across,
            slices,
        }
    }

    /// Steps that are loaded ahead.
    const fn stages(self) -> u32 {
        match self {
            // Registers are short.
            Self::High => 1,
            Self::Flat | Self::Low | Self::Middle => 2,
        }
    }

    /// The least that holds an expert's rows where each has so many on average: with a quarter more, few have more
    /// than one tile.
    pub(crate) fn holding(rows: usize, experts: usize) -> Self {
        let most = rows.saturating_mul(5).div_ceil(4 * experts.max(1));
        let holds = |tile: &Self| tile.shape().tokens as usize >= most;
        Self::ALL.into_iter().find(holds).unwrap_or(Self::High)
    }

    /// What a kernel on cooperative matrices has beyond its call, before what it makes of sums.
    pub(super) fn text(self) -> String {
        self.text_on(MATRICES, DIRECT)
    }

    pub(super) fn text_on(self, matrices: &str, operations: Operations) -> String {
        let shape = self.shape();
        let steps = Steps {
            raw: RAW,
            stages: self.stages(),
            whole: false,
        };
        let kernel = shape.kernel(KERNEL, &steps, operations);
        matrices.to_owned() + &kernel.replace("#stage\n", &stage(shape.matrices()))
    }
}

/// The cases of the matrices that a subgroup stages, by their number.
fn stage([down, across]: [u32; 2]) -> String {
    let case = |n: u32| {
        let (i, j) = (n / across, n % across);
        format!("            case {n}u: {{ stage(c{i}{j}, local / 32u * 256u); }}\n")
    };
    (0..down * across).map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipelines::cooperative_tiles::MATRIX;

    #[test]
    fn tiles_are_shared_without_a_rest_and_fit_the_memory_of_others() {
        for tile in GroupedTile::ALL {
            let shape = tile.shape();
            let [down, across] = shape.matrices();
            assert_eq!(down * MATRIX * shape.down, shape.tokens, "{tile:?}");
            assert_eq!(across * MATRIX * shape.across, shape.rows, "{tile:?}");
            assert!(shape.depth.is_multiple_of(shape.slices * MATRIX));
            let invocations = shape.invocations();
            for (side, vectors) in [
                (shape.tokens, shape.depth / 4),
                (shape.rows, shape.depth / RAW),
            ] {
                assert!(invocations.is_multiple_of(vectors), "{tile:?}");
                assert!((side * vectors).is_multiple_of(invocations), "{tile:?}");
            }
            let most = crate::pipelines::COOPERATIVE_SUBGROUPS.storage;
            assert!(shape.workgroup_bytes() <= most, "{tile:?}");
        }
    }

    #[test]
    fn tiles_hold_a_quarter_more_rows_than_an_expert_has_on_average() {
        for (tokens, tile) in [
            (1, GroupedTile::Flat),
            (512, GroupedTile::Flat),
            (1024, GroupedTile::Low),
            (2048, GroupedTile::Middle),
            (4096, GroupedTile::High),
            (8192, GroupedTile::High),
        ] {
            assert_eq!(GroupedTile::holding(6 * tokens, 256), tile, "{tokens}");
        }
    }
}
