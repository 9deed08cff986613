// Matrices of 16 x 16 that a subgroup holds together. They are loaded and multiplied in the kernel's own text.

alias Sums = coop_mat16x16<f32, C>;

// Called once, before all others.
fn enter(local: u32) {}

fn stage(sums: Sums, at: u32) {
    coopStoreT(sums, &staged[at], 16u);
}
