// Matrices of 16 x 16 that a subgroup holds together, between the workgroup's memory and its registers.

alias Tokens = coop_mat16x16<f16, A>;
alias Rows = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

// Called once, before all others.
fn enter(local: u32) {}

fn tokens_at(at: u32) -> Tokens {
    return coopLoadT<coop_mat16x16<f16, A>>(&x_tile[at], LINE);
}

fn rows_at(at: u32) -> Rows {
    return coopLoad<coop_mat16x16<f16, B>>(&w_tile[at], LINE);
}

fn with_products(sums: Sums, tokens: Tokens, rows: Rows) -> Sums {
    return coopMultiplyAdd(tokens, rows, sums);
}

fn stage(sums: Sums, at: u32) {
    coopStoreT(sums, &staged[at], 16u);
}
