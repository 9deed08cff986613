//! The matmuls on cooperative matrices: their tiles, what each takes, and their text.

use std::fmt;

use super::cooperative_tiles::{
    CooperativeShape, DIRECT, LANES, MATRICES, MATRIX, Operations, Steps,
};
use super::grouped_cooperative::GroupedTile;
use super::matmul::DeviceFormat;
use super::matmul_text::text;
use super::shader::Shader;
use crate::device::Subgroups;

const OF_F16: &str = include_str!("../shaders/cooperative_f16.wgsl");
const OF_BF16: &str = include_str!("../shaders/cooperative_bf16.wgsl");
const OF_E4M3: &str = include_str!("../shaders/cooperative_e4m3.wgsl");
const KERNEL: &str = include_str!("../shaders/matmul_cooperative.wgsl");
const ROWS_AS_F16: &str = include_str!("../shaders/rows_as_f16.wgsl");

/// What columns are multiples of.
pub(crate) const COOPERATIVE_DEPTH: u32 = 32;

/// From so many tokens on they are faster than GEMVs.
pub(crate) const LEAST_COOPERATIVE: usize = 9;

/// Elements that follow the k of a row of x in f16: a vector that holds its exponent.
pub(crate) const ROW_END: usize = 8;

/// What kernels on cooperative matrices ask of a device.
pub(crate) const COOPERATIVE_SUBGROUPS: Subgroups = Subgroups {
    lanes: LANES,
    storage: {
        let mut most = 0;
        let mut i = 0;
        while i < CooperativeTile::ALL.len() {
            let bytes = CooperativeTile::ALL[i].shape().workgroup_bytes();
            if bytes > most {
                most = bytes;
            }
            i += 1;
        }
        i = 0;
        while i < GroupedTile::ALL.len() {
            let bytes = GroupedTile::ALL[i].shape().workgroup_bytes();
            if bytes > most {
                most = bytes;
            }
            i += 1;
        }
        most
    },
};

/// The formats of weights that are multiplied so, by x of their usual type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CooperativeFormat {
    F16,
    BF16,
    E4m3,
}

impl CooperativeFormat {
    pub(super) const ALL: [Self; 3] = [Self::F16, Self::BF16, Self::E4m3];

    pub(crate) const fn of(format: DeviceFormat) -> Option<Self> {
        match format {
            DeviceFormat::F32 | DeviceFormat::Fp4 => None,
            DeviceFormat::F16 => Some(Self::F16),
            DeviceFormat::BF16 => Some(Self::BF16),
            DeviceFormat::E4m3 => Some(Self::E4m3),
        }
    }

    const fn format(self) -> DeviceFormat {
        match self {
            Self::F16 => DeviceFormat::F16,
            Self::BF16 => DeviceFormat::BF16,
            Self::E4m3 => DeviceFormat::E4m3,
        }
    }

    /// Whether rows of x and of the weight are multiplied by powers of two first.
    pub(crate) const fn is_scaled(self) -> bool {
        !matches!(self, Self::F16)
    }

    /// Elements of the weight that an invocation loads at once.
    const fn raw(self) -> u32 {
        match self {
            Self::F16 => 4,
            Self::BF16 => 8,
            Self::E4m3 => 16,
        }
    }
}

/// The tiles that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CooperativeTile {
    /// For up to 16 tokens.
    Narrow,
    Low,
    Middle,
    /// For no fewer tokens and rows than its own.
    Wide,
}

impl CooperativeTile {
    pub(crate) const ALL: [Self; 4] = [Self::Narrow, Self::Low, Self::Middle, Self::Wide];

    pub(crate) const fn shape(self) -> CooperativeShape {
        let [tokens, rows, depth, down, across, slices] = match self {
            Self::Narrow => [16, 16, 512, 1, 1, 8],
            Self::Low => [64, 32, 128, 2, 1, 4],
            Self::Middle => [128, 64, 64, 2, 2, 2],
            Self::Wide => [128, 128, 64, 2, 4, 1],
        };
        CooperativeShape {
            tokens,
            rows,
            depth,
            down,
            across,
            slices,
        }
    }

    /// Whether tiles are never larger than what is multiplied, and columns whole steps.
    const fn is_full(self) -> bool {
        matches!(self, Self::Wide)
    }
}

/// A kernel on cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CooperativeKernel {
    pub(crate) weight: CooperativeFormat,
    pub(crate) tile: CooperativeTile,
}

impl CooperativeKernel {
    /// All of them, by [`Self::index`].
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let formats = CooperativeFormat::ALL.into_iter();
        formats.flat_map(|weight| CooperativeTile::ALL.map(|tile| Self { weight, tile }))
    }

    /// Its place among the shaders.
    pub(super) const fn index(self) -> usize {
        self.weight as usize * CooperativeTile::ALL.len() + self.tile as usize
    }

    /// Steps that are loaded ahead.
    const fn stages(self) -> u32 {
        match self.tile {
            // Registers are short, and a step is long enough to load the next one.
            CooperativeTile::Wide => 1,
            _ => 2,
        }
    }

    /// For any rows, or for dense ones of `k` elements.
    pub(super) fn shader(self, k: Option<u32>) -> Shader {
        Shader {
            source: "enable f16;\nenable wgpu_cooperative_matrix;\n".to_owned()
                + &self.text(MATRICES, DIRECT),
            entry: "matmul_cooperative",
            constants: vec![("K", f64::from(k.unwrap_or(0)))],
            checked: false,
        }
    }

    fn text(self, matrices: &str, operations: Operations) -> String {
        let shape = self.tile.shape();
        let steps = Steps {
            raw: self.weight.raw(),
            stages: self.stages(),
            whole: self.tile.is_full(),
        };
        let flags = [
            ("SCALED", self.weight.is_scaled()),
            ("FULL", self.tile.is_full()),
        ];
        let flags: String = flags
            .iter()
            .map(|(name, on)| format!("const {name}: bool = {on};\n"))
            .collect();
        let kernel = shape.kernel(KERNEL, &steps, operations);
        let kernel = kernel.replace("#put\n", &put(&shape));
        let own = match self.weight {
            CooperativeFormat::F16 => OF_F16,
            CooperativeFormat::BF16 => OF_BF16,
            CooperativeFormat::E4m3 => OF_E4M3,
        };
        flags + &text(&[], &[own, matrices, &kernel])
    }

    /// The kernel without cooperative matrices.
    #[cfg(test)]
    pub(crate) fn stand_in(self, k: Option<u32>) -> Shader {
        use super::cooperative_tiles::{STAND_IN, STANDING_IN};
        Shader {
            source: "enable f16;\n".to_owned() + &self.text(STAND_IN, STANDING_IN),
            ..self.shader(k)
        }
    }
}

impl fmt::Display for CooperativeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, format) = (self.tile.shape(), self.weight.format());
        let (tokens, rows, x) = (shape.tokens, shape.rows, format.usual_x());
        write!(f, "matmul_cooperative({tokens} x {rows}, {x} by {format})")
    }
}

/// How a subgroup's sums leave.
fn put(shape: &CooperativeShape) -> String {
    let [down, across] = shape.matrices();
    let places = (0..down).flat_map(|i| (0..across).map(move |j| (i, j)));
    places
        .map(|(i, j)| {
            let at = format!("vec2({}u, {}u)", j * MATRIX, i * MATRIX);
            format!("    put(c{i}{j}, first, {at}, local);\n")
        })
        .collect()
}

/// The kernel that makes rows of bf16 such of f16.
pub(super) fn rows_as_f16() -> Shader {
    Shader {
        source: super::shader::WORKGROUP_TEXT.to_owned() + ROWS_AS_F16,
        entry: "rows_as_f16",
        constants: Vec::new(),
        checked: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_their_index() {
        for (i, kernel) in CooperativeKernel::all().enumerate() {
            assert_eq!(kernel.index(), i, "{kernel}");
        }
    }

    #[test]
    fn tiles_are_shared_without_a_rest() {
        for kernel in CooperativeKernel::all() {
            let shape = kernel.tile.shape();
            let [down, across] = shape.matrices();
            assert_eq!(down * MATRIX * shape.down, shape.tokens, "{kernel}");
            assert_eq!(across * MATRIX * shape.across, shape.rows, "{kernel}");
            assert!(
                shape.depth.is_multiple_of(shape.slices * MATRIX),
                "{kernel}"
            );
            // Every invocation brings as many vectors, whole lines at a time.
            for (side, vectors) in [
                (shape.tokens, shape.depth / 4),
                (shape.rows, shape.depth / kernel.weight.raw()),
            ] {
                let invocations = shape.invocations();
                assert!(invocations.is_multiple_of(vectors), "{kernel}");
                assert!((side * vectors).is_multiple_of(invocations), "{kernel}");
            }
        }
    }
}
