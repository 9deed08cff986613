use std::fmt;

use swiglu_core::{
    Batch, E4M3, Element, Float, GateUp, GatedActivation, QuantOptions, Quantization, Quantize,
    QuantizedMut, RowLayout, ScaleLayout, ScaleOrder,
};

use crate::compare::halves_of_rows;
use crate::harness::{scatter, tensor};
use crate::{Failure, Harness};

/// What outputs hold before a call: a NaN neither as a code nor as an E8M0.
pub(crate) const POISON: u8 = 0xa5;

/// Bytes behind the codes and the scales that must stay as they are.
const CANARY: usize = 24;

/// What the counters of hits hold before a call, which adds to them and wraps around.
const HITS: [u32; 3] = [1, 20, u32::MAX];

/// One quantization: of what an activation gives, or of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct QuantCase<'a> {
    /// None: the input is quantized as it is.
    pub op: Option<&'a GatedActivation>,
    /// How.
    pub quant: Quantization,
    /// How the scales lie.
    pub order: ScaleOrder,
    /// T.
    pub rows: usize,
    /// Codes in a row.
    pub d: usize,
    /// Elements between rows of the input and of the codes, and scales between lines of scales.
    pub gap: usize,
    /// Elements before the first row of the input and of the codes.
    pub offset: usize,
    /// What multiplies each row before it is rounded.
    pub route: Option<&'a [f32]>,
    /// Rows of each batch, and how many of them are in use.
    pub batch: Option<(usize, &'a [i32])>,
    /// Whether the hits of the clamp are counted.
    pub hits: bool,
    /// Whether gate and up are two matrices, the ups' rows further apart than the gates'.
    pub split: bool,
}

/// The buffers after a call, with all that lies around the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The codes, and behind them bytes that are not theirs.
    pub codes: Vec<u8>,
    /// The scales' bytes, and behind them others.
    pub scales: Vec<u8>,
    /// gate > L, up > L and up < -L.
    pub hits: [u32; 3],
}

impl<'a> QuantCase<'a> {
    /// Rows without gaps, all of them in use, and no options.
    pub const fn new(
        op: Option<&'a GatedActivation>,
        (quant, order): (Quantization, ScaleOrder),
        rows: usize,
        d: usize,
    ) -> Self {
        Self {
            op,
            quant,
            order,
            rows,
            d,
            gap: 0,
            offset: 0,
            route: None,
            batch: None,
            hits: false,
            split: false,
        }
    }

    /// Where the codes lie.
    pub const fn codes(&self) -> RowLayout {
        RowLayout::contiguous(self.rows, self.d)
            .with_stride(self.d + self.gap)
            .with_offset(self.offset)
    }

    /// Where the scales lie.
    pub const fn scales(&self) -> ScaleLayout {
        let groups = self.quant.groups(self.d);
        let tight = ScaleLayout::contiguous(self.quant.format(), self.order, self.rows, groups);
        tight.with_stride(tight.stride + self.gap)
    }

    /// The buffers before a call.
    pub(crate) fn before(&self) -> Result<Outcome, Failure> {
        Ok(Outcome {
            codes: vec![POISON; self.codes().end("codes")? + CANARY],
            scales: vec![POISON; self.scales().bytes()? + CANARY],
            hits: HITS,
        })
    }

    /// The input's matrices: its rows as they are, or their gates and their ups.
    fn matrices<T: Element>(&self, rows: &[T]) -> Vec<(RowLayout, Vec<T>)> {
        let lies = |cols: usize, gap: usize| {
            RowLayout::contiguous(self.rows, cols)
                .with_stride(cols + gap)
                .with_offset(self.offset)
        };
        match (self.op, self.split) {
            (Some(op), true) => {
                let [gates, ups] = halves_of_rows(op, rows, self.d);
                let (gate, up) = (lies(self.d, self.gap), lies(self.d, self.gap + 16));
                vec![(gate, gates), (up, ups)]
            }
            (Some(_), false) => vec![(lies(2 * self.d, self.gap), rows.to_vec())],
            (None, _) => vec![(lies(self.d, self.gap), rows.to_vec())],
        }
    }

    /// Runs the case on rows that are given one after another, with NaN between them.
    ///
    /// # Errors
    /// A failure of the backend.
    pub fn run<T: Element, B: Quantize>(
        &self,
        h: &Harness<B>,
        rows: &[T],
    ) -> Result<Outcome, Failure> {
        let matrices = self.matrices(rows).into_iter();
        let matrices = matrices
            .map(|(layout, rows)| Ok((layout, h.upload(&scatter(&layout, &rows)?)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let before = self.before()?;
        let mut codes = h.upload_bytes(&before.codes)?;
        let mut scales = h.upload_bytes(&before.scales)?;
        let mut hits = h.upload_bytes(bytemuck::cast_slice(&before.hits))?;
        let route = self.route.map(|r| h.upload(r)).transpose()?;
        let counts = self
            .batch
            .map(|b| h.upload_bytes(bytemuck::cast_slice(b.1)));
        let counts = counts.transpose()?;
        let (layout, x) = &matrices[0];
        let first = tensor::<B, T>(x, *layout);
        let output = QuantizedMut {
            codes: B::view_mut(&mut codes),
            layout: self.codes(),
            scales: B::view_mut(&mut scales),
            scale_layout: self.scales(),
        };
        match self.op {
            None => h.backend.quantize(&self.quant, first, output)?,
            Some(op) => {
                let input = match matrices.get(1) {
                    None => first.into(),
                    Some((layout, ups)) => GateUp::Split {
                        gate: first,
                        up: tensor::<B, T>(ups, *layout),
                    },
                };
                let batch = self.batch.zip(counts.as_ref());
                let options = QuantOptions {
                    route: route.as_ref().map(B::view),
                    batch: batch.map(|((rows, _), counts)| Batch {
                        rows,
                        counts: B::view(counts),
                    }),
                    hits: self.hits.then(|| B::view_mut(&mut hits)),
                };
                h.backend
                    .act_and_mul_quant(op, &self.quant, input, output, options)?;
            }
        }
        let hits = h.download_bytes(&hits, 12)?;
        let hits: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&hits);
        Ok(Outcome {
            codes: h.download_bytes(&codes, before.codes.len())?,
            scales: h.download_bytes(&scales, before.scales.len())?,
            hits: [hits[0], hits[1], hits[2]],
        })
    }

    /// Compares two outcomes of the case, on an input of this type; `what` says which they are.
    ///
    /// # Errors
    /// The first byte in which they differ.
    pub fn same(
        &self,
        float: Float,
        got: &Outcome,
        want: &Outcome,
        what: impl fmt::Display,
    ) -> Result<(), Failure> {
        let fail = |text: String| Err(Failure::new(format!("{what}: {self} of {float}: {text}")));
        let differs = |a: &[u8], b: &[u8]| a.iter().zip(b).position(|(a, b)| a != b);
        if let Some(at) = differs(&got.codes, &want.codes) {
            let codes = self.codes();
            let row = (0..self.rows).find(|&t| codes.row(t).contains(&at));
            let place = match row {
                Some(t) => format!("code [{t}, {}]", at - codes.row(t).start),
                None => format!("byte {at}, which is outside of the rows"),
            };
            let (got, want) = (E4M3(got.codes[at]), E4M3(want.codes[at]));
            return fail(format!("{place} is {got:?}, expected {want:?}"));
        }
        if let Some(at) = differs(&got.scales, &want.scales) {
            let layout = self.scales();
            let size = layout.format.size();
            let mut places = (0..self.rows).flat_map(|t| (0..layout.groups).map(move |g| (t, g)));
            let place = match places.find(|&(t, g)| layout.position(t, g) == at / size) {
                Some((t, g)) => format!("scale [{t}, {g}]"),
                None => "no scale's".to_owned(),
            };
            let word = |bytes: &[u8]| bytes[at / size * size..][..size].to_vec();
            let (got, want) = (word(&got.scales), word(&want.scales));
            return fail(format!(
                "{place} bytes are {got:02x?}, expected {want:02x?}"
            ));
        }
        if got.hits != want.hits {
            let (got, want) = (got.hits, want.hits);
            return fail(format!("the counters are {got:?}, expected {want:?}"));
        }
        Ok(())
    }
}

impl fmt::Display for QuantCase<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(op) = self.op {
            write!(f, "{op} to ")?;
        }
        let Self {
            quant,
            order,
            rows,
            d,
            gap,
            offset,
            ..
        } = self;
        write!(
            f,
            "{quant} {order}, [{rows}, {d}], gap {gap}, offset {offset}"
        )?;
        if self.split {
            f.write_str(", gate and up apart")?;
        }
        if let Some((rows, counts)) = self.batch {
            write!(f, ", {counts:?} of {rows} rows in use")?;
        }
        Ok(())
    }
}
