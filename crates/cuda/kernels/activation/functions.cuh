// The activations, each as a type with the f32 value of its gate and of its up half. A type is named as
// core's `Function::name` in camel case: the generated instances.cuh names it so.
#pragma once
#include "../common/memory.cuh"
#include "../common/numbers.cuh"

struct Scalars {
    float limit;      // of the clamp
    float up_offset;  // added to the up half; -0 where there is none, which changes no value
    float a;          // alpha of silu, threshold of fatrelu, beta of situ
    float b;          // the up bound of situ, 0 where there is none
};
TWIN_SIZE(Scalars, 16);
TWIN_FIELD(Scalars, limit, 0);
TWIN_FIELD(Scalars, up_offset, 4);
TWIN_FIELD(Scalars, a, 8);
TWIN_FIELD(Scalars, b, 12);

enum class Clamp { None, Before, After };

// x * sigmoid(z) as x / (1 + exp(-z)). Where the exponential is no number of f32 the value is lost.
template <typename T> __device__ __forceinline__ float exp_minus(float z) {
    if constexpr (sizeof(T) == 4) return expf(-z);
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(z * -1.44269502f));
    return e;
}
template <typename T> __device__ __forceinline__ float over_one_and(float x, float e) {
    const float b = 1.0f + e, r = reciprocal(b), q = x * r;
    if constexpr (sizeof(T) == 2) return q;
    // The refinement takes -0 to +0, and an infinity to NaN, which is lost.
    return copysignf(fmaf(fmaf(-q, b, x), r, q), x);
}
template <typename T> __device__ __forceinline__ float times_sigmoid(float x, float z) {
    return over_one_and<T>(x, exp_minus<T>(z));
}
template <typename T> __device__ __forceinline__ float times_sigmoid(float x, Pair z) {
    const float e = exp_minus<T>(z.hi);
    return over_one_and<T>(x, sizeof(T) == 2 ? e : fmaf(e, -z.lo, e));
}

// The same in 16 bits for a value that is rounded before it can be told to be lost: by e = exp(-|z|), which
// overflows nowhere. z has the sign of x.
__device__ __forceinline__ float times_sigmoid_small(float x, float z) {
    const float e = exp_neg_fast(z);
    return (z < 0.0f ? x * e : x) * reciprocal(1.0f + e);
}

__device__ __forceinline__ double times_sigmoid(double x, double z) {
    const double e = exp(-fabs(z));
    return (z < 0.0 ? x * e : x) / (1.0 + e);
}

// The same as an f64 that has all 24 bits however small it is.
__device__ __forceinline__ double times_sigmoid_wide(float x, Pair z) {
    const Exponential e = exponential(z);
    const bool falls = z.hi < 0.0f;
    return lowered((double)x * quotient(falls ? e.p : 1.0f, 1.0f + e.value()), falls ? e.k : 0);
}

// What f32 loses: a function's value below LEAST has few of its bits left, or none, and an up half can
// lift it back among the numbers that the result holds. Such a value is computed again, as an f64, by
// `wide`; what takes f64 anyhow is never rounded before the up half has met it.
constexpr float LEAST = 0x1p-100f;

// silu with alpha = 1. Eager takes the formula and the arithmetic of PyTorch's own kernel, tails
// included: exp overflows where x < -88.7, and the result is -0.
struct Silu {
    template <typename T, bool EAGER>
    static __device__ __forceinline__ float gate(float x, const Scalars&) {
        if constexpr (EAGER) return x / (1.0f + expf(-x));
        // -inf * 0 is a NaN, and silu(-inf) is one.
        return times_sigmoid<T>(x, x);
    }
    template <typename T> static __device__ __forceinline__ double wide(float x, const Scalars&) {
        return times_sigmoid_wide(x, {x, 0.0f});
    }
    static __device__ __forceinline__ float up(float x, const Scalars&) { return x; }
};

struct SiluAlpha : Silu {
    static __device__ __forceinline__ Pair argument(float x, const Scalars& s) {
        const float z = s.a * x;
        // Where alpha * x overflows, its rest would be a NaN.
        const bool finite = fabsf(z) < 3.0e38f;
        return {z, finite ? fmaf(s.a, x, -z) : 0.0f};
    }
    template <typename T, bool EAGER>
    static __device__ __forceinline__ float gate(float x, const Scalars& s) {
        const Pair z = argument(x, s);
        // Eager rounds the value, which may be no small one where f32 has lost the exponential.
        if constexpr (EAGER) {
            if (z.hi < -72.0f) return (float)times_sigmoid_wide(x, z);
        }
        return times_sigmoid<T>(x, z);
    }
    template <typename T> static __device__ __forceinline__ double wide(float x, const Scalars& s) {
        return times_sigmoid_wide(x, argument(x, s));
    }
};

struct Gelu : Silu {
    // x/2 * erfc(-x/sqrt 2) keeps its precision where 1 + erf(x/sqrt 2) cancels.
    template <typename T, bool EAGER>
    static __device__ __forceinline__ float gate(float x, const Scalars&) {
        const float t = x * -0.707106769f;
        const float c = erfcf(t);
        float y = 0.5f * x * c;
        // What the rounding of t costs: erfc'(t) is about -erfc(t) (t + sqrt(t^2 + 3/2)).
        if (t > 1.0f && t < 11.0f) {
            const float rest = fmaf(x, -0.707106769f, -t) + x * -1.21016175e-8f;
            y *= fmaf(-rest, t + sqrtf(fmaf(t, t, 1.5f)), 1.0f);
        }
        return y;
    }
    template <typename T> static __device__ __forceinline__ double wide(float x, const Scalars&) {
        if constexpr (sizeof(T) == 4) return 0.5 * x * erfc(x * -0.70710678118654752440);
        // Tiny ones: half of x. Others are below -11, where the series of erfc does: -exp(-x^2/2) / sqrt(2 pi)
        // * (1 - 1/x^2 + 3/x^4).
        if (fabsf(x) < 1.0f) return 0.5 * x;
        const Exponential e = exponential({0.5f * x * x, 0.0f});
        const float square = reciprocal(x) * reciprocal(x);
        const float series = fmaf(fmaf(3.0f, square, -1.0f), square, 1.0f);
        return lowered((double)(series * -0.398942280f) * e.p, e.k);
    }
};

struct GeluTanh : Silu {
    // (1 + tanh z)/2 is sigmoid(2z), which does not cancel.
    static __device__ __forceinline__ Pair argument(float x) {
        return {1.59576912f * fmaf(0.044715f * x, x * x, x), 0.0f};
    }
    template <typename T, bool EAGER>
    static __device__ __forceinline__ float gate(float x, const Scalars&) {
        const float z = argument(x).hi;
        if constexpr (EAGER) return times_sigmoid_small(x, z);
        else return times_sigmoid<T>(x, z);
    }
    template <typename T> static __device__ __forceinline__ double wide(float x, const Scalars&) {
        if constexpr (sizeof(T) == 2) return times_sigmoid_wide(x, argument(x));
        const double w = x;
        return times_sigmoid(w, 1.5957691216057308 * (w + 0.044715 * (w * w * w)));
    }
};

struct Fatrelu : Silu {
    template <typename T, bool EAGER>
    static __device__ __forceinline__ float gate(float x, const Scalars& s) {
        // Not `x > threshold ? x : 0`, which would take a NaN to 0.
        return x <= s.a ? 0.0f : x;
    }
    template <typename T> static __device__ __forceinline__ double wide(float x, const Scalars& s) {
        return gate<T, false>(x, s);
    }
};

template <typename T> __device__ __forceinline__ float bounded(float x, float bound) {
    if constexpr (sizeof(T) == 4) return (float)(bound * tanh((double)x / bound));
    // tanh t is t for results of 16 bits, and t may be too small for f32.
    const float t = x / bound;
    return fabsf(t) < 0x1p-10f ? x : bound * tanhf(t);
}

struct Situ {
    template <typename T, bool EAGER>
    static __device__ __forceinline__ float gate(float x, const Scalars& s) {
        if constexpr (EAGER) return times_sigmoid_small(bounded<T>(x, s.a), x);
        else return times_sigmoid<T>(bounded<T>(x, s.a), x);
    }
    template <typename T> static __device__ __forceinline__ double wide(float x, const Scalars& s) {
        if constexpr (sizeof(T) == 2) return times_sigmoid_wide(bounded<T>(x, s.a), {x, 0.0f});
        const double w = x;
        return times_sigmoid(s.a * tanh(w / s.a), w);
    }
    template <typename T> static __device__ __forceinline__ float up(float x, const Scalars& s) {
        return s.b > 0.0f ? bounded<T>(x, s.b) : x;
    }
};

template <typename F, typename T>
__device__ __forceinline__ float of_up(float x, const Scalars& s) {
    if constexpr (cuda::std::is_same_v<F, Situ>) return Situ::up<T>(x, s);
    else return F::up(x, s);
}

// Whether a function has its f32 values from f64.
template <typename F, typename T>
constexpr bool TAKES_F64 = sizeof(T) == 4 && (cuda::std::is_same_v<F, Gelu>
    || cuda::std::is_same_v<F, GeluTanh> || cuda::std::is_same_v<F, Situ>);

// Whether f32 may lose a gate's value: Eager rounds the value to T, which has no more of it; fatrelu changes none.
template <typename F, typename T, bool EAGER>
constexpr bool MAY_LOSE = !EAGER && !TAKES_F64<F, T> && !cuda::std::is_same_v<F, Fatrelu>;

// Whether it does.
template <typename F, typename T, bool EAGER>
__device__ __forceinline__ bool loses(float gate, float value, const Scalars& s) {
    if constexpr (!MAY_LOSE<F, T, EAGER>) return false;
    // Of 16 bits a tiny gate's value has the bits that count, so that one comparison is enough.
    else if constexpr (cuda::std::is_same_v<F, Silu> && sizeof(T) == 2) return gate < -72.0f;
    else {
        // 0 loses nothing.
        const float least = fminf(fabsf(gate), LEAST);
        const bool small = sizeof(T) == 4 ? !(fabsf(value) >= least) : fabsf(value) < least;
        // A large gate's value may be no small one though the exponential is.
        if constexpr (cuda::std::is_same_v<F, SiluAlpha>) return small || s.a * gate < -72.0f;
        else return small;
    }
}

// One output as `gated`, where the value of a gate that f32 loses comes from `wide`.
template <typename F, Clamp C, typename T>
__device__ __forceinline__ float gated_wide(float gate, float up, const Scalars& s) {
    if constexpr (C == Clamp::Before) gate = min_nan(gate, s.limit);
    double f = F::template wide<T>(gate, s);
    if constexpr (C != Clamp::None) up = max_nan(min_nan(up, s.limit), -s.limit);
    up = of_up<F, T>(up, s);
    if constexpr (!cuda::std::is_same_v<F, Silu>) up += s.up_offset;
    if constexpr (C == Clamp::After) f = f > s.limit ? s.limit : f;
    return (float)(f * up);
}

// One output as `gated`; `lost` becomes true if it is to be taken from `gated_wide`.
template <typename F, Clamp C, typename T, bool EAGER>
__device__ __forceinline__ float gated_or_lost(float gate, float up, const Scalars& s, bool& lost) {
    if constexpr (TAKES_F64<F, T>) return gated_wide<F, C, T>(gate, up, s);
    auto r = [](float x) { return EAGER ? rounded<T>(x) : x; };
    if constexpr (C == Clamp::Before) gate = r(min_nan(gate, s.limit));
    float f = r(F::template gate<T, EAGER>(gate, s));
    lost |= loses<F, T, EAGER>(gate, f, s);
    if constexpr (C != Clamp::None) up = max_nan(min_nan(up, s.limit), -s.limit);
    up = of_up<F, T>(up, s);
    // The host takes this form only where there is no offset.
    if constexpr (!cuda::std::is_same_v<F, Silu>) up += s.up_offset;
    if constexpr (C == Clamp::After) f = r(min_nan(f, s.limit));
    return f * r(up);
}

// One output, before its last rounding.
template <typename F, Clamp C, typename T, bool EAGER>
__device__ __forceinline__ float gated(float gate, float up, const Scalars& s) {
    bool lost = false;
    const float y = gated_or_lost<F, C, T, EAGER>(gate, up, s, lost);
    return lost ? gated_wide<F, C, T>(gate, up, s) : y;
}

// Whether an input is clamped: at the gate (after the function: its value), at the up half from
// above, and from below; a bit each, ten apart, so that a warp's hits add up in one word.
constexpr uint32_t HIT_BITS = 10;
template <typename F, Clamp C, typename T, bool EAGER>
__device__ __forceinline__ uint32_t clamp_hits(float gate, float up, const Scalars& s) {
    if constexpr (C == Clamp::After) {
        // An infinite value may be lost.
        const float f = F::template gate<T, EAGER>(gate, s);
        if (gate < __int_as_float(0x7f800000)) gate = EAGER ? rounded<T>(f) : f;
    }
    return (uint32_t)(gate > s.limit) | (uint32_t)(up > s.limit) << HIT_BITS
        | (uint32_t)(up < -s.limit) << 2 * HIT_BITS;
}
