// Both codebook laws over batches: docs/codebook.md is the definition, engine/noisebook/codebook_reference.py its torch
// form. Arguments have been checked by the caller (module.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace noisebook {

struct Call {
    size_t batch, units, d;           // views: batch x units rows of d entries
    uint64_t bins, atoms, bases;      // M, A, J (1 for `independent`)
    uint64_t seed;
    uint32_t step, unit;              // units count from `unit`
    size_t threads;
    const Kernels* kernels;

    size_t padded() const {  // P
        size_t p = 1;
        while (p < d) p *= 2;
        return p;
    }
};

// residual [batch, units, d] -> tokens [batch, units, bins]. Throws std::invalid_argument if an entry is not finite.
void hadamard_select(const Call& call, const float* residual, int64_t* tokens);
void independent_select(const Call& call, const float* residual, int64_t* tokens);

// tokens [batch, units, bins] -> noise [batch, units, d]
void hadamard_noise(const Call& call, const int64_t* tokens, float* noise);
void independent_noise(const Call& call, const int64_t* tokens, float* noise);

}  // namespace noisebook
