// The experts of tokens and their weights, from logits: a workgroup for each token.
//
// ## Method
// 1. A score is sqrt(softplus(logit)). Far below 0 that is exp(logit / 2), far above it sqrt(logit), and
//    between log1p is made from the series of atanh: no digit is lost at either end.
// 2. Scores plus biases become keys, whose order as integers is theirs, with NaN above everything and -0 as +0.
//    The next expert is the first of those with the greatest key behind the last one: nothing is marked,
//    and the lower expert comes first of equals.
//    Keys of the first KEPT experts are made once, by the invocation that takes them every time.
// 3. One invocation weighs what was chosen.

struct ChooseCall {
    tokens: u32,
    experts: u32,
    top_k: u32,
    // Multiplies every weight.
    scale: f32,
    // Whether scores are divided by their sum.
    normalize: u32,
    // Rows of the table; 0 where experts are chosen by their scores.
    vocabulary: u32,
    // The window's first token among all, and where its logits begin.
    first_token: u32,
    logits_offset: u32,
    // Where the tokens' numbers and masks begin; NONE where there are none.
    ids_offset: u32,
    image_offset: u32,
    padding_offset: u32,
    unused: u32,
    op: Op,
}

const NONE: u32 = 0xffffffffu;

var<immediate> call: ChooseCall;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> token_ids: array<i32>;
@group(0) @binding(2) var<storage, read> image: array<i32>;
@group(0) @binding(3) var<storage, read> padding: array<i32>;
// Biases, or the table where there is one.
@group(0) @binding(4) var<storage, read> bias_or_table: array<u32>;
@group(0) @binding(5) var<storage, read> bias_vl: array<f32>;
@group(0) @binding(6) var<storage, read_write> ids: array<i32>;
@group(0) @binding(7) var<storage, read_write> weights: array<f32>;

// What a token's experts are chosen by.
const BY_NOTHING: u32 = 0u;
const BY_BIAS: u32 = 1u;
const BY_BIAS_VL: u32 = 2u;
const BY_TABLE: u32 = 3u;

var<workgroup> choice: u32;
const KEPT: u32 = 512u;
var<workgroup> keys: array<u32, KEPT>;

// The best key of each invocation, and the expert that has it.
var<workgroup> best: array<vec2<u32>, WORKGROUP>;

// log(1 + u) for u from 0 to 1: twice the atanh of u / (2 + u).
fn log1p(u: f32) -> f32 {
    let z = u / (2.0 + u);
    let w = z * z;
    var p = fma(w, 0.06666667, 0.07692308);
    p = fma(w, p, 0.09090909);
    p = fma(w, p, 0.11111111);
    p = fma(w, p, 0.14285715);
    p = fma(w, p, 0.2);
    p = fma(w, p, 0.33333334);
    return 2.0 * fma(z * w, p, z);
}

fn score(logit: f32) -> f32 {
    if is_nan(logit) {
        return nan();
    }
    if logit < -18.0 {
        if logit < -300.0 {
            return 0.0;
        }
        let e = exp_scaled(0.5 * logit, 0.0);
        return scale(e.value, e.exponent);
    }
    if logit > 18.0 {
        return sqrt(logit);
    }
    let e = exp_scaled(-abs(logit), 0.0);
    return sqrt(max(logit, 0.0) + log1p(scale(e.value, e.exponent)));
}

// Above 0, and in the order of what ranks higher.
fn key_of(x: f32) -> u32 {
    if is_nan(x) {
        return NONE;
    }
    if magnitude(x) == 0u {
        return 0x80000000u;
    }
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, is_negative(x));
}

// What a token's experts are chosen by.
fn choice_of(token: u32) -> u32 {
    if call.padding_offset != NONE && padding[call.padding_offset + token] != 0 {
        return BY_NOTHING;
    }
    if call.image_offset != NONE && image[call.image_offset + token] != 0 {
        return BY_BIAS_VL;
    }
    if call.vocabulary == 0u {
        return BY_BIAS;
    }
    // A number below 0 is a large one.
    let row = u32(token_ids[call.ids_offset + token]);
    return select(BY_NOTHING, BY_TABLE, row < call.vocabulary);
}

fn biased(row: u32, expert: u32, by: u32) -> f32 {
    let s = score(logits[row + expert]);
    if by == BY_BIAS_VL {
        return s + bias_vl[expert];
    }
    return s + bitcast<f32>(bias_or_table[expert]);
}

// The key of an expert in some round, which only one invocation asks for.
fn key_at(row: u32, expert: u32, by: u32, slot: u32) -> u32 {
    if slot > 0u && expert < KEPT {
        return keys[expert];
    }
    let key = key_of(biased(row, expert, by));
    if expert < KEPT {
        keys[expert] = key;
    }
    return key;
}

fn ranks_above(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

// Weights in place of the scores of what was chosen.
fn weigh(first: u32) {
    var sum = 1e-20;
    for (var slot = 0u; slot < call.top_k; slot++) {
        sum += weights[first + slot];
    }
    for (var slot = 0u; slot < call.top_k; slot++) {
        let s = weights[first + slot];
        var normal = s;
        if call.normalize != 0u {
            normal = s / sum;
            // What a quotient makes of these WGSL does not say.
            if is_nan(sum) || (magnitude(sum) == 0x7f800000u && magnitude(s) == 0x7f800000u) {
                normal = nan();
            } else if magnitude(sum) == 0x7f800000u {
                normal = 0.0;
            }
        }
        weights[first + slot] = normal * call.scale;
    }
}

@compute @workgroup_size(WORKGROUP)
fn choose_experts(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let own = group.y * groups.x + group.x;
    if own >= call.tokens {
        return;
    }
    let token = call.first_token + own;
    let row = call.logits_offset + own * call.experts;
    let first = token * call.top_k;
    if local == 0u {
        choice = choice_of(token);
    }
    let by = workgroupUniformLoad(&choice);
    if by == BY_NOTHING {
        for (var slot = local; slot < call.top_k; slot += WORKGROUP) {
            ids[first + slot] = -1;
            weights[first + slot] = 0.0;
        }
        return;
    }
    if by == BY_TABLE {
        if local == 0u {
            let entries = u32(token_ids[call.ids_offset + token]) * call.top_k;
            for (var slot = 0u; slot < call.top_k; slot++) {
                let expert = bias_or_table[entries + slot];
                ids[first + slot] = i32(expert);
                weights[first + slot] = score(logits[row + expert]);
            }
            weigh(first);
        }
        return;
    }
    // Above every key.
    var last = vec2(NONE, 0u);
    for (var slot = 0u; slot < call.top_k; slot++) {
        var found = vec2(0u, 0u);
        for (var expert = local; expert < call.experts; expert += WORKGROUP) {
            let candidate = vec2(key_at(row, expert, by, slot), expert);
            let open = slot == 0u || ranks_above(last, candidate);
            if open && ranks_above(candidate, found) {
                found = candidate;
            }
        }
        best[local] = found;
        workgroupBarrier();
        for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
            if local < half && ranks_above(best[local + half], best[local]) {
                best[local] = best[local + half];
            }
            workgroupBarrier();
        }
        last = best[0];
        if local == 0u {
            ids[first + slot] = i32(last.y);
            weights[first + slot] = score(logits[row + last.y]);
        }
        // All have read what the next round overwrites.
        workgroupBarrier();
    }
    if local == 0u {
        weigh(first);
    }
}
