// The largest biased score. Include inside an unnamed namespace: plain C++, from which the compiler makes vectors of
// each file's instruction set.

double max_biased(const float* x, const float* bias, double factor, size_t n) {
    constexpr size_t kLanes = 32;
    double most[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) most[lane] = -__builtin_inf();
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
            const double key = factor * double(x[i + lane]) + double(bias[i + lane]);
            most[lane] = key > most[lane] ? key : most[lane];
        }
    }
    for (; i < n; ++i) {
        const double key = factor * double(x[i]) + double(bias[i]);
        most[0] = key > most[0] ? key : most[0];
    }
    for (size_t half = kLanes / 2; half; half /= 2)
        for (size_t lane = 0; lane < half; ++lane)
            most[lane] = most[lane + half] > most[lane] ? most[lane + half] : most[lane];
    return most[0];
}
