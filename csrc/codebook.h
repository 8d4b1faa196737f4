// Both kinds of codebook over batches: docs/codebook.md is the definition, engine/noisebook/codebook/reference.py its
// torch form. Arguments have been checked by the caller (module.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace noisebook {

struct Call {
    size_t batch, blocks, d;      // views: batch x blocks rows of d entries
    size_t count;                 // tokens of a view: one per bin, or any number where there is one bin
    uint64_t bins, atoms, bases;  // M, A, J (1 for `independent`)
    uint64_t seed;
    uint32_t step_index, first_block;  // the blocks have numbers from first_block on
    size_t threads;
    const Kernels* kernels;

    size_t padded() const {  // P
        size_t p = 1;
        while (p < d) p *= 2;
        return p;
    }
};

std::vector<const Kernels*> available_kernels();  // those of this processor, the fastest first

// residual [batch, blocks, d] -> tokens [batch, blocks, count]. Throws std::invalid_argument if an entry is not finite.
// select: the best signed atom of every bin. top: the `count` best of one bin, best first.
void hadamard_select(const Call& call, const float* residual, int64_t* tokens);
void independent_select(const Call& call, const float* residual, int64_t* tokens);
void hadamard_top(const Call& call, const float* residual, int64_t* tokens);
void independent_top(const Call& call, const float* residual, int64_t* tokens);

// The atom, unsigned, of largest score + bias: bias [blocks, bases * atoms], count = 1.
void hadamard_biased(const Call& call, const float* residual, const float* bias, int64_t* tokens);
void independent_biased(const Call& call, const float* residual, const float* bias, int64_t* tokens);

// tokens [batch, blocks, count] -> noise [batch, blocks, d]
void hadamard_noise(const Call& call, const int64_t* tokens, float* noise);
void independent_noise(const Call& call, const int64_t* tokens, float* noise);

}  // namespace noisebook
