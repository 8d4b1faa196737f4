// Which of the kernels the processor can run, asked at run time.
#include "codebook.h"

namespace noisebook {

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found;
#ifdef NOISEBOOK_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        found.push_back(&avx512_kernels);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels);
#endif
    found.push_back(&portable_kernels);
    return found;
}

}  // namespace noisebook
