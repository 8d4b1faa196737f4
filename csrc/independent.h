// Sums of int8 rows over the set bits of codewords, the inner loop of kind `independent`. Include inside an unnamed
// namespace; V (64 or 32 bytes) comes from the including file.
//
// V::bits expands sign bits to bytes 0/1, shared by all images of a tile; add_products adds their pairwise products to
// 16-bit sums. A pair is at most 2 * 127, and a lane gets at most kDimsPanel / 32 = 64 of them: |sum| < 2^15.

// The rows of a tile are interleaved, so that one pointer and constant offsets reach all of them.
template <class V, int kImages>
void sign_tile(const uint32_t* words, size_t words_stride, size_t codewords, const int8_t* rows, size_t row_step,
               size_t dims, int32_t* sums, size_t sums_stride) {
    constexpr int kWords = V::tile_codewords;
    for (size_t k = 0; k < codewords; k += kWords) {
        V sum[kWords * kImages];
#pragma GCC unroll 16
        for (int i = 0; i < kWords * kImages; ++i) sum[i] = V::zero();
        const uint32_t* bits = words + k * words_stride;
        const int8_t* row = rows;
        for (size_t d = 0; d < dims; d += kDimsStep, row += row_step) {
#pragma GCC unroll 2
            for (size_t part = 0; part < kDimsStep; part += V::width) {
                V sign[kWords];
#pragma GCC unroll 2
                for (int w = 0; w < kWords; ++w) sign[w] = V::bits(bits + w * words_stride, d + part);
#pragma GCC unroll 8
                for (int b = 0; b < kImages; ++b) {
                    const V x = V::load(row + b * kDimsStep + part);
#pragma GCC unroll 2
                    for (int w = 0; w < kWords; ++w) sum[w * kImages + b].add_products(sign[w], x);
                }
            }
        }
        alignas(64) int32_t total[V::tile_codewords * kMaxRows];
        V::template horizontal<kWords * kImages>(sum, total);
        for (int w = 0; w < kWords; ++w)
            for (int b = 0; b < kImages; ++b) sums[(k + w) * sums_stride + b] += total[w * kImages + b];
    }
}

// `codewords` is a multiple of V::tile_codewords. Images go in tiles of 8, 4, 2, 1: a tile's rows stay in the L1 cache.
template <class V>
void sign_sums(const uint32_t* words, size_t words_stride, size_t codewords, const int8_t* rows, size_t images,
               size_t lanes, size_t dims, int32_t* sums) {
    const size_t row_step = lanes * kDimsStep;
    for (size_t b = 0; b < images;) {
        const int8_t* first = rows + b / lanes * lanes * dims + b % lanes * kDimsStep;
        const size_t left = images - b;
        if (left >= 8) {
            sign_tile<V, 8>(words, words_stride, codewords, first, row_step, dims, sums + b, images), b += 8;
        } else if (left >= 4) {
            sign_tile<V, 4>(words, words_stride, codewords, first, row_step, dims, sums + b, images), b += 4;
        } else if (left >= 2) {
            sign_tile<V, 2>(words, words_stride, codewords, first, row_step, dims, sums + b, images), b += 2;
        } else {
            sign_tile<V, 1>(words, words_stride, codewords, first, row_step, dims, sums + b, images), b += 1;
        }
    }
}
