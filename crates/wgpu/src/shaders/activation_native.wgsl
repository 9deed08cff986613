// silu of 16-bit elements by the device's own exp2, division and conversions of f16. WGSL promises
// little of these; where a test of every gate finds them right, they take a third of the work.
//
// ## Method
// 1. A vector of eight gates and ups is widened, and all eight results are computed.
// 2. One sum over the vector tells of NaN, infinities and huge elements; the least magnitude of bf16
//    results tells what was flushed or wants a nudge. Nothing is tested element by element.
// 3. A vector that is not sound is computed again, pair by pair, by the exact operation.

// 2^-104: takes what is below 2^-22 to what is below the smallest normal number.
const SMALL_TO_SUBNORMAL: f32 = 4.930380657631324e-32;

fn nearest_bf16(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    return bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u));
}

// The elements of the low halves and of the high ones, to 16 bits.
fn narrow_native(low: vec4<f32>, high: vec4<f32>) -> vec4<u32> {
    if FLOAT == 1u {
        return vec4(
            pack2x16float(vec2(low.x, high.x)),
            pack2x16float(vec2(low.y, high.y)),
            pack2x16float(vec2(low.z, high.z)),
            pack2x16float(vec2(low.w, high.w)),
        );
    }
    return (nearest_bf16(low) >> vec4(16u)) | (nearest_bf16(high) & vec4(0xffff0000u));
}

// Clamping here swallows NaN: what calls this looks at the sum of the products.
fn clamped_up(up: vec4<f32>) -> vec4<f32> {
    return max(min(up, vec4(call.op.limit)), vec4(-call.op.limit)) + vec4(call.op.up_add);
}

fn native_vector(gate: vec4<u32>, up: vec4<u32>) -> Attempt {
    let gate_low = widen_low(gate);
    let gate_high = widen_high(gate);
    let up_low = widen_low(up);
    let up_high = widen_high(up);
    // NaN or infinite if an element is, and at least large if a result leaves f32.
    let products = fma(gate_low, up_low, gate_high * up_high);
    let sum = (products.x + products.y) + (products.z + products.w);
    let factor = call.op.first * -LOG2_E;
    let low = min(gate_low, vec4(call.op.limit));
    let high = min(gate_high, vec4(call.op.limit));
    let y_low = low * (1.0 / (1.0 + exp2(low * factor))) * clamped_up(up_low);
    let y_high = high * (1.0 / (1.0 + exp2(high * factor))) * clamped_up(up_high);
    var sound = magnitude(sum) < 0x7f000000u;
    if FLOAT == 2u {
        // A result that is 0 or subnormal may have been flushed, or lost to an infinite exp2; and
        // gates below 2^-22 need a nudge. f16 has no such results, and few such gates.
        let least_gate = min(abs(low), abs(high)) * SMALL_TO_SUBNORMAL;
        let least = min(min(abs(y_low), abs(y_high)), least_gate);
        sound &= magnitude(min(min(least.x, least.y), min(least.z, least.w))) >= 0x00800000u;
    }
    return Attempt(narrow_native(y_low, y_high), sound);
}

fn all_finite(pair: u32) -> bool {
    let end = select(0x00800080u, 0x04000400u, FLOAT == 1u);
    return (((pair & 0x7fff7fffu) + end) & 0x80008000u) == 0u;
}

// Whether a pair of an unsound vector must be computed again. Rows of zeros are not so rare, and
// right already.
fn needs_exact(gate: u32, up: u32) -> bool {
    return (gate & 0x7fff7fffu) != 0u || !all_finite(up);
}
