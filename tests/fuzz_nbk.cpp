// Fuzzing of csrc/nbk.cpp: fuzz_nbk CORPUS SEED FIRST COUNT [DUMP]. bench/reliability/fuzz.py compiles it with sanitizers.
//
// Input i of a seed is the same in every run, so that a failure is `SEED i 1`. Each goes through parse, check and
// unpack; whatever is accepted must come out of a writer of this file's own as the same bytes. An input is never a file
// of the corpus, so that of those mutated without a new checksum all must be refused (but for one in 2^32). Prints
// counts as JSON. With DUMP the inputs, their runs and the verdicts are written there, for a comparison with the Python
// definition.
//
// CORPUS and DUMP are records: u32 bytes, u32 runs, then (u64 count, u64 vocab_size) each, then the bytes; in DUMP with
// one byte of verdict (Refusal) before the bytes. All little-endian.
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

#include "../csrc/nbk.h"

using namespace noisebook::nbk;
using Bytes = std::vector<uint8_t>;

namespace {

uint64_t current;  // the input at work

void tell() { std::fprintf(stderr, "input %llu\n", static_cast<unsigned long long>(current)); }

[[noreturn]] void fail(const char* why) {
    std::fprintf(stderr, "%s\n", why);
    tell();
    std::exit(3);
}

struct Random {  // splitmix64
    uint64_t state;
    uint64_t next() {
        uint64_t x = state += 0x9E3779B97F4A7C15u;
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
        x = (x ^ x >> 27) * 0x94D049BB133111EBu;
        return x ^ x >> 31;
    }
    uint64_t below(uint64_t n) { return next() % n; }
    bool one_in(uint64_t n) { return below(n) == 0; }
};

struct Input {
    Bytes bytes;
    std::vector<Run> runs;
};

void put(Bytes& out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out.push_back(uint8_t(value >> 8 * i));
}

void reseal(Bytes& file) {
    if (file.size() < 4) return;
    const uint32_t crc = crc32c_portable(file.data(), file.size() - 4);
    for (size_t i = 0; i < 4; ++i) file[file.size() - 4 + i] = uint8_t(crc >> 8 * i);
}

// ---- inputs ---------------------------------------------------------------------------------------------------------
constexpr uint64_t kEdges[] = {0,   1,   2,   3,     4,     5,        15,         16,         127,
                               128, 255, 256, 65535, 65536, 0xFFFFFF, 0x7FFFFFFF, 0xFFFFFFFC, 0xFFFFFFFF};

uint64_t edge(Random& random) { return random.one_in(3) ? random.next() : kEdges[random.below(std::size(kEdges))]; }

void mutate(Bytes& file, const std::vector<Input>& corpus, Random& random) {
    const size_t place = file.empty() ? 0 : random.below(file.size());
    const size_t length = 1 + random.below(random.one_in(4) ? 64 : 4);
    switch (random.below(8)) {
        case 0:
        case 1:
            if (!file.empty()) file[place] ^= uint8_t(1 << random.below(8));
            break;
        case 2:
            for (size_t i = place; i < std::min(file.size(), place + length); ++i) file[i] = uint8_t(edge(random));
            break;
        case 3: file.resize(place); break;
        case 4: put(file, random.next(), int(random.below(9))); break;
        case 5:
            file.erase(file.begin() + long(place), file.begin() + long(std::min(file.size(), place + length)));
            break;
        case 6: file.insert(file.begin() + long(place), length, uint8_t(edge(random))); break;
        default: {  // the tail of another file
            const Bytes& other = corpus[random.below(corpus.size())].bytes;
            file.resize(place);
            file.insert(file.end(), other.begin() + long(random.below(other.size())), other.end());
        }
    }
}

std::vector<Run> hostile_runs(Random& random) {
    std::vector<Run> runs(random.below(6));
    for (Run& run : runs) {
        run.count = random.one_in(12) ? random.next() >> 24 : random.below(random.one_in(8) ? 2000 : 40);
        run.vocab_size = 2 + (random.next() >> (2 + random.below(62))) % (kMaxVocabSize - 1);
        if (random.one_in(3)) run.vocab_size = uint64_t(1) << (1 + random.below(62));
    }
    return runs;
}

// Bits one by one, as docs/format.md says it. `wrong` sets a group to a value that no tokens have, where there is room.
Bytes written(const std::vector<Run>& runs, const std::vector<int64_t>& tokens, Random* wrong) {
    Bytes out;
    size_t bits = 0, at = 0;
    for (const Run& run : runs) {
        uint64_t size = 1;
        if (run.vocab_size & (run.vocab_size - 1))
            for (unsigned __int128 v = run.vocab_size; (v *= run.vocab_size) < (unsigned __int128)(1) << 63;) ++size;
        for (uint64_t done = 0; done < run.count;) {
            const uint64_t digits = std::min(size, run.count - done);
            unsigned __int128 number = 0, values = 1;
            for (uint64_t i = 0; i < digits; ++i, ++at)
                number = number * run.vocab_size + uint64_t(tokens[at]), values *= run.vocab_size;
            int width = 0;
            while ((unsigned __int128)(1) << width < values) ++width;
            if (wrong && wrong->one_in(20)) number = ((unsigned __int128)(1) << width) - 1;
            for (int bit = width; bit-- > 0; ++bits) {
                if (bits % 8 == 0) out.push_back(0);
                out.back() = uint8_t(out.back() | uint8_t(number >> bit & 1) << (7 - bits % 8));
            }
            done += digits;
        }
    }
    return out;
}

Input grammar(Random& random) {  // every field what it may be, at its edge, or what it must not be
    Input input{{0xB7, 0x4E}, hostile_runs(random)};
    Bytes& file = input.bytes;
    const auto flags = uint8_t(random.one_in(12) ? random.below(16) : random.below(3));
    file.push_back(uint8_t((random.one_in(16) ? random.below(16) : 1) << 4 | flags));
    put(file, random.next(), 1), put(file, random.next(), 8);
    put(file, random.one_in(16) ? 0 : 1 + random.below(65535), 2);
    put(file, random.one_in(16) ? 0 : edge(random), 2);
    if (flags & kSpec) {
        const uint64_t size = random.below(random.one_in(10) ? 3000 : 60);
        put(file, random.one_in(6) ? edge(random) : size, 4);
        for (uint64_t i = 0; i < size; ++i) file.push_back(uint8_t(random.next()));
    }
    if (flags & kDerived) put(file, edge(random), random.one_in(20) ? int(random.below(4)) : 4);
    uint64_t count = 0;
    for (const Run& run : input.runs) count += run.count;
    Bytes payload;
    if (count < 20000) {
        std::vector<int64_t> tokens;
        for (const Run& run : input.runs)
            for (uint64_t i = 0; i < run.count; ++i)
                tokens.push_back(int64_t(random.one_in(8) ? run.vocab_size - 1 : random.below(run.vocab_size)));
        payload = written(input.runs, tokens, random.one_in(4) ? &random : nullptr);
    }
    if (!payload.empty() && random.one_in(8)) payload.back() |= 1;
    if (random.one_in(12)) payload.resize(random.below(payload.size() + 3));
    file.insert(file.end(), payload.begin(), payload.end());
    put(file, random.next(), 4);
    if (!random.one_in(16)) reseal(file);
    return input;
}

// kinds of input: what is counted by kind
enum Kind { mutated, resealed, grammatical, kinds };
constexpr const char* kKinds[] = {"mutated", "mutated and resealed", "grammar"};

Input make(const std::vector<Input>& corpus, Random& random, Kind& kind) {
    kind = Kind(random.below(kinds));
    if (kind == grammatical) return grammar(random);
    Input input = corpus[random.below(corpus.size())];
    const auto unchanged = [&] {
        return std::any_of(corpus.begin(), corpus.end(), [&](const Input& i) { return i.bytes == input.bytes; });
    };
    do {
        for (uint64_t n = 1 + random.below(random.one_in(4) ? 8 : 2); n; --n) mutate(input.bytes, corpus, random);
        if (kind == resealed) reseal(input.bytes);
    } while (unchanged());
    if (random.one_in(10)) input.runs = hostile_runs(random);
    return input;
}

// ---- what is tried --------------------------------------------------------------------------------------------------
Bytes rewritten(const Bytes& file, const Fields& f, const Bytes& payload) {
    Bytes out{0xB7, 0x4E, uint8_t(kVersion << 4 | f.flags), f.preset};
    out.insert(out.end(), file.begin() + 4, file.begin() + 12);
    put(out, f.height, 2), put(out, f.width, 2);
    if (f.flags & kSpec) {
        put(out, f.spec_size, 4);
        out.insert(out.end(), file.begin() + long(f.spec_at), file.begin() + long(f.spec_at + f.spec_size));
    }
    if (f.flags & kDerived) put(out, uint64_t(f.tokens) << 8 | f.steps, 4);
    out.insert(out.end(), payload.begin(), payload.end());
    put(out, 0, 4);
    reseal(out);
    return out;
}

Refusal tried(const Input& input) {
    // exactly as long as the input, so that a byte too far is seen
    const Bytes file(input.bytes.begin(), input.bytes.end());
    if (crc32c(file.data(), file.size()) != crc32c_portable(file.data(), file.size())) fail("the two checksums differ");
    Fields f;
    Refusal refusal = parse(file.data(), file.size(), f);
    if (refusal != Refusal::none) return refusal;
    const Bytes payload(file.begin() + long(f.payload_at), file.begin() + long(f.payload_at + f.payload_size));
    if (rewritten(file, f, payload) != file) fail("a frame was accepted that is not written like this");
    refusal = check(payload.data(), payload.size(), input.runs.data(), input.runs.size());
    if (refusal != Refusal::none) return refusal;
    uint64_t count = 0;
    for (const Run& run : input.runs) count += run.count;
    if (count > 8 * payload.size()) fail("more tokens than bits");
    std::vector<int64_t> tokens(count);
    refusal = unpack(payload.data(), input.runs.data(), input.runs.size(), tokens.data());
    if (refusal != Refusal::none) return refusal;
    Bytes again(payload.size());
    size_t bad = 0;
    if (pack(tokens.data(), input.runs.data(), input.runs.size(), again.data(), bad) != Refusal::none)
        fail("a token that was read is refused");
    if (again != payload || written(input.runs, tokens, nullptr) != payload)
        fail("the payload is written in another way");
    if (count) {  // pack refuses what is outside, at its place
        const size_t place = size_t(current % count);
        tokens[place] = current % 2 ? -1 : int64_t(kMaxVocabSize);
        if (pack(tokens.data(), input.runs.data(), input.runs.size(), again.data(), bad) != Refusal::vocabulary ||
            bad != place)
            fail("a token outside its vocabulary was packed");
    }
    return Refusal::none;
}

uint64_t little(std::FILE* file, int bytes) {
    uint64_t x = 0;
    for (int i = 0; i < bytes; ++i) x |= uint64_t(std::fgetc(file) & 255) << 8 * i;
    return x;
}

std::vector<Input> read(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (!file) fail("no corpus");
    std::vector<Input> out;
    for (int c; (c = std::fgetc(file)) != EOF;) {
        std::ungetc(c, file);
        Input input;
        input.bytes.resize(little(file, 4));
        input.runs.resize(little(file, 4));
        for (Run& run : input.runs) run.count = little(file, 8), run.vocab_size = little(file, 8);
        if (std::fread(input.bytes.data(), 1, input.bytes.size(), file) != input.bytes.size()) fail("a corpus cut off");
        out.push_back(input);
    }
    std::fclose(file);
    if (out.empty()) fail("an empty corpus");
    return out;
}

void dump(std::FILE* file, const Input& input, Refusal verdict) {
    Bytes out;
    put(out, input.bytes.size(), 4), put(out, input.runs.size(), 4);
    for (const Run& run : input.runs) put(out, run.count, 8), put(out, run.vocab_size, 8);
    out.push_back(uint8_t(verdict));
    out.insert(out.end(), input.bytes.begin(), input.bytes.end());
    if (std::fwrite(out.data(), 1, out.size(), file) != out.size()) fail("the dump cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 5) fail("fuzz_nbk CORPUS SEED FIRST COUNT [DUMP]");
    __sanitizer_set_death_callback(tell);
    const std::vector<Input> corpus = read(argv[1]);
    const uint64_t seed = std::strtoull(argv[2], nullptr, 10), first = std::strtoull(argv[3], nullptr, 10);
    const uint64_t count = std::strtoull(argv[4], nullptr, 10);
    std::FILE* out = argc > 5 ? std::fopen(argv[5], "wb") : nullptr;
    uint64_t counts[kinds][kRefusals] = {}, slowest = 0, slowest_input = 0, slowest_bytes = 0, bytes = 0;
    for (const Input& input : corpus)
        if (tried(input) != Refusal::none) fail("a file of the corpus is refused");
    for (current = first; current < first + count; ++current) {
        Random random{Random{seed * 0x9E3779B97F4A7C15u + current}.next()};
        Kind kind;
        const Input input = make(corpus, random, kind);
        const auto begin = std::chrono::steady_clock::now();
        const Refusal verdict = tried(input);
        const auto spent = std::chrono::steady_clock::now() - begin;
        const auto ns = uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
        if (ns > slowest) slowest = ns, slowest_input = current, slowest_bytes = input.bytes.size();
        ++counts[kind][int(verdict)], bytes += input.bytes.size();
        if (out) dump(out, input, verdict);
    }
    if (out && std::fclose(out)) fail("the dump cannot be written");
    const auto number = [](uint64_t x) { return std::to_string(x); };
    std::string text = "{\"bytes\": " + number(bytes) + ", \"slowest\": {\"ns\": " + number(slowest) +
                       ", \"input\": " + number(slowest_input) + ", \"bytes\": " + number(slowest_bytes) +
                       "}, \"verdicts\": {";
    for (int kind = 0; kind < kinds; ++kind) {
        text += std::string(kind ? ", " : "") + "\"" + kKinds[kind] + "\": {";
        for (int r = 0; r < kRefusals; ++r)
            text += std::string(r ? ", " : "") + "\"" + (r ? name(Refusal(r)) : "accepted") +
                    "\": " + number(counts[kind][r]);
        text += "}";
    }
    std::printf("%s}}\n", text.c_str());
}
