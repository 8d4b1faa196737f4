// The inner loops of both kinds of codebook, once per instruction set. Declarations and plain data only: this header is
// seen by files compiled for different targets, so it must not define a function that the linker could merge.
#pragma once

#include <cstddef>
#include <cstdint>

namespace noisebook {

// One random stream of docs/codebook.md; the counter's first two words (draw, index) are arguments of the calls.
struct Stream {
    uint64_t seed;
    uint32_t step_index;
    uint32_t purpose;  // stream + 256 * block
};

constexpr size_t kDrawWords = 4;     // 32-bit words of one Philox call
constexpr size_t kDrawSigns = 128;   // and its signs
constexpr size_t kMaxLanes = 16;     // sign_words writes whole vectors: up to this many draws
constexpr size_t kDimsPanel = 2048;  // dimensions of one call of sign_sums, at most: 16-bit sums cannot overflow
constexpr size_t kDimsStep = 64;     // and they are a multiple of this many
constexpr size_t kMaxRows = 8;       // rows that share the signs in registers
constexpr size_t kParts = 64;        // several threads that work on one row cut it into this many parts

struct Kernels {
    const char* name;

    // Words of `draws` Philox calls. Draw n has counter (draw0 + n % 2^log_per_index, index0 + n / 2^log_per_index).
    // `out` has room for `draws` rounded up to kMaxLanes.
    void (*sign_words)(uint32_t* out, size_t draws, Stream stream, uint32_t index0, uint32_t draw0, int log_per_index);

    // out = H(flipped in), n a power of two; in == out is allowed. Entry d is negated first where bit d of `flips` is
    // set; flips may be null. The additions of a float transform happen in one order (h = 1, 2, 4, ...) everywhere.
    void (*transform_f32)(const float* in, const uint32_t* flips, float* out, size_t n);
    void (*transform_i32)(const int32_t* in, const uint32_t* flips, int32_t* out, size_t n);

    // Only the last three stages, h = n / 8, n / 4, n / 2, and of those only the entries d for which
    // first <= d % (n / 8) < last.
    void (*combine_f32)(float* data, size_t n, size_t first, size_t last);
    void (*combine_i32)(int32_t* data, size_t n, size_t first, size_t last);

    // sum += x, each entry negated first where its bit of `flips` is set; x may also be one number for all entries.
    void (*add_flipped_i32)(int32_t* sum, const int32_t* x, const uint32_t* flips, size_t n);
    void (*add_signs_i32)(int32_t* sum, int32_t x, const uint32_t* flips, size_t n);

    // out = float(x) * factor, each x negated first where its bit of `flips` is set: rounded to nearest even, twice.
    void (*scale_flipped)(const int32_t* x, const uint32_t* flips, float factor, float* out, size_t n);

    // The largest |x|; 0 for n = 0.
    uint32_t (*max_abs_i32)(const int32_t* x, size_t n);

    // sums[0] += the low 32 bits of all x^2, sums[1] += their high 32 bits.
    void (*add_squares)(const int32_t* x, size_t n, uint64_t* sums);

    // The largest |x|; 0 for n = 0.
    float (*max_abs)(const float* x, size_t n);

    // The largest factor * x + bias, each rounded to float64; -inf for n = 0.
    double (*max_biased)(const float* x, const float* bias, double factor, size_t n);

    // sums[k * images + b] += sum of row b over the dimensions whose bit in the words of codeword k is set. The rows
    // come in groups of `lanes` <= kMaxRows (a power of two): [group, dims / kDimsStep, lanes, kDimsStep].
    void (*sign_sums)(const uint32_t* words, size_t words_stride, size_t codewords, const int8_t* rows, size_t images,
                      size_t lanes, size_t dims, int32_t* sums);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(NOISEBOOK_PORTABLE)
#define NOISEBOOK_X86 1
extern const Kernels avx2_kernels, avx512_kernels;
#endif

// For a last transform beyond int32 (M P >= 2^31), one per view: the same code for all instruction sets.
void transform_i64(const int64_t* in, const uint32_t* flips, int64_t* out, size_t n);

}  // namespace noisebook
