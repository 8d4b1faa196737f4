// Plain C++ for every processor: the same integers and the same order of float additions, one entry at a time.
#include "kernels.h"

namespace noisebook {
namespace {

struct U32 {
    static constexpr int width = 1;
    uint32_t v;
    static U32 set(uint32_t x) { return {x}; }
    static U32 transposed_iota() { return {0}; }
    friend U32 operator+(U32 a, U32 b) { return {a.v + b.v}; }
    friend U32 operator&(U32 a, U32 b) { return {a.v & b.v}; }
    friend U32 xor3(U32 a, U32 b, U32 c) { return {a.v ^ b.v ^ c.v}; }
    U32 shifted_right(int n) const { return {v >> n}; }
    void multiply(uint32_t factor, U32& high, U32& low) const {
        const uint64_t product = uint64_t(v) * factor;
        high.v = uint32_t(product >> 32), low.v = uint32_t(product);
    }
    static void store_transposed(uint32_t* out, U32 a, U32 b, U32 c, U32 d) {
        out[0] = a.v, out[1] = b.v, out[2] = c.v, out[3] = d.v;
    }
};

template <class Number>
struct One {
    using T = Number;
    static constexpr int width = 1, radix = 8;
    T v;
    static One load(const T* p) { return {*p}; }
    static One set(T x) { return {x}; }
    void store(T* p) const { *p = v; }
    friend One operator+(One a, One b) { return {a.v + b.v}; }
    friend One operator-(One a, One b) { return {a.v - b.v}; }
    friend One operator*(One a, One b) { return {a.v * b.v}; }
    One<float> rounded() const { return {float(v)}; }
    One flipped(const uint32_t* flips, size_t d) const { return {flips[d / 32] >> (d % 32) & 1 ? -v : v}; }
    One transformed() const { return *this; }
};

float max_abs(const float* x, size_t n) {
    float most = 0;
    for (size_t i = 0; i < n; ++i) {
        const float y = x[i] < 0 ? -x[i] : x[i];
        most = y > most ? y : most;
    }
    return most;
}

// The bits become a byte mask once per codeword, so that the loop over a row has no branch and compilers vectorise it.
void sign_sums(const uint32_t* words, size_t words_stride, size_t codewords, const int8_t* rows, size_t images,
               size_t lanes, size_t dims, int32_t* sums) {
    int8_t mask[kDimsPanel];
    for (size_t k = 0; k < codewords; ++k) {
        for (size_t d = 0; d < dims; ++d) mask[d] = int8_t(-int(words[k * words_stride + d / 32] >> (d % 32) & 1));
        for (size_t b = 0; b < images; ++b) {
            const int8_t* row = rows + b / lanes * lanes * dims + b % lanes * kDimsStep;
            int32_t sum = 0;
            for (size_t first = 0; first < dims; first += kDimsStep, row += lanes * kDimsStep)
                for (size_t d = 0; d < kDimsStep; ++d) sum += row[d] & mask[first + d];
            sums[k * images + b] += sum;
        }
    }
}

#include "biased.h"
#include "fwht.h"
#include "philox.h"
#include "synthesis.h"

}  // namespace

void transform_i64(const int64_t* in, const uint32_t* flips, int64_t* out, size_t n) {
    transform<One<int64_t>>(in, flips, out, n);
}

const Kernels portable_kernels = {
    "portable",
    philox_words<U32>,
    transform<One<float>>,
    transform<One<int32_t>>,
    combine<One<float>, 8>,
    combine<One<int32_t>, 8>,
    add_flipped<One<int32_t>>,
    add_signs<One<int32_t>>,
    scale_flipped<One<int32_t>, One<float>>,
    max_abs_i32,
    add_squares,
    max_abs,
    max_biased,
    sign_sums,
};

}  // namespace noisebook
