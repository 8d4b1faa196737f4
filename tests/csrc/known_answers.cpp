// Known answers of csrc/ from a program without Python: known_answers FILE. tests/csrc/test_cross_compile.py writes
// FILE, compiles this program and runs it. Exits with 1 at the first answer that is wrong.
//
// FILE is words and unsigned numbers with spaces between them. A list is its length, then its numbers; a float is the
// number that its 32 bits are. One record follows another:
//   hadamard|independent RULE batch blocks d count bins atoms bases seed step_index first_block
//       list residual, list bias, list tokens, list noise   (what the rule does not use is empty)
//   crc      list bytes, checksum
//   parse    list bytes, name of a refusal or "none", list of the fields
//   pack     list runs (count and vocab_size of each), list tokens, list payload
//   unpack   list runs, list payload, name of a refusal
// RULE is select, top, biased or noise. The list of noise may be shorter than the noise: its first entries are
// compared.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <type_traits>
#include <vector>

#include "codebook.h"
#include "nbk.h"

using namespace noisebook;

namespace {

std::ifstream input;
size_t records = 0;

void require(bool right, const std::string& what) {
    if (right) return;
    std::fprintf(stderr, "record %zu: %s\n", records, what.c_str());
    std::exit(1);
}

std::string word() {
    std::string text;
    require(bool(input >> text), "the file is cut off");
    return text;
}

uint64_t number() {
    uint64_t x = 0;
    require(bool(input >> x), "not a number");
    return x;
}

template <class T>
std::vector<T> list() {
    std::vector<T> out(number());
    for (T& x : out) {
        if constexpr (std::is_same_v<T, float>) {
            const auto bits = uint32_t(number());
            std::memcpy(&x, &bits, 4);
        } else {
            x = T(number());
        }
    }
    return out;
}

std::vector<nbk::Run> runs() {
    const auto numbers = list<uint64_t>();
    std::vector<nbk::Run> out(numbers.size() / 2);
    for (size_t i = 0; i < out.size(); ++i) out[i] = {numbers[2 * i], numbers[2 * i + 1]};
    return out;
}

std::string name_of(nbk::Refusal refusal) { return refusal == nbk::Refusal::none ? "none" : nbk::name(refusal); }

void check_rule(bool hadamard) {
    const std::string rule = word();
    Call call{};
    call.batch = number(), call.blocks = number(), call.d = number(), call.count = number();
    call.bins = number(), call.atoms = number(), call.bases = number(), call.seed = number();
    call.step_index = uint32_t(number()), call.first_block = uint32_t(number());
    const auto residual = list<float>(), bias = list<float>();
    const auto tokens = list<int64_t>();
    const auto noise = list<float>();
    for (const Kernels* kernels : available_kernels()) {
        for (const size_t threads : {1, 3}) {
            call.kernels = kernels, call.threads = threads;
            const std::string where = rule + " by " + std::to_string(threads) + " threads, " + kernels->name;
            if (rule == "noise") {
                std::vector<float> out(call.batch * call.blocks * call.d);
                (hadamard ? hadamard_noise : independent_noise)(call, tokens.data(), out.data());
                require(!noise.empty() && !std::memcmp(out.data(), noise.data(), 4 * noise.size()), where);
                continue;
            }
            std::vector<int64_t> out(call.batch * call.blocks * call.count, -1);
            if (rule == "select") {
                (hadamard ? hadamard_select : independent_select)(call, residual.data(), out.data());
            } else if (rule == "top") {
                (hadamard ? hadamard_top : independent_top)(call, residual.data(), out.data());
            } else {
                require(rule == "biased", "no rule " + rule);
                (hadamard ? hadamard_biased : independent_biased)(call, residual.data(), bias.data(), out.data());
            }
            require(out == tokens, where);
        }
    }
}

void check_crc() {
    const auto bytes = list<uint8_t>();
    const auto checksum = uint32_t(number());
    require(nbk::crc32c(bytes.data(), bytes.size()) == checksum, "crc32c");
    require(nbk::crc32c_portable(bytes.data(), bytes.size()) == checksum, "crc32c_portable");
}

void check_parse() {
    const auto bytes = list<uint8_t>();
    const std::string refusal = word();
    const auto fields = list<uint64_t>();
    nbk::Fields f;
    const nbk::Refusal found = nbk::parse(bytes.data(), bytes.size(), f);
    require(name_of(found) == refusal, "parse: " + name_of(found) + " instead of " + refusal);
    if (found != nbk::Refusal::none) return;
    const std::vector<uint64_t> read{f.flags,     f.preset, f.height, f.width,      f.spec_at,
                                     f.spec_size, f.steps,  f.tokens, f.payload_at, f.payload_size};
    require(read == fields, "the fields of a file");
}

void check_pack() {
    const auto table = runs();
    const auto tokens = list<int64_t>();
    const auto payload = list<uint8_t>();
    require((nbk::packed_bits(table.data(), table.size()) + 7) / 8 == payload.size(), "packed_bits");
    std::vector<uint8_t> packed(payload.size());
    size_t bad = 0;
    require(nbk::pack(tokens.data(), table.data(), table.size(), packed.data(), bad) == nbk::Refusal::none, "pack");
    require(packed == payload, "the packed bytes");
    std::vector<int64_t> out(tokens.size(), -1);
    require(nbk::check(payload.data(), payload.size(), table.data(), table.size()) == nbk::Refusal::none, "check");
    require(nbk::unpack(payload.data(), table.data(), table.size(), out.data()) == nbk::Refusal::none, "unpack");
    require(out == tokens, "the unpacked tokens");
}

void check_unpack() {
    const auto table = runs();
    const auto payload = list<uint8_t>();
    const std::string refusal = word();
    size_t count = 0;
    for (const nbk::Run& run : table) count += run.count;
    std::vector<int64_t> out(count);
    nbk::Refusal found = nbk::check(payload.data(), payload.size(), table.data(), table.size());
    if (found == nbk::Refusal::none) found = nbk::unpack(payload.data(), table.data(), table.size(), out.data());
    require(name_of(found) == refusal, "unpack: " + name_of(found) + " instead of " + refusal);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 2) input.open(argv[1]);
    require(input.is_open(), "known_answers FILE");
    for (std::string kind; input >> kind; ++records) {
        if (kind == "hadamard" || kind == "independent") {
            check_rule(kind == "hadamard");
        } else if (kind == "crc") {
            check_crc();
        } else if (kind == "parse") {
            check_parse();
        } else if (kind == "pack") {
            check_pack();
        } else {
            require(kind == "unpack", "no record " + kind);
            check_unpack();
        }
    }
    std::printf("%zu right by", records);
    for (const Kernels* kernels : available_kernels()) std::printf(" %s", kernels->name);
    std::printf("\n");
}
