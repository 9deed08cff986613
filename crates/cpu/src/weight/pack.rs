//! Packing: a panel is the transpose of its outputs' rows, in units.

use rayon::prelude::*;
use swiglu_core::HostWeight;

use super::transpose::{LINE, Transpose};
use super::{PackedWeight, PanelFormat, Scales, fp4, panel_bytes};
use crate::InstructionSet;
use crate::buffer::PageBuffer;
use crate::simd::{self, LANES};

pub(super) struct Packed {
    pub(super) panels: PageBuffer,
    /// Where f8 codes are NaN: panel, lane and block of scales.
    pub(super) nans: Vec<[usize; 3]>,
    /// The least and the highest byte of FP4's scales.
    pub(super) fp4_scales: [u8; 2],
}

pub(super) fn panels(weight: &PackedWeight, parts: &[HostWeight<'_>]) -> Packed {
    let bytes = panel_bytes(weight.shape.k, weight.shape.format);
    let mut panels = PageBuffer::zeroed(weight.shape.panels() * bytes);
    let each = panels.as_mut_slice().par_chunks_mut(bytes).enumerate();
    if weight.shape.format == PanelFormat::Fp4 {
        let ranges = each.map(|(p, panel)| {
            let place = |output| {
                let (part, row) = place(parts, output);
                (&parts[part], row)
            };
            let rows: Vec<_> = weight.outputs(p).map(place).collect();
            fp4::pack(&rows, panel)
        });
        let wider = |a: [u8; 2], b: [u8; 2]| [a[0].min(b[0]), a[1].max(b[1])];
        return Packed {
            fp4_scales: ranges.reduce(|| [u8::MAX, 0], wider),
            nans: Vec::new(),
            panels,
        };
    }
    // Any set gives the same bits.
    let set = InstructionSet::detect();
    let nans = each.flat_map_iter(|(p, panel)| {
        let rows: Vec<_> = weight.outputs(p).map(|n| row(parts, n)).collect();
        let holds_nan = match weight.shape.format {
            PanelFormat::F16 => {
                transpose::<2>(&rows, 0, panel);
                false
            }
            PanelFormat::F32 | PanelFormat::BF16 | PanelFormat::E4M3 | PanelFormat::Fp4 => {
                words(set, &rows, panel)
            }
        };
        let block = parts[0].format().scaling().map(|(_, [_, block])| block);
        let block = block.filter(|_| holds_nan);
        block.map_or_else(Vec::new, |block| nans(&rows, p, block))
    });
    Packed {
        nans: nans.collect(),
        fp4_scales: [0; 2],
        panels,
    }
}

/// The part that makes an output, and the row in it. Outputs are those of the parts.
fn place(parts: &[HostWeight<'_>], output: usize) -> (usize, usize) {
    let (mut part, mut row) = (0, output);
    while row >= parts[part].rows() {
        row -= parts[part].rows();
        part += 1;
    }
    (part, row)
}

/// The bytes that make an output.
fn row<'a>(parts: &'a [HostWeight<'_>], output: usize) -> &'a [u8] {
    let (part, row) = place(parts, output);
    let part = &parts[part];
    let bytes = part.format().row_bytes(part.cols());
    &part.data()[row * bytes..][..bytes]
}

/// Writes words of a panel's rows side by side. Whether a byte among them may be 0x7f or 0xff.
fn words(set: InstructionSet, rows: &[&[u8]], panel: &mut [u8]) -> bool {
    let Ok(rows) = rows.try_into() else {
        // The last panel's outputs are fewer.
        transpose::<4>(rows, 0, panel);
        return true;
    };
    let whole = Transpose { rows, panel };
    let done = whole.lines();
    // SAFETY: the set was found on this machine.
    let found = unsafe { simd::dispatch(set, whole) };
    transpose::<4>(&rows, done, panel);
    found || rows.iter().any(|row| holds_nan(&row[done * LINE..]))
}

/// Writes units of U bytes of at most [`LANES`] rows side by side, from one of the rows' lines on.
fn transpose<const U: usize>(rows: &[&[u8]], first: usize, panel: &mut [u8]) {
    let (units, _) = panel.as_chunks_mut::<U>();
    let of_lines = units.chunks_mut(LINE / U * LANES).enumerate();
    for (i, units) in of_lines.skip(first) {
        for (lane, row) in rows.iter().enumerate() {
            let line = &row[(i * LINE).min(row.len())..((i + 1) * LINE).min(row.len())];
            let (whole, rest) = line.as_chunks::<U>();
            let column = units[lane..].iter_mut().step_by(LANES);
            for (to, from) in column.zip(whole) {
                *to = *from;
            }
            if !rest.is_empty() {
                units[whole.len() * LANES + lane][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

/// Whether a code is NaN: 0x7f is the largest magnitude.
fn holds_nan(codes: &[u8]) -> bool {
    codes.iter().fold(0, |m, c| m.max(c & 0x7f)) == 0x7f
}

/// The blocks of scales of a panel's rows that hold a code which is NaN.
fn nans(rows: &[&[u8]], panel: usize, block: usize) -> Vec<[usize; 3]> {
    let mut found = Vec::new();
    for (lane, row) in rows.iter().enumerate().filter(|(_, row)| holds_nan(row)) {
        let blocks = row.chunks(block).enumerate();
        found.extend(
            blocks
                .filter(|(_, b)| holds_nan(b))
                .map(|(b, _)| [panel, lane, b]),
        );
    }
    found
}

/// Whether a scale times any code is a normal number of bf16, or it is no number at all.
fn folds(scale: f32) -> bool {
    let is_power = scale.to_bits() & ((1 << 23) - 1) == 0;
    scale.is_nan() || is_power && (2f32.powi(-100)..=2f32.powi(7)).contains(&scale)
}

/// The scales, and NaN for every block of an output's that holds a NaN. Such an output is NaN
/// whatever it is multiplied with, so that decoding need not know of NaN.
pub(super) fn scales(
    weight: &PackedWeight,
    parts: &[HostWeight<'_>],
    nans: &[[usize; 3]],
) -> Option<Scales> {
    let (_, [height, block]) = parts[0].format().scaling()?;
    let blocks = weight.shape.k.div_ceil(block);
    let of = |output, b| {
        let (part, row) = place(parts, output);
        parts[part].scale(row, b * block)
    };
    let same = |panel| {
        let outputs = weight.outputs(panel);
        let [first, last] = [outputs.start, outputs.end - 1].map(|n| place(parts, n));
        (first.0, first.1 / height) == (last.0, last.1 / height)
    };
    let uniform = (0..weight.shape.panels()).all(same);
    let width = if uniform { 1 } else { LANES };
    let mut values = Vec::with_capacity(weight.shape.panels() * blocks * width);
    for outputs in (0..weight.shape.panels()).map(|p| weight.outputs(p)) {
        for b in 0..blocks {
            let lanes = (0..width).map(|lane| of((outputs.start + lane).min(outputs.end - 1), b));
            values.extend(lanes);
        }
    }
    let mut scales = Scales {
        block,
        width,
        fold: values.iter().copied().all(folds),
        values,
        nans: Vec::new(),
    };
    if uniform && !nans.is_empty() {
        scales.nans.resize(scales.values.len(), 0);
    }
    for &[panel, lane, b] in nans {
        let at = scales.place(weight.shape.k, panel, b);
        if uniform {
            scales.nans[at] |= 1 << lane;
        } else {
            scales.values[at * LANES + lane] = f32::NAN;
        }
    }
    Some(scales)
}
