// How elements share scales, and what is done besides.
struct Quant {
    // Elements that share a scale, and such groups in a row.
    group: u32,
    groups: u32,
    // 0: f32, 1: e8m0.
    format: u32,
    // 0: row-major, 1: column-major, 2: packed.
    order: u32,
    // The first scale, counted in scales, and from one row or column of them to the next.
    scale_offset: u32,
    scale_stride: u32,
    floor: f32,
    // The type that y is rounded to before amax.
    rounded_to: u32,
    // The window's first row among all.
    first_row: u32,
    // Rows of a batch; 0 where there are no counts.
    batch_rows: u32,
    counts_offset: u32,
    // NONE where there are no route weights, no counters of clamped values.
    route_offset: u32,
    hits_offset: u32,
    // How the activation alone would compute: 0: by elements, 1: by vectors, 2: natively.
    path: u32,
}

const NONE: u32 = 0xffffffffu;
