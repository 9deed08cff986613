    // What a subgroup multiplies of the tiles, and what an invocation brings to them.
    let subgroup = local / 32u;
    let slice = subgroup / PARTS * (X_VECTORS / SLICES);
    let part = subgroup % PARTS;
    let x_line = part / ACROSS * MATRICES_DOWN * 16u * LINE + slice;
    let w_line = part % ACROSS * MATRICES_ACROSS * 16u * LINE + slice;
    let x_own = local / X_VECTORS;
    let x_k = local % X_VECTORS;
    let w_own = local / W_VECTORS;
    let w_k = local % W_VECTORS;
    let x_to = x_own * LINE + x_k;
    let w_to = w_own * LINE + w_k * (RAW / 4u);
