// What a call tells of the operation.

struct Op {
    // The function's number: see functions.wgsl.
    function: u32,
    // 0: none, 1: before the function, 2: after it.
    clamp_place: u32,
    // Rounds between the steps if 1.
    eager: u32,
    // The largest finite number if there is none.
    limit: f32,
    // The function's parameters, in the order of swiglu_core::Function::scalars().
    first: f32,
    second: f32,
    // Added to up; 0 adds nothing, not even to -0.
    up_add: f32,
    // Added to a gate's magnitude (to both of a pair at once), this sets the top bit where the
    // quick path must not be taken. 0 where there is no quick path.
    gate_guard: u32,
}
