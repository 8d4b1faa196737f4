// Philox4x32-10 (Salmon et al., 2011) over the lanes of one vector type. Include inside an unnamed namespace.
//
// Lane l computes draw transposed_iota(l), an order chosen so that store_transposed needs only unpack instructions to
// write the four words of each draw next to each other.

template <class U>
void philox_words(uint32_t* out, size_t draws, Stream stream, uint32_t index0, uint32_t draw0, int log_per_index) {
    const U within = U::set((uint32_t(1) << log_per_index) - 1);
    for (size_t n = 0; n < draws; n += U::width) {
        const U linear = U::transposed_iota() + U::set(uint32_t(n));
        U c0 = U::set(draw0) + (linear & within), c1 = U::set(index0) + linear.shifted_right(log_per_index);
        U c2 = U::set(stream.step_index), c3 = U::set(stream.purpose);
        uint32_t k0 = uint32_t(stream.seed), k1 = uint32_t(stream.seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
            U high0, low0, high1, low1;
            c0.multiply(0xD2511F53u, high0, low0);
            c2.multiply(0xCD9E8D57u, high1, low1);
            c0 = xor3(high1, c1, U::set(k0)), c1 = low1;
            c2 = xor3(high0, c3, U::set(k1)), c3 = low0;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        U::store_transposed(out + kDrawWords * n, c0, c1, c2, c3);
    }
}
