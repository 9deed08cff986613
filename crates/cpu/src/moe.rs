//! A layer of routed experts: the choice, the two halves of the experts, and the sum.
//!
//! ## Method
//! 1. The router's logits are a matmul to f32 in scratch memory; tokens are then chosen for in
//!    parallel, and routes sorted by expert by counting.
//! 2. [`Rows`] says which rows each expert has. All matmuls of a half are one
//!    ([`crate::matmul::multiply_groups`]), which reads an expert's weights once for all of its rows.
//!    Experts without rows are not looked at.
//! 3. Gate and up are rounded to bf16, and the activation takes the route's weight with it before its
//!    one rounding.
//! 4. The second half's outputs are rounded to bf16 at their rows; [`sum`] adds up those of a token,
//!    experts ascending, in f32.

use std::ops::Range;

use swiglu_core::{
    Element, Float, HostRouter, Request, RowLayout, Shape, Token, bf16, sort_by_expert, with_float,
};

use crate::tasks::{self, Shared};

/// Logits, or sums, that take about as long as waking a pool does.
const INLINE: usize = 4 * 1024;

/// The parts of a call's scratch memory, in bytes, one after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// Logits \[T, E\] in f32, or the outputs of experts \[T · k, H\] in bf16.
    pub(crate) results: usize,
    /// Rows of x that were quantized and widened, \[T, H\] in bf16.
    pub(crate) widened: usize,
    /// Codes of x or of act.
    pub(crate) codes: usize,
    /// Their scales.
    pub(crate) scales: usize,
}

/// Parts begin at whole cache lines.
const LINE: usize = 64;

fn bytes(rows: usize, cols: usize, size: usize) -> usize {
    rows.saturating_mul(cols)
        .saturating_mul(size)
        .checked_next_multiple_of(LINE)
        .unwrap_or(usize::MAX)
}

impl Scratch {
    /// What a call takes.
    pub(crate) fn of(request: &Request, shape: &Shape) -> Self {
        let &Shape { rows, cols, depth } = shape;
        match request {
            Request::Route { .. } => Self {
                results: bytes(rows, cols, 4),
                ..Self::default()
            },
            Request::GroupedGatedMatmul { quant, routing, .. } => {
                let routes = rows.saturating_mul(routing.top_k());
                let mut scratch = Self::default();
                if let Some(quant) = quant {
                    let act = cols / 2;
                    let codes = |rows, cols| bytes(rows, cols, 1);
                    let scales =
                        |rows, cols| bytes(rows, quant.groups(cols), quant.format().size());
                    scratch.widened = bytes(rows, depth, 2);
                    scratch.codes = codes(rows, depth).max(codes(routes, act));
                    scratch.scales = scales(rows, depth).max(scales(routes, act));
                }
                scratch
            }
            Request::GroupedMatmulSum { routing, .. } => Self {
                results: bytes(rows.saturating_mul(routing.top_k()), cols, 2),
                ..Self::default()
            },
            _ => Self::default(),
        }
    }

    /// All parts together, with room to begin the first at a whole line.
    pub(crate) fn bytes(&self) -> usize {
        let parts = self.parts().into_iter();
        match parts.fold(0_usize, usize::saturating_add) {
            0 => 0,
            all => all.saturating_add(LINE),
        }
    }

    const fn parts(&self) -> [usize; 4] {
        [self.results, self.widened, self.codes, self.scales]
    }

    /// The parts of memory that has [`Self::bytes`], in the fields' order.
    pub(crate) fn split<'a>(&self, memory: &'a mut [u8]) -> [&'a mut [u8]; 4] {
        let lead = memory.as_ptr().align_offset(LINE).min(memory.len());
        let mut rest = &mut memory[lead..];
        self.parts().map(|bytes| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = behind;
            part
        })
    }
}

/// Which rows are whose: [`swiglu_core::Routes`] on host memory.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) offsets: &'a [i32],
    pub(crate) sorted: &'a [i32],
    pub(crate) of_tokens: &'a [i32],
    pub(crate) top_k: usize,
}

impl Rows<'_> {
    /// The rows of some experts.
    pub(crate) fn of(&self, experts: &Range<usize>) -> Range<usize> {
        self.offsets[experts.start] as usize..self.offsets[experts.end] as usize
    }

    /// The touched experts of a range, by their place in it, each with its rows.
    pub(crate) fn touched(
        &self,
        experts: &Range<usize>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> {
        let first = experts.start;
        let each = experts
            .clone()
            .map(move |e| (e - first, self.of(&(e..e + 1))));
        each.filter(|(_, rows)| !rows.is_empty())
    }
}

/// The sums of tokens: what their experts gave, `outputs` \[rows, H\] from row `own.start` on, and
/// `shared`, to y.
pub(crate) fn sum<Y: Element>(
    rows: &Rows<'_>,
    own: &Range<usize>,
    outputs: &[bf16],
    shared: Option<(&[u8], Float, &RowLayout)>,
    (y, layout): (&mut [Y], &RowLayout),
) {
    /// Columns that are summed at a time: they stay in the first-level cache.
    const COLUMNS: usize = 512;
    let h = layout.cols;
    let parts = h.div_ceil(COLUMNS);
    let y = Shared(y.as_mut_ptr());
    let inline = layout.rows * h * rows.top_k <= INLINE;
    tasks::for_each(layout.rows * parts, inline, &|task| {
        let (token, start) = (task / parts, task % parts * COLUMNS);
        let columns = start..h.min(start + COLUMNS);
        let mut sums = [0.0_f32; COLUMNS];
        let sums = &mut sums[..columns.len()];
        let of_token = &rows.of_tokens[token * rows.top_k..][..rows.top_k];
        let of_token = of_token.iter().filter_map(|&row| usize::try_from(row).ok());
        for row in of_token.filter(|row| own.contains(row)) {
            let o = &outputs[(row - own.start) * h..][columns.clone()];
            add(sums, o);
        }
        if let Some((bytes, float, layout)) = shared {
            with_float!(float, T => {
                let shared: &[T] = bytemuck::cast_slice(bytes);
                add(sums, &shared[layout.row(token)][columns.clone()]);
            });
        }
        for (j, &sum) in columns.zip(&*sums) {
            // SAFETY: the layout was checked, and the columns are this task's own.
            unsafe {
                y.get()
                    .add(layout.row(token).start + j)
                    .write(Y::from_f32(sum))
            };
        }
    });
}

fn add<T: Element>(sums: &mut [f32], terms: &[T]) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum += term.to_f32();
    }
}

/// Lets tokens, of which ids and marks may be given, choose by logits \[T, E\], and sorts their
/// routes.
pub(crate) fn choose(
    router: &HostRouter<'_>,
    logits: &mut [f32],
    [ids_of_tokens, image, padding]: [Option<&[u8]>; 3],
    [ids, weights, offsets, sorted, rows]: [&mut [u8]; 5],
) {
    let (experts, k) = (router.routing.experts(), router.routing.top_k());
    let count = logits.len() / experts;
    let word = |view: Option<&[u8]>, t: usize| {
        view.map_or(0, |view| i32::from_le_bytes(view.as_chunks().0[t]))
    };
    let ids: &mut [i32] = &mut bytemuck::cast_slice_mut(ids)[..count * k];
    let weights: &mut [f32] = &mut bytemuck::cast_slice_mut(weights)[..count * k];
    let inline = logits.len() <= INLINE;
    let logits = Shared(logits.as_mut_ptr());
    let (to_ids, to_weights) = (Shared(ids.as_mut_ptr()), Shared(weights.as_mut_ptr()));
    tasks::for_each(count, inline, &|t| {
        let token = Token {
            id: word(ids_of_tokens, t),
            image: word(image, t) != 0,
            padding: word(padding, t) != 0,
        };
        // SAFETY: each token has its own rows of the three, within their slices.
        let (logits, ids, weights) = unsafe {
            (
                std::slice::from_raw_parts_mut(logits.get().add(t * experts), experts),
                std::slice::from_raw_parts_mut(to_ids.get().add(t * k), k),
                std::slice::from_raw_parts_mut(to_weights.get().add(t * k), k),
            )
        };
        router.route(logits, token, ids, weights);
    });
    sort_by_expert(
        k,
        ids,
        &mut bytemuck::cast_slice_mut(offsets)[..experts + 1],
        &mut bytemuck::cast_slice_mut(sorted)[..count * k],
        &mut bytemuck::cast_slice_mut(rows)[..count * k],
    );
}
