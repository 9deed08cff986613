// What matrices that a subgroup holds together give: f16 by f16 with sums in f32, eight of them that do not wait for
// one another, from factors in registers.

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read> a: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> to: array<f32>;

const ROUNDS: u32 = 256u;

var<workgroup> tile: array<vec4<f16>, 384>;
var<workgroup> staged: array<f32, 1024>;

@compute @workgroup_size(128)
fn multiply_matrices(@builtin(local_invocation_index) local: u32) {
    for (var i = local; i < 384u; i += 128u) {
        tile[i] = a[i % 128u];
    }
    workgroupBarrier();
    let a0 = coopLoadT<coop_mat16x16<f16, A>>(&tile[0], 4u);
    let a1 = coopLoadT<coop_mat16x16<f16, A>>(&tile[64], 4u);
    let b0 = coopLoad<coop_mat16x16<f16, B>>(&tile[128], 4u);
    let b1 = coopLoad<coop_mat16x16<f16, B>>(&tile[192], 4u);
    let b2 = coopLoad<coop_mat16x16<f16, B>>(&tile[256], 4u);
    let b3 = coopLoad<coop_mat16x16<f16, B>>(&tile[320], 4u);
    var c00 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
    var c02 = coop_mat16x16<f32, C>();
    var c03 = coop_mat16x16<f32, C>();
    var c10 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
    var c12 = coop_mat16x16<f32, C>();
    var c13 = coop_mat16x16<f32, C>();
    for (var i = 0u; i < ROUNDS; i++) {
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c02 = coopMultiplyAdd(a0, b2, c02);
        c03 = coopMultiplyAdd(a0, b3, c03);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        c12 = coopMultiplyAdd(a1, b2, c12);
        c13 = coopMultiplyAdd(a1, b3, c13);
    }
    // All of them count: what is not stored need not be computed.
    let own = local / 32u * 256u;
    let lane = local % 32u;
    var sum = 0.0;
    coopStore(c00, &staged[own], 16u);
    sum += staged[own + lane];
    coopStore(c01, &staged[own], 16u);
    sum += staged[own + lane];
    coopStore(c02, &staged[own], 16u);
    sum += staged[own + lane];
    coopStore(c03, &staged[own], 16u);
    sum += staged[own + lane];
    coopStore(c10, &staged[own], 16u);
    sum += staged[own + lane];
    coopStore(c11, &staged[own], 16u);
    sum += staged[own + lane];
    coopStore(c12, &staged[own], 16u);
    sum += staged[own + lane];
    coopStore(c13, &staged[own], 16u);
    sum += staged[own + lane];
    if sum == -1.0 {
        to[local] = sum;
    }
}
