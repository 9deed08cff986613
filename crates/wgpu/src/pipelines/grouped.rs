//! The matmuls of many experts: what each takes, and how much of its outputs a workgroup makes.

use std::fmt;

use swiglu_core::Float;

use super::grouped_cooperative::GroupedTile;
use super::matmul::{DeviceFormat, LANES, ROWS, TileKind};
use crate::device::Facts;

/// Subgroups of a workgroup that multiplies few rows, and the pairs of rows of the weight that it takes.
pub(super) const FEW_SUBGROUPS: u32 = 8;
pub(super) const FEW_PAIRS: u32 = 32;

/// Subgroups of a workgroup that multiplies one row, and the rows of the weight that those which share one take.
const ROW_SUBGROUPS: u32 = 4;
pub(super) const ROWS_OF: u32 = 32;

/// They take half as many where there would be fewer workgroups: then all of a large device has some.
const LEAST_WORKGROUPS: u32 = 768;

/// Buffers of experts that it binds at most: a layer of V4-Pro has as many.
pub(super) const MOST_EXPERT_BUFFERS: u32 = 4;

/// Buffers of experts that it binds where a kernel has so many storage buffers. Each is one of codes and one of scales;
/// there are five others.
pub(crate) const fn expert_buffers(storage_buffers: u32) -> u32 {
    let fit = storage_buffers.saturating_sub(5) / 2;
    if fit == 0 {
        1
    } else if fit < MOST_EXPERT_BUFFERS {
        fit
    } else {
        MOST_EXPERT_BUFFERS
    }
}

/// Bytes of its memory: the sums of lanes, of rows and what is stored, and the row that it takes.
pub(super) const ROW_BYTES: u32 = ROW_SUBGROUPS * (LANES * 16 + ROWS_OF * 8) + 16;

/// Tiles of grouped matmuls.
pub(super) const TILES: TileKind = TileKind::Small { aligned: true };

/// Rows of a tile.
const GROUPED_TILE: u32 = TILES.side();

/// How a workgroup that takes one row has the rows of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowShare {
    /// Subgroups that share a row of the weight.
    parts: u32,
    /// Rows that those take.
    pub(crate) rows_of: u32,
}

impl RowShare {
    /// Where rows are of so many vectors, and all workgroups have so many of them.
    pub(crate) const fn new(row_vectors: u32, all: u64) -> Self {
        // As the shader has it.
        let parts = if row_vectors > 2 * LANES {
            4
        } else if row_vectors > LANES {
            2
        } else {
            1
        };
        let most = Self {
            parts,
            rows_of: ROWS_OF,
        };
        if all < most.rows() as u64 * LEAST_WORKGROUPS as u64 {
            return Self {
                parts,
                rows_of: ROWS_OF / 2,
            };
        }
        most
    }

    /// The rows of a workgroup.
    const fn rows(self) -> u32 {
        ROW_SUBGROUPS / self.parts * self.rows_of
    }
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
    pub(super) const fn index(self) -> usize {
        let kinds = GroupedKind::ALL.len();
        (self.half as usize * DeviceFormat::ALL.len() + self.weight as usize) * kinds
            + self.kind.place()
    }

    pub(super) const PLACES: usize = 2 * DeviceFormat::ALL.len() * GroupedKind::ALL.len();

    /// Columns of its results that a workgroup makes; one that takes one row has these of the weight.
    pub(crate) const fn outputs(self, one_row: RowShare) -> u32 {
        let rows = match self.kind {
            GroupedKind::Row => one_row.rows(),
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
