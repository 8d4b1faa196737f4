// noisebook._C: arguments from Python are checked here, once; the rest of csrc/ trusts them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#include "codebook.h"
#include "nbk.h"
#include "parallel.h"

namespace py = pybind11;

namespace noisebook {
namespace {

constexpr uint64_t kMaxIndex = uint64_t(1) << 32, kMaxBlock = uint64_t(1) << 24, kMaxD = uint64_t(1) << 24;

std::atomic<const Kernels*> kernels_in_use{nullptr};
std::atomic<size_t> default_threads{1};

size_t processors() {  // those this process may use, not those of the machine
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return size_t(CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

[[noreturn]] void refuse(const std::string& why) { throw py::value_error(why); }

// A Python integer in [low, high]; everything else is a ValueError that names the argument.
uint64_t integer(const py::object& value, const char* name, uint64_t low, uint64_t high) {
    const std::string range = " must be an integer from " + std::to_string(low) + " to " + std::to_string(high);
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!index) {
        PyErr_Clear();
        refuse(name + range);
    }
    const uint64_t x = PyLong_AsUnsignedLongLong(index.ptr());
    if (PyErr_Occurred()) {  // negative, or above 2^64 - 1
        PyErr_Clear();
        refuse(name + range);
    }
    if (x < low || x > high) refuse(name + range);
    return x;
}

template <class T>
py::array_t<T> checked_array(const py::object& value, py::ssize_t dimensions, const char* what) {
    constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if (!py::isinstance<py::array>(value)) refuse(std::string(what) + " numpy array");
    const auto array = py::reinterpret_borrow<py::array>(value);
    if (array.ndim() != dimensions || !array.dtype().equal(py::dtype::of<T>()) ||
        !(array.flags() & py::array::c_style) || !(array.flags() & kAligned))
        refuse(std::string(what) + " C-contiguous numpy array");
    return py::reinterpret_borrow<py::array_t<T>>(array);
}

struct Arguments {
    py::object bins, atoms, bases, step_index, seed, block, threads;
};

// `array` is the residual or the tokens: [B, U, ...], of B images and U blocks.
Call checked(const py::array& array, uint64_t d, bool hadamard, const Arguments& args) {
    Call call{};
    call.batch = size_t(array.shape(0)), call.blocks = size_t(array.shape(1)), call.d = d;
    const uint64_t p = call.padded();
    call.bins = integer(args.bins, "bins", 1, p);
    if (call.bins & (call.bins - 1)) refuse("bins must be a power of two");
    call.atoms = integer(args.atoms, "atoms", 1, (hadamard ? p : kMaxIndex) / call.bins);
    call.bases = integer(args.bases, "bases", 1, kMaxIndex);
    call.step_index = uint32_t(integer(args.step_index, "step_index", 0, kMaxIndex - 1));
    call.seed = integer(args.seed, "seed", 0, UINT64_MAX);
    call.first_block = uint32_t(integer(args.block, "block", 0, kMaxBlock));
    if (call.first_block + uint64_t(call.blocks) > kMaxBlock)
        refuse("block plus the number of blocks must not exceed 2^24");
    call.threads = size_t(integer(args.threads, "threads", 0, 1 << 16));
    if (!call.threads) call.threads = default_threads;
    call.kernels = kernels_in_use;
    return call;
}

using Choose = void (*)(const Call&, const float*, int64_t*);
using Biased = void (*)(const Call&, const float*, const float*, int64_t*);
using Noise = void (*)(const Call&, const int64_t*, float*);

py::array_t<float> checked_residual(const py::object& residual) {
    const auto array = checked_array<float>(residual, 3, "the residual must be a float32 [B, U, D]");
    if (array.shape(2) < 1 || uint64_t(array.shape(2)) > kMaxD) refuse("the residual must have 1 to 2^24 dimensions");
    return array;
}

// Runs rule(residual, tokens) without the GIL.
template <class Rule>
py::array_t<int64_t> chosen(const Call& call, const py::array_t<float>& residual, const Rule& rule) {
    py::array_t<int64_t> tokens({call.batch, call.blocks, call.count});
    const float* from = residual.data();
    int64_t* to = tokens.mutable_data();
    py::gil_scoped_release release;
    rule(from, to);
    return tokens;
}

py::array_t<int64_t> select(const py::object& residual, bool hadamard, Choose rule, const Arguments& args) {
    const auto array = checked_residual(residual);
    Call call = checked(array, uint64_t(array.shape(2)), hadamard, args);
    call.count = size_t(call.bins);
    return chosen(call, array, [&](const float* from, int64_t* to) { rule(call, from, to); });
}

py::array_t<int64_t> top(const py::object& residual, const py::object& count, bool hadamard, Choose rule,
                         const Arguments& args) {
    const auto array = checked_residual(residual);
    Call call = checked(array, uint64_t(array.shape(2)), hadamard, args);
    call.count = size_t(integer(count, "count", 1, std::min(call.atoms * call.bases, kMaxD)));
    return chosen(call, array, [&](const float* from, int64_t* to) { rule(call, from, to); });
}

py::array_t<int64_t> biased(const py::object& residual, const py::object& bias, bool hadamard, Biased rule,
                            Arguments args) {
    const auto array = checked_residual(residual);
    const auto biases = checked_array<float>(bias, 2, "the bias must be a float32 [U, K]");
    if (!hadamard) args.atoms = py::int_(biases.shape(1));
    Call call = checked(array, uint64_t(array.shape(2)), hadamard, args);
    call.count = 1;
    if (uint64_t(biases.shape(0)) != call.blocks || uint64_t(biases.shape(1)) != call.atoms * call.bases)
        refuse("the bias must have a row per block and a column per atom");
    const float* added = biases.data();
    bool sound = true;  // no early exit, so that compilers vectorise the loop
    for (size_t i = 0, size = size_t(biases.size()); i < size; ++i) sound &= added[i] < HUGE_VALF;
    if (!sound) refuse("the bias must be finite or -inf");
    return chosen(call, array, [&](const float* from, int64_t* to) { rule(call, from, added, to); });
}

py::array_t<float> noise(const py::object& tokens, const py::object& d, bool hadamard, Noise rule,
                         const Arguments& args) {
    const auto array = checked_array<int64_t>(tokens, 3, "the tokens must be an int64 [B, U, M]");
    Call call = checked(array, integer(d, "d", 1, kMaxD), hadamard, args);
    call.count = size_t(array.shape(2));
    if (call.bins == 1 ? !call.count : call.count != call.bins)
        refuse("the tokens must have one column per bin, or any number of columns above 0 where there is one bin");
    if (call.count >> 31) refuse("a view must have fewer than 2^31 tokens");
    const int64_t* from = array.data();
    for (py::ssize_t i = 0, size = array.size(); i < size; ++i)  // the vocab_size 2 J A itself may not fit 64 bits
        if (from[i] < 0 || uint64_t(from[i] >> 1) / call.atoms >= call.bases)
            refuse("a token is not in [0, 2 * bases * atoms)");
    py::array_t<float> out({call.batch, call.blocks, call.d});
    float* to = out.mutable_data();
    py::gil_scoped_release release;
    rule(call, from, to);
    return out;
}

void set_isa(const std::string& name) {
    for (const Kernels* kernels : available_kernels()) {
        if (name != kernels->name) continue;
        kernels_in_use = kernels;
        return;
    }
    refuse("this processor or build has no instruction set " + name);
}

// ---- the `.nbk` file ------------------------------------------------------------------------------------------------
class Bytes {  // those of any object with a contiguous buffer; they stay valid while this object lives
  public:
    Bytes(const py::object& value, const char* name) {
        if (PyObject_GetBuffer(value.ptr(), &view_, PyBUF_SIMPLE) == 0) return;
        PyErr_Clear();
        refuse(std::string(name) + " must be bytes");
    }
    ~Bytes() { PyBuffer_Release(&view_); }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
    size_t size() const { return size_t(view_.len); }

  private:
    Py_buffer view_{};
};

std::vector<nbk::Run> checked_runs(const py::object& value) {
    const auto array = checked_array<int64_t>(value, 2, "the runs must be an int64 [R, 2]");
    if (array.shape(1) != 2 || uint64_t(array.shape(0)) > nbk::kMaxRuns)
        refuse("the runs must be at most 2^20 rows of two");
    std::vector<nbk::Run> runs(size_t(array.shape(0)));
    for (size_t i = 0; i < runs.size(); ++i) {
        // a negative number becomes one above the limits
        runs[i] = {uint64_t(array.data()[2 * i]), uint64_t(array.data()[2 * i + 1])};
        if (runs[i].count > nbk::kMaxCount) refuse("a run must have 0 to 2^40 tokens");
        if (runs[i].vocab_size < 2 || runs[i].vocab_size > nbk::kMaxVocabSize)
            refuse("a vocab_size must be from 2 to 2^62");
    }
    return runs;
}

uint32_t nbk_crc32c(const py::object& data) {
    const Bytes bytes(data, "data");
    py::gil_scoped_release release;
    return nbk::crc32c(bytes.data(), bytes.size());
}

py::object nbk_parse(const py::object& data) {
    const Bytes bytes(data, "data");
    nbk::Fields f;
    nbk::Refusal refusal;
    {
        py::gil_scoped_release release;
        refusal = nbk::parse(bytes.data(), bytes.size(), f);
    }
    if (refusal != nbk::Refusal::none) return py::str(nbk::name(refusal));
    const py::bytes hash(reinterpret_cast<const char*>(bytes.data()) + 4, 8);
    return py::make_tuple(f.flags, f.preset, hash, f.height, f.width, f.spec_at, f.spec_size, f.steps, f.tokens,
                          f.payload_at);
}

py::object nbk_unpack(const py::object& payload, const py::object& runs) {
    const Bytes bytes(payload, "the payload");
    const auto found = checked_runs(runs);
    nbk::Refusal refusal = nbk::check(bytes.data(), bytes.size(), found.data(), found.size());
    if (refusal != nbk::Refusal::none) return py::str(nbk::name(refusal));
    size_t count = 0;
    for (const nbk::Run& run : found) count += size_t(run.count);
    py::array_t<int64_t> tokens{py::ssize_t(count)};
    int64_t* to = tokens.mutable_data();
    {
        py::gil_scoped_release release;
        refusal = nbk::unpack(bytes.data(), found.data(), found.size(), to);
    }
    if (refusal != nbk::Refusal::none) return py::str(nbk::name(refusal));
    return tokens;
}

py::object nbk_pack(const py::object& tokens, const py::object& runs) {
    const auto array = checked_array<int64_t>(tokens, 1, "the tokens must be an int64 [L]");
    const auto found = checked_runs(runs);
    uint64_t count = 0;
    for (const nbk::Run& run : found) count += run.count;  // at most 2^60
    if (count != uint64_t(array.size())) refuse("the runs must have as many tokens as there are");
    std::string out(size_t(nbk::packed_bits(found.data(), found.size()) + 7) / 8, '\0');
    size_t bad = 0;
    const int64_t* from = array.data();
    nbk::Refusal refusal;
    {
        py::gil_scoped_release release;
        refusal = nbk::pack(from, found.data(), found.size(), reinterpret_cast<uint8_t*>(out.data()), bad);
    }
    if (refusal != nbk::Refusal::none) return py::int_(bad);
    return py::bytes(out);
}

// The tables of the models, checked; they read the arrays' memory.
std::vector<nbk::Law> checked_laws(const std::vector<py::array_t<uint32_t>>& arrays) {
    std::vector<nbk::Law> laws;
    for (size_t i = 0; i < arrays.size(); i += 2) {
        const uint32_t *begins = arrays[i].data(), *below = arrays[i + 1].data();
        const auto size = size_t(arrays[i].size());
        bool rising = size > 1 && size == size_t(arrays[i + 1].size()) && begins[0] == 0 && below[0] == 0;
        for (size_t p = 1; rising && p < size; ++p)
            rising = begins[p] > begins[p - 1] && below[p] > below[p - 1] &&
                     below[p] - below[p - 1] >= begins[p] - begins[p - 1];
        if (!rising || begins[size - 1] < 2) refuse("a law must be two arrays that rise from 0, of 2 or more symbols");
        laws.push_back({begins, below, size - 1});
    }
    return laws;
}

py::object nbk_decode_coded(const py::object& data, const py::object& runs, const py::sequence& laws) {
    const Bytes bytes(data, "data");
    const auto rows = checked_array<int64_t>(runs, 2, "the runs must be an int64 [R, 2]");
    if (rows.shape(1) != 2 || uint64_t(rows.shape(0)) > nbk::kMaxRuns)
        refuse("the runs must be at most 2^20 rows of two");
    std::vector<py::array_t<uint32_t>> arrays;
    for (const py::handle& law : laws) {
        const auto pair = py::reinterpret_borrow<py::object>(law);
        if (!py::isinstance<py::tuple>(pair) || py::len(pair) != 2) refuse("a law must be two arrays");
        for (int i = 0; i < 2; ++i)
            arrays.push_back(checked_array<uint32_t>(pair[py::int_(i)], 1, "a law must be two uint32"));
    }
    const auto found = checked_laws(arrays);
    std::vector<nbk::Coded> coded(size_t(rows.shape(0)));
    uint64_t count = 0;
    for (size_t i = 0; i < coded.size(); ++i) {
        const auto law = uint64_t(rows.data()[2 * i + 1]);
        coded[i].count = uint64_t(rows.data()[2 * i]), count += coded[i].count;
        if (coded[i].count > nbk::kMaxCoded || count > nbk::kMaxCoded) refuse("there must be at most 2^24 tokens");
        if (law >= found.size()) refuse("a run must name one of the laws");
        coded[i].law = &found[size_t(law)];
    }
    py::array_t<int64_t> tokens{py::ssize_t(count)};
    int64_t* to = tokens.mutable_data();
    nbk::CodedEnd end{};
    bool valid;
    {
        py::gil_scoped_release release;
        valid = nbk::decode_coded(bytes.data(), bytes.size(), coded.data(), coded.size(), to, end);
    }
    if (!valid) return py::none();
    return py::make_tuple(tokens, end.place, end.code, end.width);
}

}  // namespace
}  // namespace noisebook

PYBIND11_MODULE(_C, m) {
    using namespace noisebook;
    using Any = const py::object&;
    m.doc() =
        "Both kinds of codebook on the CPU, as docs/codebook.md defines them, and the .nbk file, as docs/format.md "
        "does.";
    kernels_in_use = available_kernels().front();
    default_threads = processors();

    const py::arg residual("residual"), tokens("tokens"), bias("bias"), count("count"), d("d"), bins("bins");
    const py::arg atoms("atoms"), bases("bases"), step_index("step_index"), seed("seed");
    const auto block = py::arg("block") = 0, threads = py::arg("threads") = 0;
    m.def(
        "hadamard_select",
        [](Any residual, Any bins, Any atoms, Any bases, Any step_index, Any seed, Any block, Any threads) {
            return select(residual, true, hadamard_select, {bins, atoms, bases, step_index, seed, block, threads});
        },
        residual, bins, atoms, bases, step_index, seed, block, threads,
        "float32 [B, U, D] -> int64 [B, U, M]: one signed atom per bin; view u has the streams of block + u.");
    m.def(
        "hadamard_top",
        [](Any residual, Any count, Any atoms, Any bases, Any step_index, Any seed, Any block, Any threads) {
            return top(residual, count, true, hadamard_top,
                       {py::int_(1), atoms, bases, step_index, seed, block, threads});
        },
        residual, count, atoms, bases, step_index, seed, block, threads,
        "float32 [B, U, D] -> int64 [B, U, count]: the signed atoms of largest |score|, best first.");
    m.def(
        "hadamard_biased",
        [](Any residual, Any bias, Any atoms, Any bases, Any step_index, Any seed, Any block, Any threads) {
            return biased(residual, bias, true, hadamard_biased,
                          {py::int_(1), atoms, bases, step_index, seed, block, threads});
        },
        residual, bias, atoms, bases, step_index, seed, block, threads,
        "float32 [B, U, D], float32 [U, bases * atoms] -> int64 [B, U, 1]: twice the atom of largest score + bias.");
    m.def(
        "hadamard_noise",
        [](Any tokens, Any d, Any bins, Any atoms, Any bases, Any step_index, Any seed, Any block, Any threads) {
            return noise(tokens, d, true, hadamard_noise, {bins, atoms, bases, step_index, seed, block, threads});
        },
        tokens, d, bins, atoms, bases, step_index, seed, block, threads,
        "int64 [B, U, M] -> float32 [B, U, D] of root mean square 1; any M where bins is 1.");
    m.def(
        "independent_select",
        [](Any residual, Any bins, Any atoms, Any step_index, Any seed, Any block, Any threads) {
            return select(residual, false, independent_select,
                          {bins, atoms, py::int_(1), step_index, seed, block, threads});
        },
        residual, bins, atoms, step_index, seed, block, threads,
        "float32 [B, U, D] -> int64 [B, U, M]: one signed codeword per bin, by exact int8 scores.");
    m.def(
        "independent_top",
        [](Any residual, Any count, Any atoms, Any step_index, Any seed, Any block, Any threads) {
            return top(residual, count, false, independent_top,
                       {py::int_(1), atoms, py::int_(1), step_index, seed, block, threads});
        },
        residual, count, atoms, step_index, seed, block, threads,
        "float32 [B, U, D] -> int64 [B, U, count]: the signed codewords of largest |int8 score|, best first.");
    m.def(
        "independent_biased",
        [](Any residual, Any bias, Any step_index, Any seed, Any block, Any threads) {
            return biased(residual, bias, false, independent_biased,
                          {py::int_(1), py::none(), py::int_(1), step_index, seed, block, threads});
        },
        residual, bias, step_index, seed, block, threads,
        "float32 [B, U, D], float32 [U, K] -> int64 [B, U, 1]: twice the codeword of largest score + bias.");
    m.def(
        "independent_noise",
        [](Any tokens, Any d, Any bins, Any atoms, Any step_index, Any seed, Any block, Any threads) {
            return noise(tokens, d, false, independent_noise,
                         {bins, atoms, py::int_(1), step_index, seed, block, threads});
        },
        tokens, d, bins, atoms, step_index, seed, block, threads,
        "int64 [B, U, M] -> float32 [B, U, D] of root mean square 1; any M where bins is 1.");

    m.def("nbk_crc32c", &nbk_crc32c, py::arg("data"), "CRC-32C of bytes.");
    m.def("nbk_parse", &nbk_parse, py::arg("data"),
          "Bytes of a file -> what container.Frame holds, or the name of a refusal.");
    m.def("nbk_unpack", &nbk_unpack, py::arg("payload"), py::arg("runs"),
          "Bytes, int64 [R, 2] of (count, vocab_size) -> int64 [L], or the name of a refusal.");
    m.def("nbk_pack", &nbk_pack, py::arg("tokens"), py::arg("runs"),
          "int64 [L], int64 [R, 2] -> bytes, or the place of the first token outside its vocabulary.");
    m.def("nbk_decode_coded", &nbk_decode_coded, py::arg("data"), py::arg("runs"), py::arg("laws"),
          "Bytes, int64 [R, 2] of (count, which law), entropy.ZipfLaws as pairs of uint32 -> (int64 [L], bytes read, code, "
          "width; 0: 2^64), or None where no symbols have such bytes.");

    m.def("isa", [] { return std::string(kernels_in_use.load()->name); }, "The instruction set in use.");
    m.def("set_isa", &set_isa, py::arg("name"), "Use this instruction set; ValueError if the processor lacks it.");
    m.def(
        "available_isas",
        [] {
            py::list names;
            for (const Kernels* kernels : available_kernels()) names.append(kernels->name);
            return names;
        },
        "Instruction sets of this processor, the fastest first.");
    m.def(
        "set_threads", [](Any n) { default_threads = size_t(integer(n, "threads", 1, 1 << 16)); }, py::arg("threads"),
        "How many threads threads=0 means.");
    m.def("get_threads", [] { return default_threads.load(); }, "How many threads threads=0 means.");
}
