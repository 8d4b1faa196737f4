// AVX-512 (F, DQ, CD, BW, VL: every AVX-512 processor since Skylake; no VNNI).
#include "kernels.h"

#ifdef NOISEBOOK_X86
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl")
#endif

namespace noisebook {
namespace {  // unnamed: nothing compiled for this target may be merged with a namesake of another

inline __mmask16 bits16(const uint32_t* flips, size_t d) {
    uint16_t bits;
    __builtin_memcpy(&bits, reinterpret_cast<const char*>(flips) + d / 8, 2);
    return bits;
}

struct U32 {
    static constexpr int width = 16;
    __m512i v;
    static U32 set(uint32_t x) { return {_mm512_set1_epi32(int(x))}; }
    static U32 transposed_iota() { return {_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)}; }
    U32 shifted_right(int n) const { return {_mm512_srl_epi32(v, _mm_cvtsi32_si128(n))}; }
    void multiply(uint32_t factor, U32& high, U32& low) const {
        const __m512i f = _mm512_set1_epi32(int(factor));
        const __m512i even = _mm512_mul_epu32(v, f), odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), f);
        high.v = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_CDAB);
        low.v = _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CDAB);
    }
    static void store_transposed(uint32_t* out, U32 a, U32 b, U32 c, U32 d) {
        const __m512i ab0 = _mm512_unpacklo_epi32(a.v, b.v), ab1 = _mm512_unpackhi_epi32(a.v, b.v);
        const __m512i cd0 = _mm512_unpacklo_epi32(c.v, d.v), cd1 = _mm512_unpackhi_epi32(c.v, d.v);
        _mm512_storeu_si512(out, _mm512_unpacklo_epi64(ab0, cd0));
        _mm512_storeu_si512(out + 16, _mm512_unpackhi_epi64(ab0, cd0));
        _mm512_storeu_si512(out + 32, _mm512_unpacklo_epi64(ab1, cd1));
        _mm512_storeu_si512(out + 48, _mm512_unpackhi_epi64(ab1, cd1));
    }
};
inline U32 operator+(U32 a, U32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline U32 operator&(U32 a, U32 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline U32 xor3(U32 a, U32 b, U32 c) { return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x96)}; }

struct F32 {
    using T = float;
    static constexpr int width = 16, radix = 16;
    __m512 v;
    static F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static F32 set(float x) { return {_mm512_set1_ps(x)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    F32 flipped(const uint32_t* flips, size_t d) const {
        return {_mm512_mask_xor_ps(v, bits16(flips, d), v, _mm512_set1_ps(-0.0f))};
    }
    // The four stages within a register. A product with +-1 is exact, so the fused form rounds as an addition does.
    F32 transformed() const {
        const float p = 1, n = -1;
        const __m512 s1 = _mm512_setr_ps(p, n, p, n, p, n, p, n, p, n, p, n, p, n, p, n);
        const __m512 s2 = _mm512_setr_ps(p, p, n, n, p, p, n, n, p, p, n, n, p, p, n, n);
        const __m512 s4 = _mm512_setr_ps(p, p, p, p, n, n, n, n, p, p, p, p, n, n, n, n);
        const __m512 s8 = _mm512_setr_ps(p, p, p, p, p, p, p, p, n, n, n, n, n, n, n, n);
        __m512 x = _mm512_fmadd_ps(v, s1, _mm512_permute_ps(v, 0xB1));
        x = _mm512_fmadd_ps(x, s2, _mm512_permute_ps(x, 0x4E));
        x = _mm512_fmadd_ps(x, s4, _mm512_shuffle_f32x4(x, x, 0xB1));
        return {_mm512_fmadd_ps(x, s8, _mm512_shuffle_f32x4(x, x, 0x4E))};
    }
};
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }

struct I32 {
    using T = int32_t;
    static constexpr int width = 16, radix = 16;
    __m512i v;
    static I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
    static I32 set(int32_t x) { return {_mm512_set1_epi32(x)}; }
    void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
    F32 rounded() const { return {_mm512_cvtepi32_ps(v)}; }
    I32 flipped(const uint32_t* flips, size_t d) const {
        return {_mm512_mask_sub_epi32(v, bits16(flips, d), _mm512_setzero_si512(), v)};
    }
    static __m512i stage(__m512i x, __m512i partner, __mmask16 upper) {
        return _mm512_mask_sub_epi32(_mm512_add_epi32(x, partner), upper, partner, x);
    }
    I32 transformed() const {
        __m512i x = stage(v, _mm512_shuffle_epi32(v, _MM_PERM_CDAB), 0xAAAA);
        x = stage(x, _mm512_shuffle_epi32(x, _MM_PERM_BADC), 0xCCCC);
        x = stage(x, _mm512_shuffle_i32x4(x, x, 0xB1), 0xF0F0);
        return {stage(x, _mm512_shuffle_i32x4(x, x, 0x4E), 0xFF00)};
    }
};
inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }

struct I8 {
    static constexpr int width = 64, tile_codewords = 2;
    __m512i v;
    static I8 zero() { return {_mm512_setzero_si512()}; }
    static I8 load(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
    static I8 bits(const uint32_t* words, size_t d) {
        uint64_t mask;
        __builtin_memcpy(&mask, reinterpret_cast<const char*>(words) + d / 8, 8);
        return {_mm512_maskz_set1_epi8(mask, 1)};
    }
    void add_products(I8 sign, I8 row) {
        v = _mm512_add_epi16(v, _mm512_maddubs_epi16(sign.v, row.v));
        __asm__("" : "+v"(v));  // keeps the sum in one register: GCC 12 otherwise copies all 16 of them every turn
    }
    // The sums of all 16-bit lanes of each of N <= 16 vectors: halves are added in pairs until each vector is one lane.
    template <int N>
    static void horizontal(const I8 (&sum)[N], int32_t* out) {
        __m512i x[16];
        const __m512i one = _mm512_set1_epi16(1), none = _mm512_setzero_si512();
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = i < N ? _mm512_madd_epi16(sum[i < N ? i : 0].v, one) : none;
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
            x[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                    _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            x[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(x[2 * i], x[2 * i + 1]),
                                    _mm512_unpackhi_epi64(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 2
        for (int level = 2; level; --level)
#pragma GCC unroll 2
            for (int i = 0; i < level; ++i)
                x[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0x88),
                                        _mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0xDD));
        _mm512_storeu_si512(out, x[0]);
    }
};

float max_abs(const float* x, size_t n) {
    __m512 m[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) m[k] = _mm512_max_ps(m[k], _mm512_abs_ps(_mm512_loadu_ps(x + i + 16 * k)));
    for (; i < n; i += 16) {
        const __mmask16 valid = n - i >= 16 ? 0xFFFF : (1u << (n - i)) - 1;
        m[0] = _mm512_max_ps(m[0], _mm512_abs_ps(_mm512_maskz_loadu_ps(valid, x + i)));
    }
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3])));
}

#include "biased.h"
#include "fwht.h"
#include "independent.h"
#include "philox.h"
#include "synthesis.h"

}  // namespace

const Kernels avx512_kernels = {
    "avx512",        philox_words<U32>, transform<F32>, transform<I32>,          combine<F32, 8>,
    combine<I32, 8>, add_flipped<I32>,  add_signs<I32>, scale_flipped<I32, F32>, max_abs_i32,
    add_squares,     max_abs,           max_biased,     sign_sums<I8>,
};

}  // namespace noisebook

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
