// AVX2 with FMA.
#include "kernels.h"

#ifdef NOISEBOOK_X86
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace noisebook {
namespace {  // unnamed: nothing compiled for this target may be merged with a namesake of another

// The flip bits of entries d ... d + 7, each in the top bit of its lane.
inline __m256i top_bits(const uint32_t* flips, size_t d) {
    const __m256i word = _mm256_set1_epi32(int(flips[d / 32] >> (d % 32)));
    return _mm256_sllv_epi32(word, _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
}

struct U32 {
    static constexpr int width = 8;
    __m256i v;
    static U32 set(uint32_t x) { return {_mm256_set1_epi32(int(x))}; }
    static U32 transposed_iota() { return {_mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)}; }
    U32 shifted_right(int n) const { return {_mm256_srl_epi32(v, _mm_cvtsi32_si128(n))}; }
    void multiply(uint32_t factor, U32& high, U32& low) const {
        const __m256i f = _mm256_set1_epi32(int(factor));
        const __m256i even = _mm256_mul_epu32(v, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), f);
        high.v = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
        low.v = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    }
    static void store_transposed(uint32_t* out, U32 a, U32 b, U32 c, U32 d) {
        const __m256i ab0 = _mm256_unpacklo_epi32(a.v, b.v), ab1 = _mm256_unpackhi_epi32(a.v, b.v);
        const __m256i cd0 = _mm256_unpacklo_epi32(c.v, d.v), cd1 = _mm256_unpackhi_epi32(c.v, d.v);
        __m256i* to = reinterpret_cast<__m256i*>(out);
        _mm256_storeu_si256(to, _mm256_unpacklo_epi64(ab0, cd0));
        _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi64(ab0, cd0));
        _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi64(ab1, cd1));
        _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi64(ab1, cd1));
    }
};
inline U32 operator+(U32 a, U32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline U32 operator&(U32 a, U32 b) { return {_mm256_and_si256(a.v, b.v)}; }
inline U32 xor3(U32 a, U32 b, U32 c) { return {_mm256_xor_si256(a.v, _mm256_xor_si256(b.v, c.v))}; }

struct F32 {
    using T = float;
    static constexpr int width = 8, radix = 8;
    __m256 v;
    static F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static F32 set(float x) { return {_mm256_set1_ps(x)}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    F32 flipped(const uint32_t* flips, size_t d) const {
        const __m256 top = _mm256_and_ps(_mm256_castsi256_ps(top_bits(flips, d)), _mm256_set1_ps(-0.0f));
        return {_mm256_xor_ps(v, top)};
    }
    // The three stages within a register. A product with +-1 is exact, so the fused form rounds as an addition does.
    F32 transformed() const {
        const __m256 s1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
        const __m256 s2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
        const __m256 s4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
        __m256 x = _mm256_fmadd_ps(v, s1, _mm256_permute_ps(v, 0xB1));
        x = _mm256_fmadd_ps(x, s2, _mm256_permute_ps(x, 0x4E));
        return {_mm256_fmadd_ps(x, s4, _mm256_permute2f128_ps(x, x, 1))};
    }
};
inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }

struct I32 {
    using T = int32_t;
    static constexpr int width = 8, radix = 8;
    __m256i v;
    static I32 load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    static I32 set(int32_t x) { return {_mm256_set1_epi32(x)}; }
    void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    F32 rounded() const { return {_mm256_cvtepi32_ps(v)}; }
    I32 flipped(const uint32_t* flips, size_t d) const {
        const __m256i minus = _mm256_srai_epi32(top_bits(flips, d), 31);
        return {_mm256_sub_epi32(_mm256_xor_si256(v, minus), minus)};
    }
    I32 transformed() const {
        const __m256i s1 = _mm256_setr_epi32(1, -1, 1, -1, 1, -1, 1, -1);
        const __m256i s2 = _mm256_setr_epi32(1, 1, -1, -1, 1, 1, -1, -1);
        const __m256i s4 = _mm256_setr_epi32(1, 1, 1, 1, -1, -1, -1, -1);
        __m256i x = _mm256_add_epi32(_mm256_sign_epi32(v, s1), _mm256_shuffle_epi32(v, 0xB1));
        x = _mm256_add_epi32(_mm256_sign_epi32(x, s2), _mm256_shuffle_epi32(x, 0x4E));
        return {_mm256_add_epi32(_mm256_sign_epi32(x, s4), _mm256_permute2x128_si256(x, x, 1))};
    }
};
inline I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }

struct I8 {
    static constexpr int width = 32, tile_codewords = 1;  // 8 sums, a sign and a row: more would not fit 16 registers
    __m256i v;
    static I8 zero() { return {_mm256_setzero_si256()}; }
    static I8 load(const int8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    static I8 bits(const uint32_t* words, size_t d) {
        const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2,
                                                3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int(words[d / 32])), spread);
        return {_mm256_min_epu8(_mm256_and_si256(bytes, bit), _mm256_set1_epi8(1))};
    }
    void add_products(I8 sign, I8 row) { v = _mm256_add_epi16(v, _mm256_maddubs_epi16(sign.v, row.v)); }
    // The sums of all 16-bit lanes of each of N <= 8 vectors: halves are added in pairs until each vector is one lane.
    template <int N>
    static void horizontal(const I8 (&sum)[N], int32_t* out) {
        __m256i x[8];
        const __m256i one = _mm256_set1_epi16(1), none = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) x[i] = i < N ? _mm256_madd_epi16(sum[i < N ? i : 0].v, one) : none;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) x[i] = _mm256_hadd_epi32(x[2 * i], x[2 * i + 1]);
        x[0] = _mm256_hadd_epi32(x[0], x[1]);
        x[1] = _mm256_hadd_epi32(x[2], x[3]);
        x[0] =
            _mm256_add_epi32(_mm256_permute2x128_si256(x[0], x[1], 0x20), _mm256_permute2x128_si256(x[0], x[1], 0x31));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x[0]);
    }
};

float max_abs(const float* x, size_t n) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    __m256 m[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
            m[k] = _mm256_max_ps(m[k], _mm256_and_ps(magnitude, _mm256_loadu_ps(x + i + 8 * k)));
    float lane[8], most = 0;
    _mm256_storeu_ps(lane, _mm256_max_ps(_mm256_max_ps(m[0], m[1]), _mm256_max_ps(m[2], m[3])));
    for (float y : lane) most = y > most ? y : most;
    for (; i < n; ++i) {
        const float y = __builtin_fabsf(x[i]);
        most = y > most ? y : most;
    }
    return most;
}

#include "biased.h"
#include "fwht.h"
#include "independent.h"
#include "philox.h"
#include "synthesis.h"

}  // namespace

const Kernels avx2_kernels = {
    "avx2",          philox_words<U32>, transform<F32>, transform<I32>,          combine<F32, 8>,
    combine<I32, 8>, add_flipped<I32>,  add_signs<I32>, scale_flipped<I32, F32>, max_abs_i32,
    add_squares,     max_abs,           max_biased,     sign_sums<I8>,
};

}  // namespace noisebook

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
