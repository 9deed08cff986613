//! The kernels of a layer of routed experts: the choice, the two halves of the experts, and the sum.

use std::fmt;

use swiglu_core::Float;

use super::cooperative::repeated;
use super::grouped_cooperative::GroupedTile;
use super::matmul::{DeviceFormat, LANES, LaneSums, ROWS, Tier, TileKind};
use super::matmul_text::{self, GEMV_ANY, OPERANDS, TILED};
use super::quantize::{QUANT, SCALES};
use super::shader::{
    ELEMENT, FUNCTIONS_TEXT, NUMERIC, OP, OPERATION, Shader, WORKGROUP_TEXT, activation_constants,
};
use crate::device::Facts;

pub(super) const CHOOSE: &str = include_str!("../shaders/choose_experts.wgsl");
pub(super) const SORT: &str = include_str!("../shaders/sort_routes.wgsl");
pub(super) const SCHEDULE: &str = include_str!("../shaders/schedule_rows.wgsl");
pub(super) const GROUPED_CALL: &str = include_str!("../shaders/grouped_call.wgsl");
pub(super) const SUM: &str = include_str!("../shaders/sum_routes.wgsl");
pub(super) const REQUANTIZE: &str = include_str!("../shaders/requantize.wgsl");
const REQUANTIZE_FROM: &str = include_str!("../shaders/requantize_from.wgsl");
const REQUANTIZE_IN_PLACE: &str = include_str!("../shaders/requantize_in_place.wgsl");
const GROUPED_ACTIVATION: &str = include_str!("../shaders/grouped_activation.wgsl");
const GROUPED_PLAIN: &str = include_str!("../shaders/grouped_plain.wgsl");
const GROUPED_STORE: &str = include_str!("../shaders/grouped_store.wgsl");
const GROUPED_ITEMS: &str = include_str!("../shaders/grouped_items.wgsl");
const GROUPED_ROW: &str = include_str!("../shaders/grouped_row.wgsl");
const REDUCE_FOUR_SUBGROUP: &str = include_str!("../shaders/reduce_four_subgroup.wgsl");
const REDUCE_FOUR_WORKGROUP: &str = include_str!("../shaders/reduce_four_workgroup.wgsl");
const GROUPED_GEMV: &str = include_str!("../shaders/grouped_gemv.wgsl");
const GROUPED_ANY: &str = include_str!("../shaders/grouped_any.wgsl");
const GROUPED_TILES: &str = include_str!("../shaders/grouped_tiles.wgsl");

/// Storage buffers of the kernel that chooses, which binds most.
pub(super) const MOE_BUFFERS: u32 = 8;

/// Subgroups of a workgroup that multiplies few rows, and the pairs of rows of the weight that it takes.
const FEW_SUBGROUPS: u32 = 8;
const FEW_PAIRS: u32 = 32;

/// Subgroups of a workgroup that multiplies one row, and the rows of the weight that those which share one take.
const ROW_SUBGROUPS: u32 = 4;
const ROWS_OF: u32 = 16;

/// Bytes of its memory: the sums of lanes, of rows and what is stored, and the row that it takes.
pub(super) const ROW_BYTES: u32 = ROW_SUBGROUPS * (LANES * 16 + ROWS_OF * 8) + 16;

/// Up to so many rows of a layer a workgroup takes half as many rows of the weight: all of a large device has some.
const FEW_ROWS: u32 = 12;

/// Tiles of grouped matmuls.
const TILES: TileKind = TileKind::Small { aligned: true };

/// Rows of a tile.
const GROUPED_TILE: u32 = TILES.side();

/// A kernel of a layer of routed experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoeKernel {
    /// Experts and weights of tokens, from logits.
    Choose,
    /// Routes in the order of experts.
    Sort,
    /// The rows of experts as items for workgroups.
    Schedule,
    /// Rows to FP8 and back, from elsewhere or in place.
    Requantize { in_place: bool },
    /// The sums of tokens.
    Sum,
    /// Matmuls of many experts.
    Grouped(GroupedKernel),
}

/// A matmul of many experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupedKernel {
    pub(crate) half: Half,
    pub(crate) weight: DeviceFormat,
    pub(crate) kind: GroupedKind,
}

/// A half of a layer of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// Gate, up and the activation.
    GateUp,
    Down,
}

/// What a grouped matmul takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupedKind {
    /// One row of bf16 in whole vectors that its route finds, by scales that are ordinary.
    Row,
    /// One row of an expert of bf16 in whole vectors.
    One,
    /// Up to eight such rows.
    Eight,
    /// Up to four rows of any type and place.
    Any,
    /// Up to [`GROUPED_TILE`] rows of bf16 in whole vectors.
    Tiles,
    /// Up to a tile's rows of f16 that end with their exponents, on cooperative matrices.
    Cooperative(GroupedTile),
}

impl GroupedKind {
    const ALL: [Self; 9] = [
        Self::Row,
        Self::One,
        Self::Eight,
        Self::Any,
        Self::Tiles,
        Self::Cooperative(GroupedTile::Flat),
        Self::Cooperative(GroupedTile::Low),
        Self::Cooperative(GroupedTile::Middle),
        Self::Cooperative(GroupedTile::High),
    ];

    /// Its place among them.
    const fn place(self) -> usize {
        match self {
            Self::One => 0,
            Self::Eight => 1,
            Self::Any => 2,
            Self::Tiles => 3,
            Self::Cooperative(tile) => 4 + tile as usize,
            Self::Row => 8,
        }
    }

    /// Rows of an item.
    pub(crate) const fn height(self) -> u32 {
        match self {
            Self::Row | Self::One => 1,
            Self::Eight => 8,
            Self::Any => 4,
            Self::Tiles => GROUPED_TILE,
            Self::Cooperative(tile) => tile.shape().tokens,
        }
    }

    /// Whether it is made for weights of a format: x of experts is bf16, which is not the usual type of others.
    pub(crate) fn takes(self, weight: DeviceFormat) -> bool {
        match self {
            Self::Any => true,
            Self::One | Self::Eight | Self::Tiles => weight.usual_x() == Float::BF16,
            Self::Row | Self::Cooperative(_) => weight == DeviceFormat::Fp4,
        }
    }

    /// Whether x comes to it in f16.
    pub(crate) const fn is_cooperative(self) -> bool {
        matches!(self, Self::Cooperative(_))
    }
}

impl GroupedKernel {
    /// All of them.
    pub(crate) fn all(facts: &Facts) -> impl Iterator<Item = Self> + use<> {
        let facts = *facts;
        let halves = [Half::GateUp, Half::Down].into_iter();
        halves.flat_map(move |half| {
            DeviceFormat::ALL
                .into_iter()
                .flat_map(move |w| Self::of(half, w, &facts))
        })
    }

    /// Those of a half by weights of a format.
    pub(crate) fn of(
        half: Half,
        weight: DeviceFormat,
        facts: &Facts,
    ) -> impl Iterator<Item = Self> + use<> {
        let cooperative = facts.cooperative;
        let kinds = GroupedKind::ALL.into_iter();
        let kinds = kinds.filter(move |kind| cooperative || !kind.is_cooperative());
        let kinds = kinds.filter(move |kind| kind.takes(weight));
        kinds.map(move |kind| Self { half, weight, kind })
    }

    /// Its place among [`Self::PLACES`].
    const fn index(self) -> usize {
        let kinds = GroupedKind::ALL.len();
        (self.half as usize * DeviceFormat::ALL.len() + self.weight as usize) * kinds
            + self.kind.place()
    }

    const PLACES: usize = 2 * DeviceFormat::ALL.len() * GroupedKind::ALL.len();

    /// Columns of its results that a workgroup makes, of so many rows by a weight's of so many vectors.
    pub(crate) const fn outputs(self, rows: u32, row_vectors: u32) -> u32 {
        let rows = match self.kind {
            // As the shader has it.
            GroupedKind::Row => {
                let parts = if row_vectors > 2 * LANES {
                    4
                } else if row_vectors > LANES {
                    2
                } else {
                    1
                };
                let of_each = if rows <= FEW_ROWS {
                    ROWS_OF / 2
                } else {
                    ROWS_OF
                };
                ROW_SUBGROUPS / parts * of_each
            }
            GroupedKind::One | GroupedKind::Eight => 2 * FEW_PAIRS,
            GroupedKind::Any => ROWS,
            GroupedKind::Tiles => GROUPED_TILE,
            GroupedKind::Cooperative(tile) => tile.shape().rows,
        };
        match self.half {
            Half::GateUp => rows / 2,
            Half::Down => rows,
        }
    }

    fn shader(self, tier: Tier) -> Shader {
        match self.kind {
            GroupedKind::Cooperative(tile) => {
                let enabled = "enable f16;\nenable wgpu_cooperative_matrix;\n";
                self.shader_of(tier, enabled, &tile.text())
            }
            _ => self.shader_of(tier, "", ""),
        }
    }

    /// With the text of a kernel on cooperative matrices, where it is one, and what that has to enable.
    fn shader_of(self, tier: Tier, enabled: &str, cooperative: &str) -> Shader {
        let gated = self.half == Half::GateUp;
        let tiled = matches!(self.kind, GroupedKind::Tiles | GroupedKind::Cooperative(_));
        let list = u32::from(tiled);
        let flags = format!(
            "const GATED: bool = {gated};\nconst LIST: u32 = {list}u;\nconst OUTPUTS: u32 = {}u;\n",
            self.outputs(0, 0)
        );
        let mut own = match self.kind {
            GroupedKind::Any | GroupedKind::Tiles => vec![GROUPED_STORE],
            _ => Vec::new(),
        };
        let mut constants = match self.kind {
            GroupedKind::Any => matmul_text::constants((self.weight, None), false, tier),
            GroupedKind::Cooperative(_) => Vec::new(),
            _ => matmul_text::constants((self.weight, Some(Float::BF16)), true, tier),
        };
        if gated {
            own.extend([FUNCTIONS_TEXT, OPERATION, GROUPED_ACTIVATION]);
            constants.extend(activation_constants(Float::BF16, false));
        } else {
            own.push(GROUPED_PLAIN);
        }
        // Rows of the item at a time.
        let gemv = |rows| {
            let pairs = format!("const PAIRS: u32 = {FEW_PAIRS}u;\n");
            let text =
                matmul_text::usual_gemv(rows, only_present) + &repeated("#t", rows, GROUPED_GEMV);
            matmul_text::gemv_own(FEW_SUBGROUPS, tier, &[&pairs, &text])
        };
        let (entry, text) = match self.kind {
            GroupedKind::Row => ("grouped_row", row_text(gated, tier)),
            GroupedKind::One => ("grouped_gemv", gemv(1)),
            GroupedKind::Eight => ("grouped_gemv", gemv(2)),
            GroupedKind::Any => (
                "grouped_any",
                matmul_text::gemv_own(ROWS, tier, &[GEMV_ANY]),
            ),
            GroupedKind::Tiles => (
                "grouped_tiles",
                matmul_text::tile_constants(tier, TILES) + &[OPERANDS, TILED].concat(),
            ),
            GroupedKind::Cooperative(_) => ("grouped_cooperative", cooperative.to_owned()),
        };
        own.push(match self.kind {
            GroupedKind::Any => GROUPED_ANY,
            GroupedKind::Tiles => GROUPED_TILES,
            _ => "",
        });
        let items = match self.kind {
            GroupedKind::Row => "",
            _ => GROUPED_ITEMS,
        };
        let shared = [NUMERIC, ELEMENT, OP, GROUPED_CALL, items].concat();
        let source = enabled.to_owned() + &flags + &shared + &text + &own.concat();
        let source = if tiled || self.kind == GroupedKind::Row {
            source
        } else {
            matmul_text::told_of_lanes(source, tier)
        };
        Shader {
            source,
            entry,
            constants,
            checked: false,
        }
    }
}

#[cfg(test)]
impl GroupedKernel {
    /// The kernel without cooperative matrices, of one that is on them.
    pub(crate) fn stand_in(self, tier: Tier) -> Option<Shader> {
        use super::cooperative::{STAND_IN, STANDING_IN};
        match self.kind {
            GroupedKind::Cooperative(tile) => {
                let text = tile.text_on(STAND_IN, STANDING_IN);
                Some(self.shader_of(tier, "enable f16;\n", &text))
            }
            _ => None,
        }
    }
}

/// The text of the kernel for one row.
fn row_text(gated: bool, tier: Tier) -> String {
    let reduce = match tier.sums {
        LaneSums::Subgroup => REDUCE_FOUR_SUBGROUP,
        LaneSums::AnySubgroup | LaneSums::Workgroup => REDUCE_FOUR_WORKGROUP,
    };
    let constants = [
        ("LANES", LANES),
        ("ROWS_OF", ROWS_OF),
        ("FEW_ROWS", FEW_ROWS),
        ("COLUMN_ROWS", 1 + u32::from(gated)),
    ];
    matmul_text::told(&constants) + &[OPERANDS, reduce, GROUPED_ROW].concat()
}

/// The text of a GEMV that leaves out rows which an item does not have.
fn only_present(gemv: &str) -> String {
    let line = |line: &str| match line.contains("grown.s#t +=") {
        true => format!("if #tu == 0u || #tu < present {{ {line} }}\n"),
        false => format!("{line}\n"),
    };
    gemv.lines().map(line).collect()
}

impl MoeKernel {
    /// All of them, by [`Self::index`] where they are not grouped matmuls.
    pub(crate) fn all(facts: &Facts) -> impl Iterator<Item = Self> + use<> {
        let others = [
            Self::Choose,
            Self::Sort,
            Self::Schedule,
            Self::Requantize { in_place: false },
            Self::Requantize { in_place: true },
            Self::Sum,
        ];
        others
            .into_iter()
            .chain(GroupedKernel::all(facts).map(Self::Grouped))
    }

    /// Its place among [`Self::PLACES`].
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Choose => 0,
            Self::Sort => 1,
            Self::Schedule => 2,
            Self::Requantize { in_place: false } => 3,
            Self::Requantize { in_place: true } => 4,
            Self::Sum => 5,
            Self::Grouped(kernel) => 6 + kernel.index(),
        }
    }

    pub(super) const PLACES: usize = 6 + GroupedKernel::PLACES;

    pub(super) fn shader(self, tier: Tier) -> Shader {
        let (entry, own) = match self {
            Self::Grouped(kernel) => return kernel.shader(tier),
            Self::Choose => ("choose_experts", [NUMERIC, ELEMENT, OP, CHOOSE].concat()),
            Self::Sort => ("sort_routes", SORT.to_owned()),
            Self::Schedule => ("schedule_rows", SCHEDULE.to_owned()),
            Self::Requantize { in_place } => {
                let from = if in_place {
                    REQUANTIZE_IN_PLACE
                } else {
                    REQUANTIZE_FROM
                };
                let shared = [NUMERIC, ELEMENT, OP, QUANT, SCALES];
                ("requantize", shared.concat() + REQUANTIZE + from)
            }
            Self::Sum => ("sum_routes", [NUMERIC, ELEMENT, OP, SUM].concat()),
        };
        Shader {
            source: WORKGROUP_TEXT.to_owned() + &own,
            entry,
            constants: Vec::new(),
            checked: true,
        }
    }
}

impl fmt::Display for MoeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Choose => f.write_str("choose_experts"),
            Self::Sort => f.write_str("sort_routes"),
            Self::Schedule => f.write_str("schedule_rows"),
            Self::Requantize { in_place: false } => f.write_str("requantize"),
            Self::Requantize { in_place: true } => f.write_str("requantize(in place)"),
            Self::Sum => f.write_str("sum_routes"),
            Self::Grouped(kernel) => write!(f, "{kernel}"),
        }
    }
}

impl fmt::Display for GroupedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { half, weight, kind } = self;
        let and = match half {
            Half::GateUp => " and activation",
            Half::Down => "",
        };
        let rows = kind.height();
        match kind {
            GroupedKind::Row => write!(f, "grouped_row(bf16 by {weight}{and})"),
            GroupedKind::One | GroupedKind::Eight => {
                write!(f, "grouped_gemv(bf16 by {weight}{and}, {rows} rows)")
            }
            GroupedKind::Any => write!(f, "grouped_any(by {weight}{and}, {rows} rows)"),
            GroupedKind::Tiles => {
                write!(f, "grouped_tiles({rows} x {rows}, bf16 by {weight}{and})")
            }
            GroupedKind::Cooperative(tile) => {
                let across = tile.shape().rows;
                write!(
                    f,
                    "grouped_cooperative({rows} x {across}, bf16 by {weight}{and})"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_a_place_of_its_own() {
        let mut places: Vec<_> = MoeKernel::all(&Facts::GPU).map(MoeKernel::index).collect();
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!((places.len(), count), (44, 44));
        assert!(places.iter().all(|&place| place < MoeKernel::PLACES));
    }

    #[test]
    fn every_term_of_a_row_that_may_be_missing_is_asked_for() {
        let text = only_present(include_str!("../shaders/gemv.wgsl"));
        let terms = text.matches("grown.s#t +=").count();
        assert_eq!((terms, text.matches("#tu < present").count()), (4, 4));
    }
}
