// The formulas of kernels/activation/functions.cuh against f64, where f32 loses what they give on the way.
#include "functions.cuh"
#include <cstdio>
#include <vector>

static int failures = 0;

// The definitions, as core's reference has them.
static double sigmoid_times(double x, double z) {
    const double e = std::exp(-std::fabs(z));
    return (z < 0 ? x * e : x) / (1 + e);
}
template <typename F> static double gate_of(double x, const Scalars& s) {
    if constexpr (std::is_same_v<F, Silu>) return sigmoid_times(x, x);
    if constexpr (std::is_same_v<F, SiluAlpha>) return sigmoid_times(x, s.a * x);
    if constexpr (std::is_same_v<F, Gelu>) return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    if constexpr (std::is_same_v<F, GeluTanh>) {
        return sigmoid_times(x, std::sqrt(8 / M_PI) * (x + 0.044715 * x * x * x));
    }
    if constexpr (std::is_same_v<F, Fatrelu>) return x <= s.a ? 0 : x;
    if constexpr (std::is_same_v<F, Situ>) return sigmoid_times(s.a * std::tanh(x / s.a), x);
}
template <typename F, Clamp C> static double definition(double gate, double up, const Scalars& s) {
    const double limit = s.limit;
    if (C == Clamp::Before && gate > limit) gate = limit;
    double f = gate_of<F>(gate, s);
    if (C != Clamp::None) up = up > limit ? limit : up < -limit ? -limit : up;
    if (C == Clamp::After && f > limit) f = limit;
    if (std::is_same_v<F, Situ> && s.b > 0) up = s.b * std::tanh(up / s.b);
    if (s.up_offset != 0) up += s.up_offset;
    return f * up;
}

static int64_t ordered(int64_t bits, int64_t sign) { return bits & sign ? sign - bits : bits; }
static int64_t ordered(float x) { return ordered(__float_as_uint(x), 0x80000000); }
static int64_t ordered(bf16 x) { return ordered(x.x, 0x8000); }
static int64_t ordered(f16 x) { return ordered(std::bit_cast<uint16_t>(x.x), 0x8000); }

template <typename F, Clamp C, typename T>
static void check(const char* name, const std::vector<float>& gates, const Scalars& s) {
    const int64_t ulps = sizeof(T) == 4 ? 4 : 1;
    for (const float g : gates) {
        for (const float u : {1.0f, -3e4f, 1e10f, 3e20f, -1e30f, 3.3e38f, INFINITY, -INFINITY}) {
            const float gate = widen(narrow<T>(g)), up = widen(narrow<T>(u));
            const double exact = definition<F, C>(gate, up, s);
            const T want = narrow<T>(exact), got = narrow<T>(gated<F, C, T, false>(gate, up, s));
            const bool same = std::abs(ordered(got) - ordered(want)) <= ulps;
            // f64 takes a gate's value for 0 that an infinite up half meets; no precision is promised of
            // results that are no normal numbers.
            const bool meets_zero = std::isinf(up) && !std::isinf(gate) && exact != exact;
            const bool subnormal = std::fabs(exact) < 0x1p-126 && std::fabs(widen(got)) < 0x1p-125;
            if (same || meets_zero || subnormal) continue;
            const bool nan = exact != exact && widen(got) != widen(got);
            if (!nan && ++failures < 40) {
                std::printf("%s, %zu bytes: %g %g: %g, not %g\n", name, sizeof(T), gate, up, widen(got), exact);
            }
        }
    }
}

template <typename F, Clamp C>
static void every_type(const char* name, const std::vector<float>& gates, const Scalars& s) {
    check<F, C, float>(name, gates, s);
    check<F, C, bf16>(name, gates, s);
    check<F, C, f16>(name, gates, s);
}

int main() {
    std::vector<float> gates = {0.0f, -0.0f, -1e10f, -3e38f, 3e38f, -INFINITY, INFINITY, NAN, -1e4f, -745.0f};
    for (float x = 12.0f; x > -500.0f; x -= 0.09375f) gates.push_back(x);
    for (uint32_t i = 1; i < 0x60000000; i += 0x3a7f1b) {
        gates.push_back(__uint_as_float(i));
        gates.push_back(-__uint_as_float(i));
    }
    for (uint32_t i = 1; i < 0x00900000; i = i * 3 / 2 + 1) {
        gates.push_back(__uint_as_float(i));
        gates.push_back(-__uint_as_float(i));
    }
    const float none = -0.0f;
    for (const float limit : {10.0f, 80.0f, 1e30f, 3e38f}) {
        every_type<Silu, Clamp::Before>("silu, clamped before", gates, {limit, none, 1, 0});
        every_type<Silu, Clamp::After>("silu, clamped after", gates, {limit, none, 1, 0});
        every_type<SiluAlpha, Clamp::Before>("silu of 1.702", gates, {limit, 1.0f, 1.702f, 0});
    }
    every_type<Silu, Clamp::None>("silu", gates, {0, none, 1, 0});
    every_type<SiluAlpha, Clamp::None>("silu of 1.702", gates, {0, none, 1.702f, 0});
    every_type<Gelu, Clamp::None>("gelu", gates, {0, none, 0, 0});
    every_type<GeluTanh, Clamp::None>("gelu_tanh", gates, {0, none, 0, 0});
    every_type<Fatrelu, Clamp::None>("fatrelu", gates, {0, none, 0.5f, 0});
    every_type<Situ, Clamp::None>("situ", gates, {0, none, 4, 25});
    every_type<Situ, Clamp::None>("situ without a bound", gates, {0, none, 4, 0});
    std::vector<float> steep = {-1.08e22f, 1e21f, -3e38f};
    for (float x = -6e21f; x > -3e22f; x -= 3.7e19f) steep.push_back(x);
    every_type<SiluAlpha, Clamp::Before>("silu of 1e-20", steep, {10, -3.5f, 1e-20f, 0});
    every_type<SiluAlpha, Clamp::None>("silu of 1e-20", steep, {0, none, 1e-20f, 0});
    const std::vector<float> tiny = {-2e-37f, -1e-37f, -3e-37f, -5e-37f, 2e-37f};
    every_type<SiluAlpha, Clamp::None>("silu of 3e38", tiny, {0, none, 3e38f, 0});
    std::printf("%d failures\n", failures);
    return failures > 0;
}
