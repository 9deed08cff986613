use std::fmt;

use swiglu_core::{Accumulation, Float};

use super::input::Tiles;
use crate::simd::{self, LANES, MatrixUnit, tiles};
use crate::weight::{PackedShape, PanelFormat};
use crate::{InstructionSet, Settings};

/// Most rows that are multiplied at a time. This bounds the memory for their widened copy, and a
/// block of k of it stays in the second-level cache.
pub(super) const CHUNK: usize = 256;
/// Rows up to which a task reads its panels from end to end: their copy is in the cache anyhow.
pub(super) const LOW: usize = 32;
/// Most panels of a task, with few rows and with many: each block of k is read once for so many.
pub(super) const PANELS: [usize; 2] = [4, 8];
/// Rows up to which weights are decoded as they come, where products are of one k and of pairs.
const FEW: [usize; 2] = [4, 8];

/// When stored weights become f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeStep {
    /// As a GEMV over one tile of rows reads them, each once.
    Gemv,
    /// As the micro-kernel reads them, for every tile of rows again: where it is a shift and a mask.
    EachTile,
    /// A block at a time into the first-level cache, once for all tiles of rows.
    OnceABlock,
    /// Into bf16 for a matrix unit, a block at a time; bf16 is read as it is stored.
    Tiles,
}

/// What a backend was opened with, as far as plans depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resources {
    pub(crate) settings: Settings,
    pub(crate) set: InstructionSet,
    pub(crate) threads: usize,
    /// The least exact class of sums that may run.
    pub(crate) accumulation: Accumulation,
}

impl Resources {
    /// What matmuls may run on beside vectors.
    pub(crate) fn matrix_unit(&self) -> Option<MatrixUnit> {
        let may = self.accumulation >= Accumulation::MatrixUnit;
        self.set.matrix_unit().filter(|_| may)
    }
}

/// How a matmul runs: a function of its shape and types and of what the backend was opened with. Only
/// whether a matrix unit runs it changes results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatmulPlan {
    pub(crate) set: InstructionSet,
    /// Most rows of a micro-kernel's tile.
    pub(crate) mr: usize,
    /// Outputs of a micro-kernel's tile.
    pub(crate) nr: usize,
    /// Most rows of x that are multiplied at a time.
    pub(crate) chunk: usize,
    /// Panels of 16 outputs that a task takes.
    pub(crate) panels_per_task: usize,
    pub(crate) decode: DecodeStep,
    /// Whether products are dot products of pairs of bf16. Never with some rows and not with others.
    pub(crate) dots: bool,
    /// Threads that tasks may run on.
    pub(crate) threads: usize,
    /// Whether the caller's thread runs all tasks.
    pub(crate) inline: bool,
}

impl MatmulPlan {
    /// The plan for `rows` rows of x by this weight.
    pub(crate) fn new(resources: &Resources, rows: usize, x: Float, weight: &PackedShape) -> Self {
        let &Resources {
            ref settings,
            set,
            threads,
            ..
        } = resources;
        let unit = resources.matrix_unit().filter(|_| x == Float::BF16);
        let tiles = unit == Some(MatrixUnit::Tiles)
            && weight.fills_tiles()
            && rows
                >= match weight.format {
                    PanelFormat::E4M3 | PanelFormat::Fp4 => settings.matrix_unit_rows_fp8,
                    _ => settings.matrix_unit_rows,
                };
        let dots = unit == Some(MatrixUnit::Dots) && weight.fills_dots();
        let registers = simd::registers(set);
        // As equal chunks as there can be: the first may have one row more than the others.
        let chunks = Tiles::new(rows, CHUNK);
        let chunk = rows.div_ceil(chunks.count.max(1)).max(1);
        let decode = if tiles {
            DecodeStep::Tiles
        } else if !weight.blocks_are_groups() {
            DecodeStep::OnceABlock
        } else if rows <= gemv_rows(registers, 1 + usize::from(dots)) {
            DecodeStep::Gemv
        } else if weight.format == PanelFormat::BF16 && tile_panels(registers) == 2 {
            DecodeStep::EachTile
        } else {
            DecodeStep::OnceABlock
        };
        let side_by_side = match decode {
            DecodeStep::Gemv if weight.format == PanelFormat::Fp4 => {
                fp4_gemv_panels(registers, rows)
            }
            DecodeStep::Gemv => gemv_panels(registers, rows, weight.format == PanelFormat::E4M3),
            DecodeStep::EachTile | DecodeStep::OnceABlock => tile_panels(registers),
            DecodeStep::Tiles => tiles::SIDES,
        };
        let mr = match decode {
            DecodeStep::Tiles => tiles::SIDES * tiles::SIDE,
            DecodeStep::OnceABlock
                if weight.format == PanelFormat::Fp4 && registers.rows_of_fp4 > 0 =>
            {
                registers.rows_of_fp4
            }
            _ => registers.rows,
        };
        // In pairs, for a gate to have its up, and enough tasks for threads to share.
        // Chunks of rows are tasks of their own on a matrix unit.
        let tasks = if tiles && chunks.count > 1 { 2 } else { 4 };
        let share = weight.panels() / (tasks * threads.max(1));
        let most = PANELS[usize::from(chunk > LOW)];
        Self {
            set,
            mr,
            nr: side_by_side * LANES,
            chunk,
            panels_per_task: share.clamp(2, most) / 2 * 2,
            decode,
            dots,
            threads,
            inline: rows * weight.n * weight.k <= settings.inline_multiplications,
        }
    }
}

impl fmt::Display for MatmulPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, mr, nr, .. } = self;
        let products = match self.dots {
            true => "dot products of bf16, ",
            false => "",
        };
        let decode = match self.decode {
            DecodeStep::Gemv => "GEMV",
            DecodeStep::EachTile => "decoded for each tile",
            DecodeStep::OnceABlock => "decoded once a block",
            DecodeStep::Tiles => "tiles of the matrix unit",
        };
        let (chunk, panels) = (self.chunk, self.panels_per_task);
        write!(
            f,
            "{set} {mr} x {nr}, {products}{decode}, chunks of {chunk} rows, tasks of {panels} panels "
        )?;
        f.write_str(if self.inline {
            "on the caller's thread"
        } else {
            "in the pool"
        })
    }
}

/// Most rows of a GEMV whose products are of one k or of two.
pub(super) const fn gemv_rows(registers: simd::Registers, ks: usize) -> usize {
    let few = FEW[ks - 1];
    if few < registers.rows {
        few
    } else {
        registers.rows
    }
}

/// Panels that a GEMV's micro-kernel takes side by side for so many rows: as many as the sums leave
/// registers for. Decoding f8 takes registers too, which sums leave where there are many.
pub(super) const fn gemv_panels(registers: simd::Registers, rows: usize, is_f8: bool) -> usize {
    let simd::Registers {
        sums, rows: most, ..
    } = registers;
    let spare = sums >= 2 * most || !is_f8;
    if 4 * rows <= sums && spare {
        4
    } else if 2 * rows <= sums {
        2
    } else {
        1
    }
}

/// The same where the weight is FP4, which has totals beside the sums.
pub(super) const fn fp4_gemv_panels(registers: simd::Registers, rows: usize) -> usize {
    let simd::Registers { sums, .. } = registers;
    match sums / (2 * if rows == 0 { 1 } else { rows }) {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => 4,
    }
}

/// The same for tiles of MR rows.
pub(super) const fn tile_panels(registers: simd::Registers) -> usize {
    if 2 * registers.rows <= registers.sums {
        2
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use swiglu_core::{ScaleFormat, WeightFormat};

    use super::*;

    const BF16: WeightFormat = WeightFormat::Float(Float::BF16);
    const F16: WeightFormat = WeightFormat::Float(Float::F16);
    const F32: WeightFormat = WeightFormat::Float(Float::F32);
    const FP8: WeightFormat = WeightFormat::DEEPSEEK_V4;

    fn plan(set: InstructionSet, threads: usize, rows: usize, format: WeightFormat) -> MatmulPlan {
        let weight = PackedShape::new([4096, 4096], format, false).unwrap();
        MatmulPlan::new(&resources(set, threads), rows, Float::BF16, &weight)
    }

    fn resources(set: InstructionSet, threads: usize) -> Resources {
        Resources {
            settings: Settings::default(),
            set,
            threads,
            accumulation: Accumulation::MatrixUnit,
        }
    }

    #[test]
    fn without_an_instruction_set_a_tile_is_one_vector() {
        let one = plan(InstructionSet::Scalar, 2, 1, BF16);
        assert_eq!((one.mr, one.nr, one.decode), (1, 16, DecodeStep::Gemv));
        let two = plan(InstructionSet::Scalar, 2, 2, BF16);
        assert_eq!(
            (two.mr, two.nr, two.decode),
            (1, 16, DecodeStep::OnceABlock)
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn few_rows_are_a_gemv_and_bf16_is_decoded_on_the_way() {
        use InstructionSet::{Avx2, Avx512};
        let line = |set, rows, format| plan(set, 16, rows, format).to_string();
        let gemv = "avx512 8 x 64, GEMV, chunks of 1 rows, tasks of 4 panels in the pool";
        assert_eq!(line(Avx512, 1, FP8), gemv);
        assert!(line(Avx2, 1, FP8).starts_with("avx2 6 x 32, GEMV"));
        assert!(line(Avx2, 1, F16).starts_with("avx2 6 x 64, GEMV"));
        assert!(line(Avx512, 4, F32).starts_with("avx512 8 x 64, GEMV"));
        assert!(line(Avx512, 5, F32).starts_with("avx512 8 x 32, decoded once a block"));
        assert!(line(Avx512, 5, BF16).starts_with("avx512 8 x 32, decoded for each tile"));
        assert!(line(Avx2, 5, BF16).starts_with("avx2 6 x 16, decoded once a block"));
    }

    #[test]
    fn rows_come_in_equal_chunks_and_threads_share_the_panels() {
        let plan = |threads, rows| plan(InstructionSet::Scalar, threads, rows, F16);
        let chunks = [1, 256, 257, 300, 513].map(|t| plan(2, t).chunk);
        assert_eq!(chunks, [1, 256, 129, 150, 171]);
        let panels = |rows| [1, 8, 16, 32].map(|n| plan(n, rows).panels_per_task);
        assert_eq!(panels(4), [4, 4, 4, 2]);
        assert_eq!(panels(64), [8, 8, 4, 2]);
        let none = plan(2, 0);
        assert!(none.inline && none.chunk == 1);
    }

    #[test]
    fn blocks_that_cut_a_group_of_k_are_decoded_by_themselves_and_settings_decide() {
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [5, 7],
        };
        let weight = PackedShape::new([16, 16], format, false).unwrap();
        let mut with = resources(InstructionSet::Scalar, 2);
        let plan = |with: &Resources| MatmulPlan::new(with, 1, Float::F32, &weight);
        assert_eq!(plan(&with).decode, DecodeStep::OnceABlock);
        assert!(plan(&with).inline);
        with.settings.inline_multiplications = 255;
        assert!(!plan(&with).inline);
    }

    #[test]
    fn a_matrix_unit_takes_many_rows_of_bf16_unless_sums_are_to_be_ordered() {
        let set = InstructionSet::AmxEmulated;
        let many = plan(set, 16, 64, FP8);
        assert_eq!(
            many.to_string(),
            "amx-emulated 32 x 32, tiles of the matrix unit, chunks of 64 rows, tasks of 4 panels in \
             the pool"
        );
        let of = |with: &Resources, rows, x, format| {
            let weight = PackedShape::new([4096, 4096], format, false).unwrap();
            MatmulPlan::new(with, rows, x, &weight).decode == DecodeStep::Tiles
        };
        let mut with = resources(set, 16);
        let least = with.settings.matrix_unit_rows;
        assert!(of(&with, least, Float::BF16, BF16) && of(&with, 1024, Float::BF16, BF16));
        assert!(!of(&with, least - 1, Float::BF16, BF16));
        let least = with.settings.matrix_unit_rows_fp8;
        assert!(of(&with, least, Float::BF16, FP8) && !of(&with, least - 1, Float::BF16, FP8));
        assert!(!of(&with, 64, Float::F32, BF16) && !of(&with, 64, Float::F16, FP8));
        assert!(!of(&with, 64, Float::BF16, F32) && !of(&with, 64, Float::BF16, F16));
        let odd = WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [16, 48],
        };
        assert!(!of(&with, 64, Float::BF16, odd));
        with.accumulation = Accumulation::Ordered;
        assert!(!of(&with, 64, Float::BF16, BF16));
        with = resources(InstructionSet::Scalar, 16);
        assert!(!of(&with, 64, Float::BF16, BF16));
    }

    #[test]
    fn dot_products_take_every_number_of_rows_of_bf16_unless_sums_are_to_be_ordered() {
        let set = InstructionSet::Avx512Bf16Emulated;
        assert_eq!(
            plan(set, 16, 64, FP8).to_string(),
            "avx512-bf16-emulated 1 x 16, dot products of bf16, decoded once a block, chunks of 64 \
             rows, tasks of 4 panels in the pool"
        );
        let of = |with: &Resources, rows, x, format| {
            let weight = PackedShape::new([4096, 4096], format, false).unwrap();
            MatmulPlan::new(with, rows, x, &weight).dots
        };
        let mut with = resources(set, 16);
        let formats = [BF16, FP8, WeightFormat::Fp4];
        for rows in [1, 2, 3, 4, 5, 8, 9, 300] {
            assert!(formats.iter().all(|f| of(&with, rows, Float::BF16, *f)));
        }
        assert!(!of(&with, 64, Float::F32, BF16) && !of(&with, 64, Float::F16, FP8));
        assert!(!of(&with, 64, Float::BF16, F32) && !of(&with, 64, Float::BF16, F16));
        let block = |block| WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block,
        };
        assert!(of(&with, 64, Float::BF16, block([16, 12])));
        assert!(!of(&with, 64, Float::BF16, block([16, 10])));
        with.accumulation = Accumulation::Ordered;
        assert!(formats.iter().all(|f| !of(&with, 64, Float::BF16, *f)));
        with = resources(InstructionSet::AmxEmulated, 16);
        assert!(formats.iter().all(|f| !of(&with, 64, Float::BF16, *f)));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn dot_products_are_a_gemv_up_to_eight_rows_and_tiles_of_fp4_have_six() {
        let line = |rows, format| plan(InstructionSet::Avx512Bf16, 2, rows, format).to_string();
        assert!(line(8, FP8).starts_with("avx512-bf16 8 x 32, dot products of bf16, GEMV"));
        let tiles = "avx512-bf16 8 x 32, dot products of bf16, decoded for each tile";
        assert!(line(9, BF16).starts_with(tiles));
        let fp4 = "avx512-bf16 6 x 32, dot products of bf16, decoded once a block";
        assert!(line(9, WeightFormat::Fp4).starts_with(fp4));
    }
}
