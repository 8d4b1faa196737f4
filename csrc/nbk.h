// The `.nbk` file: its frame, its checksum, and its plain and range-coded runs of tokens. docs/format.md is the definition,
// engine/noisebook/format/container.py its Python form. No Python, no exceptions, no allocation: bytes may be anything,
// memory is the caller's, and whatever a file says is compared with its length before it is used.
#pragma once

#include <cstddef>
#include <cstdint>

namespace noisebook::nbk {

constexpr size_t kHeader = 16, kOverhead = 20;            // bytes of the header; with the checksum
constexpr size_t kMaxFile = size_t(1) << 28;              // bytes
constexpr uint8_t kVersion = 1, kSpec = 1, kDerived = 2;  // the format's version; flags
constexpr uint64_t kMaxVocabSize = uint64_t(1) << 62, kMaxCount = uint64_t(1) << 40, kMaxRuns = uint64_t(1) << 20,
                   kMaxCoded = uint64_t(1) << 24;

// Why a file, payload or token is refused, in the order of the checks.
enum class Refusal {
    none,
    few,
    many,
    magic,
    checksum,
    version,
    size,
    spec,
    derived,
    zero,
    payload,
    padding,
    vocabulary
};
constexpr int kRefusals = 13;
const char* name(Refusal refusal);  // "" for none; keys of refusals.REFUSALS

uint32_t crc32c(const uint8_t* data, size_t size);           // by the processor's own instruction where it has one
uint32_t crc32c_portable(const uint8_t* data, size_t size);  // by tables

struct Fields {  // places and sizes are bytes of the file
    uint8_t preset, flags;
    uint16_t height, width;
    size_t spec_at, spec_size;  // zlib data with flag kSpec, else empty: to be unpacked and hashed by the caller
    uint32_t steps, tokens;     // with flag kDerived, else 0
    size_t payload_at, payload_size;
};

// Checks the frame and fills `fields`, which are complete only where nothing is refused.
Refusal parse(const uint8_t* data, size_t size, Fields& fields);

struct Run {
    uint64_t count, vocab_size;  // 0 ... kMaxCount tokens, each one of 2 ... kMaxVocabSize values
};

// Bits of the packed runs (at most kMaxRuns), 2^63 - 1 where there are more. At least one bit per token.
uint64_t packed_bits(const Run* runs, size_t count);

// Whether a payload is one of these runs: its length, then its padding. After this check the tokens may be
// allocated: there are at most 8 * size of them.
Refusal check(const uint8_t* payload, size_t size, const Run* runs, size_t count);

// A payload that `check` let pass -> tokens, as many as the runs have.
Refusal unpack(const uint8_t* payload, const Run* runs, size_t count, int64_t* tokens);

// The inverse: ceil(packed_bits / 8) bytes. Where it refuses, `bad` is the place of the first token outside its
// vocabulary and the bytes are incomplete.
Refusal pack(const int64_t* tokens, const Run* runs, size_t count, uint8_t* payload, size_t& bad);

// The table of a Zipf model in `pieces` (1 or more) of symbols of one frequency: the first symbol of each and the cumulative
// frequency before it, both rising from 0, the latter at least as fast; then how many symbols there are, 2 or more, and
// their total. See entropy.ZipfLaw.
struct Law {
    const uint32_t *begins, *below;  // [pieces + 1]
    size_t pieces;
};

struct Coded {
    uint64_t count;
    const Law* law;
};

// Where a range decoder ends: `place` bytes in, zeros after the last included, `code` above the beginning of an interval of
// this width; 0 stands for 2^64.
struct CodedEnd {
    uint64_t place, code, width;
};

// Range-coded runs -> tokens, as many as the runs have. False where no symbol has such bytes. Whether these are the bytes
// that an encoder writes is for the caller to check, from `end`.
bool decode_coded(const uint8_t* data, size_t size, const Coded* runs, size_t count, int64_t* tokens, CodedEnd& end);

}  // namespace noisebook::nbk
