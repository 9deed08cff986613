// The layout of kernels/moe/packed.cuh: what is packed comes out again, at a place of its own.
#include "functions.cuh"
#include <cstdio>
#include <set>

static int failures = 0;

static void expect(bool holds, const char* what, uint32_t where) {
    if (!holds && ++failures < 40) std::printf("%s: %#x\n", what, where);
}

// A bf16 by its bits.
static float value(uint32_t bits) { return __uint_as_float(bits << 16); }

int main() {
    const float magnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    // Each code at each place, between codes that differ from it.
    for (uint32_t place = 0; place < 8; ++place) {
        for (uint32_t code = 0; code < 16; ++code) {
            for (uint32_t others = 0; others < 16; ++others) {
                const uint32_t around = others * 0x11111111u, at = 15u << 4 * place;
                const uint32_t stored = (around & ~at) | code << 4 * place, word = pack_codes(stored);
                uint32_t pairs[4];
                widen_packed(word, pairs);
                for (uint32_t j = 0; j < 8; ++j) {
                    const uint32_t want = stored >> 4 * j & 15;
                    expect(unpack_code(word, j) == want, "a code", stored);
                    // But for 2^126, as one multiplication brings it.
                    const float got = value(pairs[j / 2] >> 16 * (j % 2) & 0xffff) * 0x1p126f;
                    const float exact = (want & 8 ? -1 : 1) * magnitudes[want & 7];
                    expect(__float_as_uint(got) == __float_as_uint(exact), "a value", stored);
                }
            }
        }
    }
    // Words take four bytes of a unit each, scales one, and nothing is left.
    std::set<uint32_t> taken;
    for (uint32_t row = 0; row < PACKED_ROWS; ++row) {
        for (uint32_t k = 0; k < PACKED_K; k += 8) {
            for (uint32_t byte = 0; byte < 4; ++byte) {
                expect(taken.insert(packed_word(row, k) + byte).second, "a word's place", k);
            }
        }
        for (uint32_t k = 0; k < PACKED_K; k += 32) {
            expect(taken.insert(packed_scale(row, k)).second, "a scale's place", k);
        }
    }
    expect(taken.size() == PACKED_UNIT && *taken.rbegin() == PACKED_UNIT - 1, "a unit", PACKED_UNIT);
    // A scale's byte with the bias is the exponent of the factor that is missing, up to 2.
    for (uint32_t byte = 0; byte <= PACKED_MOST; ++byte) {
        const float factor = value((byte + PACKED_BIAS) << 7);
        expect(factor == std::ldexp(1.0f, (int)byte - 127 + 126), "a scale", byte);
    }
    std::printf("%d failures\n", failures);
    return failures > 0;
}
