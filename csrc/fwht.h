// The Walsh-Hadamard transform over one vector type. Include inside an unnamed namespace.
//
// The stages always run in the order h = 1, 2, 4, ...: every output is then the same tree of float additions whatever
// the vector width, so all instruction sets give the same bits. Depth first, so that a part is finished while it is in
// cache: 2^21 floats cross the last-level cache three times, not twenty-one.

template <int N, class V>
inline __attribute__((always_inline)) void butterflies(V (&x)[N]) {
#pragma GCC unroll 4
    for (int h = 1; h < N; h *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
            if (i & h) continue;
            const V a = x[i], b = x[i + h];
            x[i] = a + b, x[i + h] = a - b;
        }
    }
}

// All stages of N * width contiguous entries: those within a register first, then those across registers.
template <class V, int N, bool kFlip>
inline void transform_contiguous(const typename V::T* in, const uint32_t* flips, typename V::T* out, size_t first) {
    V x[N];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
        x[i] = V::load(in + i * V::width);
        if (kFlip) x[i] = x[i].flipped(flips, first + i * V::width);
        x[i] = x[i].transformed();
    }
    butterflies<N>(x);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i].store(out + i * V::width);
}

// The last log2 N stages of n entries, in the columns first ... last-1 of the matrix [N, n / N] that they are.
template <class V, int N>
void combine(typename V::T* data, size_t n, size_t first, size_t last) {
    const size_t stride = n / N;
    for (size_t offset = first; offset < last; offset += V::width) {
        V x[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) x[i] = V::load(data + offset + i * stride);
        butterflies<N>(x);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) x[i].store(data + offset + i * stride);
    }
}

// How many parts the last pass over n entries joins. Within the first-level cache as many as there are registers;
// above it at most 8, because its lines a power of two apart share one 8-way set.
template <class V>
int last_radix(size_t n) {
    constexpr size_t kRegisters = V::radix * V::width, kLeaf = kRegisters * V::radix;
    if (n <= kLeaf) return int(n / kRegisters);
    const int levels = __builtin_ctzll(n / kLeaf);
    return levels == 1 ? 2 : levels % 3 == 0 ? 8 : 4;
}

template <class V, bool kFlip>
void transform_recursive(const typename V::T* in, const uint32_t* flips, typename V::T* out, size_t n, size_t first) {
    constexpr int kRadix = V::radix, kWidth = V::width;
    if (n == size_t(kRadix * kWidth)) return transform_contiguous<V, kRadix, kFlip>(in, flips, out, first);
    const int radix = last_radix<V>(n);
    const size_t part = n / radix;
    for (int i = 0; i < radix; ++i)
        transform_recursive<V, kFlip>(in + i * part, flips, out + i * part, part, first + i * part);
    switch (radix) {
        case 2: return combine<V, 2>(out, n, 0, part);
        case 4: return combine<V, 4>(out, n, 0, part);
        case 8: return combine<V, 8>(out, n, 0, part);
        default: return combine<V, kRadix>(out, n, 0, part);
    }
}

template <class V, bool kFlip>
void transform_any(const typename V::T* in, const uint32_t* flips, typename V::T* out, size_t n) {
    using T = typename V::T;
    constexpr size_t kWidth = V::width;
    if (n >= V::radix * kWidth) return transform_recursive<V, kFlip>(in, flips, out, n, 0);
    switch (n / kWidth) {
        case 8: return transform_contiguous<V, 8, kFlip>(in, flips, out, 0);
        case 4: return transform_contiguous<V, 4, kFlip>(in, flips, out, 0);
        case 2: return transform_contiguous<V, 2, kFlip>(in, flips, out, 0);
        case 1: return transform_contiguous<V, 1, kFlip>(in, flips, out, 0);
    }
    if (n >= kWidth) __builtin_unreachable();  // one of the cases above
    T x[kWidth];
    for (size_t d = 0; d < n; ++d) x[d] = kFlip && (flips[0] >> d & 1) ? -in[d] : in[d];
    for (size_t h = 1; h < n; h *= 2) {
        for (size_t d = 0; d < n; ++d) {
            if (d & h) continue;
            const T a = x[d], b = x[d + h];
            x[d] = a + b, x[d + h] = a - b;
        }
    }
    for (size_t d = 0; d < n; ++d) out[d] = x[d];
}

template <class V>
void transform(const typename V::T* in, const uint32_t* flips, typename V::T* out, size_t n) {
    flips ? transform_any<V, true>(in, flips, out, n) : transform_any<V, false>(in, flips, out, n);
}
