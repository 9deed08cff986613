use std::mem::offset_of;

use super::*;

/// Compares a struct with the assertions that its twin's source makes when it is compiled.
macro_rules! twin {
    ($source:literal, $twin:ident, $size:literal, { $($field:ident: $at:literal,)* }) => {{
        // Every field is named.
        let _ = |twin: $twin| {
            let $twin { $($field: _),* } = twin;
        };
        let source = include_str!(concat!("../../../kernels/", $source));
        let stated = |text: String| assert!(source.contains(&text), "{}: {text}", $source);
        assert_eq!(size_of::<$twin>(), $size);
        stated(format!("TWIN_SIZE({}, {});", stringify!($twin), $size));
        $(
            assert_eq!(offset_of!($twin, $field), $at, stringify!($field));
            let (twin, field) = (stringify!($twin), stringify!($field));
            stated(format!("TWIN_FIELD({twin}, {field}, {});", $at));
        )*
    }};
}

#[test]
fn parameters_lie_where_the_kernels_read_them() {
    twin!("common/memory.cuh", Divisor, 8, { multiplier: 0, shift: 4, });
    twin!("activation/functions.cuh", Scalars, 16, { limit: 0, up_offset: 4, a: 8, b: 12, });
    twin!("activation/activation.cu", ActParams, 112, {
        gate: 0, up: 8, output: 16, counts: 24, gate_stride: 32, up_stride: 40,
        output_stride: 48, d: 56, vectors: 64, row_vectors: 68, by_row: 72, batch_rows: 80,
        first_row: 84, by_batch: 88, scalars: 96,
    });
    twin!("quant/quantize.cuh", QuantParams, 176, {
        gate: 0, up: 8, codes: 16, scales: 24, route: 32, counts: 40, hits: 48,
        gate_stride: 56, up_stride: 64, codes_stride: 72, scale_row: 80, scale_word: 88,
        threads: 96, row_threads: 100, by_row: 104, batch_rows: 112, first_row: 116,
        by_batch: 120, d: 128, groups: 132, group_log: 136, word_log: 140, power_of_two: 144,
        materialize: 148, floor: 152, scalars: 156,
    });
    twin!("matmul/matmul.cuh", MatmulParams, 88, {
        x: 0, w: 8, y: 16, scales: 24, scale_rows: 32, x_stride: 40, y_stride: 48, t: 56,
        n: 60, k: 64, scale_columns: 68, by_block: 72, y_type: 80,
    });
    twin!("matmul/packed.cuh", Packing, 16, {
        streams: 0, groups: 4, group_rows: 8, half_rows: 12,
    });
    twin!("matmul/packed_rows.cuh", PackedParams, 104, { matmul: 0, packing: 88, });
    twin!("matmul/step.cuh", StepParams, 96, {
        w: 0, x: 8, y: 16, x_stride: 24, y_stride: 32, packing: 40, t: 56, k: 60, y_type: 64,
        clamped: 68, eager: 72, next_late: 74, scalars: 76,
    });
    twin!("matmul/decode_codes.cu", QuantizingParams, 104, { step: 0, floor: 96, });
    twin!("matmul/decode_codes.cu", WidenCodesParams, 48, {
        x: 0, to: 8, x_stride: 16, groups: 24, row_groups: 28, by_row: 32, floor: 40,
    });
    twin!("matmul/warpgroups_stages.cuh", WarpgroupParams, 256, {
        x: 0, step: 128, rows: 224,
    });
    twin!("matmul/codes.cuh", CodesParams, 384, {
        x: 0, w: 128, x_scales: 256, w_scales: 264, y: 272, y_stride: 280, scale_row: 288,
        scale_word: 296, word_log: 304, power_of_two: 308, scale_columns: 312, t: 316, n: 320,
        k: 324, rows: 328, y_type: 332,
    });
    twin!("matmul/code_tiles.cuh", CodeTilesParams, 448, {
        codes: 0, y_scales: 384, y_scale_row: 392, y_scale_word: 400, y_word_log: 408, gated: 412,
        up_scales: 416, floor: 420, scalars: 424,
    });
    twin!("matmul/mapped_sums.cuh", MappedParams, 384, {
        weight: 0, x: 128, step: 256, tile_groups: 352, parts_log: 356, stages: 360, x_stages: 364,
        ahead: 368, first_stage: 372, first_x_stage: 374, gated: 376, tile_tokens: 380,
    });
    twin!("moe/experts.cuh", ExpertsParams, 184, {
        x: 0, w: 8, scales: 16, scale_rows: 24, y: 32, offsets: 40, sorted: 48, weights: 56,
        x_stride: 64, y_stride: 72, w_stride: 80, scale_stride: 88, scale_row_stride: 96,
        outputs: 104, k: 108, first: 112, experts: 116, top_k: 120, scale_columns: 124,
        by_block: 128, pieces: 136, by_pieces: 140, format: 148, x_type: 152, form: 156,
        scalars: 160, sorted_before: 176,
    });
    twin!("moe/experts_warpgroups.cuh", GatherParams, 56, {
        from: 0, to: 8, offsets: 16, sorted: 24, from_stride: 32, columns: 40, first: 44,
        experts: 48, top_k: 52,
    });
    twin!("moe/experts_warpgroups.cuh", GatheredParams, 320, { x: 0, experts: 128, });
    twin!("moe/experts_packed.cu", PackParams, 48, {
        codes: 0, scales: 8, to: 16, mark: 24, rows: 32, k: 36, half_rows: 40, group_rows: 44,
    });
    twin!("moe/rows.cu", WidenParams, 88, {
        from: 0, to: 8, offsets: 16, from_stride: 24, to_stride: 32, rows: 40, columns: 44,
        groups: 48, by_groups: 52, group: 60, first: 64, experts: 68, power_of_two: 72,
        from_type: 76, floor: 80,
    });
    twin!("moe/rows.cu", SumParams, 88, {
        outputs: 0, shared: 8, y: 16, offsets: 24, rows: 32, shared_stride: 40, y_stride: 48,
        tokens: 56, columns: 60, top_k: 64, first: 68, experts: 72, shared_type: 76,
        y_type: 80, sorted_before: 84,
    });
    twin!("moe/choose.cuh", RouteParams, 176, {
        x: 0, w: 8, logits: 16, bias: 24, bias_vl: 32, table: 40, token_ids: 48, image: 56,
        padding: 64, ids: 72, weights: 80, offsets: 88, sorted: 96, rows: 104, x_stride: 112,
        tokens: 120, hidden: 124, experts: 128, top_k: 132, by_top_k: 136, by_experts: 144,
        vocabulary: 152, normalize: 156, scale: 160, splits: 164, beside: 168,
    });
    twin!("limits/limits.cu", LimitParams, 24, { from: 0, to: 8, vectors: 16, rounds: 20, });
    #[cfg(feature = "nccl")]
    twin!("ranks/round.cu", RoundParams, 40, {
        from: 0, to: 8, from_stride: 16, to_stride: 24, rows: 32, columns: 36,
    });
}

#[test]
fn division_by_multiplication_is_division() {
    let edges = |by: u32| {
        let n = (1_u32 << 31) - 1;
        let last = n / by * by;
        [
            0,
            1,
            by - 1,
            by.min(n),
            last,
            last.saturating_sub(1),
            n,
            n / 2,
        ]
    };
    for by in (1..2000).chain([1 << 30, (1 << 30) + 1, (1 << 31) - 1, 1 << 31, 48_611]) {
        for n in edges(by).into_iter().filter(|n| *n < 1 << 31) {
            assert_eq!(Divisor::new(by).quotient(n), n / by, "{n} / {by}");
        }
    }
}
