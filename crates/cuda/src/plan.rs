//! A call cut into launches: how wide the accesses are, and which vectors each launch makes.

use swiglu_core::{DType, GatedActivation, Layout, Order};

use crate::{
    RawCall,
    params::{ActParams, Divisor},
    select::{Access, scalars},
};

/// Vectors of one launch: their numbers are divided in 32 bits, with room for a last block.
pub(crate) const MOST: u64 = (1 << 31) - 4096;

/// Addresses of the first gate and the first up, given the first row's and the bytes of a half.
pub(crate) const fn halves(op: &GatedActivation, row: u64, half: u64) -> (u64, u64) {
    match (op.layout(), op.order()) {
        (Layout::Interleaved, _) => (row, row),
        (Layout::Concatenated, Order::GateFirst) => (row, row + half),
        (Layout::Concatenated, Order::UpFirst) => (row + half, row),
    }
}

fn halves_of(op: &GatedActivation, call: &RawCall) -> (u64, u64) {
    let size = call.dtype.size() as u64;
    let row = call.input + call.input_layout.offset as u64 * size;
    halves(op, row, call.output_layout.cols as u64 * size)
}

fn output(call: &RawCall) -> u64 {
    call.output + (call.output_layout.offset * call.dtype.size()) as u64
}

/// The widest access of `widths`, given widest first, that every address of the call allows.
pub(crate) fn access(op: &GatedActivation, call: &RawCall, widths: &[Access]) -> Access {
    let d = call.output_layout.cols;
    let (gate, up) = halves_of(op, call);
    let size = call.dtype.size();
    let mut all = gate | up | output(call) | (d * size) as u64;
    if call.output_layout.rows > 1 {
        all |= (call.input_layout.stride * size) as u64;
        all |= (call.output_layout.stride * size) as u64;
    }
    let fits = |a: &&Access| all.is_multiple_of((a.lanes(call.dtype) * size) as u64);
    widths.iter().find(fits).copied().unwrap_or(Access::Any)
}

/// Calls `launch` with the parameters of each launch. The call has been checked.
pub(crate) fn launches<E>(
    op: &GatedActivation,
    call: &RawCall,
    access: Access,
    mut launch: impl FnMut(&ActParams) -> Result<(), E>,
) -> Result<(), E> {
    let lanes = access.lanes(call.dtype) as u64;
    let (rows, d) = (
        call.output_layout.rows as u64,
        call.output_layout.cols as u64,
    );
    let (gate, up) = halves_of(op, call);
    let size = call.dtype.size() as u64;
    let halves_apart = if op.layout() == Layout::Interleaved {
        2
    } else {
        1
    };
    let (input_stride, output_stride) = (
        call.input_layout.stride as u64,
        call.output_layout.stride as u64,
    );
    let batch_rows = call.batches.map_or(1, |b| b.rows) as u32;
    let mut column = 0;
    while column < d {
        let columns = (d - column).min((MOST - 1) * lanes);
        // Where rows begin anywhere, the first and the last vector may be parts of one.
        let row_vectors = match access {
            Access::Any => (columns + 2 * (lanes - 1)) / lanes,
            Access::Bytes16 | Access::Bytes32 => columns / lanes,
        };
        let most_rows = (MOST / row_vectors).max(1);
        let along = column * size;
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(most_rows);
            let input = row * input_stride * size + along * halves_apart;
            launch(&ActParams {
                gate: gate + input,
                up: up + input,
                output: output(call) + row * output_stride * size + along,
                counts: call.batches.map_or(0, |b| b.counts),
                input_stride,
                output_stride,
                d: columns,
                vectors: (count * row_vectors) as u32,
                row_vectors: row_vectors as u32,
                by_row: Divisor::new(row_vectors as u32),
                batch_rows,
                first_row: row as u32,
                by_batch: Divisor::new(batch_rows),
                scalars: scalars(op),
            })?;
            row += count;
        }
        column += columns;
    }
    Ok(())
}

/// Whether the types' sizes divide the address, which the hardware demands.
pub(crate) const fn aligned(address: u64, dtype: DType) -> bool {
    address.is_multiple_of(dtype.size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::RowLayout;

    fn call(rows: usize, d: usize) -> RawCall {
        RawCall {
            dtype: DType::BF16,
            input: 0x1000,
            input_layout: RowLayout::contiguous(rows, 2 * d),
            output: 0x2000,
            output_layout: RowLayout::contiguous(rows, d),
            batches: None,
        }
    }

    #[test]
    fn accesses_are_as_wide_as_every_address_allows() {
        let op = GatedActivation::silu_and_mul();
        let widths = [Access::Bytes32, Access::Bytes16];
        let wide = |c: RawCall| access(&op, &c, &widths);
        assert_eq!(wide(call(3, 16)), Access::Bytes32);
        assert_eq!(wide(call(3, 24)), Access::Bytes16);
        assert_eq!(wide(call(3, 12)), Access::Any);
        assert_eq!(
            wide(RawCall {
                input: 0x1002,
                ..call(3, 16)
            }),
            Access::Any
        );
        let padded = RowLayout::contiguous(3, 16).with_stride(20);
        assert_eq!(
            wide(RawCall {
                output_layout: padded,
                ..call(3, 16)
            }),
            Access::Any
        );
    }

    #[test]
    fn large_calls_are_cut_into_launches_that_cover_them() {
        let op = GatedActivation::silu_and_mul();
        for (rows, d) in [(3, 1 << 30), (1 << 33, 1), (1, 1 << 34), (70_000, 70_000)] {
            for access in [Access::Any, Access::Bytes16] {
                if access == Access::Bytes16 && d % 8 != 0 {
                    continue;
                }
                let (mut outputs, mut end, mut most) = (0, 0, 0);
                launches(&op, &call(rows, d), access, |p| {
                    let rows = u64::from(p.vectors / p.row_vectors);
                    outputs += rows * p.d;
                    end = p.output - 0x2000 + 2 * ((rows - 1) * d as u64 + p.d);
                    most = most.max(p.vectors);
                    // A row of vectors that begins one element before a multiple of 16 bytes.
                    assert!(8 * u64::from(p.row_vectors) >= p.d);
                    assert!(access != Access::Any || 8 * u64::from(p.row_vectors) >= p.d + 7);
                    Ok::<(), ()>(())
                })
                .unwrap();
                assert_eq!(outputs, rows as u64 * d as u64);
                assert_eq!(end, 2 * outputs);
                assert!(most < 1 << 31);
            }
        }
    }
}
