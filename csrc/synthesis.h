// What synthesis does beside transforms. Include inside an unnamed namespace. The last two are plain C++, from which
// the compiler makes vectors of each file's instruction set.

// sum += flipped x
template <class V>
void add_flipped(typename V::T* sum, const typename V::T* x, const uint32_t* flips, size_t n) {
    size_t d = 0;
    for (; d + V::width <= n; d += V::width) (V::load(sum + d) + V::load(x + d).flipped(flips, d)).store(sum + d);
    for (; d < n; ++d) sum[d] += flips[d / 32] >> (d % 32) & 1 ? -x[d] : x[d];
}

// sum += flipped x, the same x everywhere
template <class V>
void add_signs(typename V::T* sum, typename V::T x, const uint32_t* flips, size_t n) {
    const V same = V::set(x);
    size_t d = 0;
    for (; d + V::width <= n; d += V::width) (V::load(sum + d) + same.flipped(flips, d)).store(sum + d);
    for (; d < n; ++d) sum[d] += flips[d / 32] >> (d % 32) & 1 ? -x : x;
}

// out = flipped x, rounded, times factor. The integers are flipped, never the floats: -0 is another bit pattern.
template <class V, class F>
void scale_flipped(const typename V::T* x, const uint32_t* flips, float factor, float* out, size_t n) {
    const F factors = F::set(factor);
    size_t d = 0;
    for (; d + V::width <= n; d += V::width) (V::load(x + d).flipped(flips, d).rounded() * factors).store(out + d);
    for (; d < n; ++d) out[d] = float(flips[d / 32] >> (d % 32) & 1 ? -x[d] : x[d]) * factor;
}

uint32_t max_abs_i32(const int32_t* x, size_t n) {
    uint32_t most = 0;
    for (size_t d = 0; d < n; ++d) {
        const uint32_t size = x[d] < 0 ? 0u - uint32_t(x[d]) : uint32_t(x[d]);
        most = size > most ? size : most;
    }
    return most;
}

// Two sums, of which neither overflows below 2^32 entries: of the low and of the high halves of the squares.
void add_squares(const int32_t* x, size_t n, uint64_t* sums) {
    uint64_t low = 0, high = 0;
    for (size_t d = 0; d < n; ++d) {
        const uint32_t size = x[d] < 0 ? 0u - uint32_t(x[d]) : uint32_t(x[d]);
        const uint64_t square = uint64_t(size) * size;
        low += uint32_t(square), high += square >> 32;
    }
    sums[0] += low, sums[1] += high;
}
