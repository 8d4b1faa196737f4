#include "nbk.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(NOISEBOOK_PORTABLE)
#include <nmmintrin.h>
#define NOISEBOOK_CRC 1
#endif

namespace noisebook::nbk {
namespace {

uint32_t little(const uint8_t* p, int bytes) {
    uint32_t x = 0;
    for (int i = 0; i < bytes; ++i) x |= uint32_t(p[i]) << 8 * i;
    return x;
}

// ---- checksum -------------------------------------------------------------------------------------------------------
// table[j][b]: what byte b does to the state j + 1 bytes later, so that eight bytes are eight independent look-ups
using Tables = std::array<std::array<uint32_t, 256>, 8>;

Tables make_tables() {
    Tables table{};
    for (uint32_t b = 0; b < 256; ++b) {
        uint32_t x = b;
        for (int bit = 0; bit < 8; ++bit) x = x >> 1 ^ (x & 1 ? 0x82F63B78u : 0);
        table[0][b] = x;
    }
    for (size_t j = 1; j < 8; ++j)
        for (size_t b = 0; b < 256; ++b) table[j][b] = table[j - 1][b] >> 8 ^ table[0][table[j - 1][b] & 255];
    return table;
}

#ifdef NOISEBOOK_CRC
__attribute__((target("sse4.2"))) uint32_t crc32c_instruction(const uint8_t* data, size_t size) {
    uint64_t crc = 0xFFFFFFFFu, word;
    for (; size >= 8; data += 8, size -= 8) {
        std::memcpy(&word, data, 8);
        crc = _mm_crc32_u64(crc, word);
    }
    uint32_t last = uint32_t(crc);
    for (; size; ++data, --size) last = _mm_crc32_u8(last, *data);
    return ~last;
}
#endif

// ---- groups of tokens -----------------------------------------------------------------------------------------------
int bit_length(uint64_t x) {
    int bits = 0;
    for (; x; x >>= 1) ++bits;
    return bits;
}

// One run cut in groups of `digits` tokens, of `width` bits; the last group may be shorter.
struct Groups {
    uint64_t whole;                  // how many of `digits`
    uint64_t digits, values, width;  // values = vocab_size ^ digits
    uint64_t rest, rest_values, rest_width;

    explicit Groups(const Run& run) : digits(1), values(run.vocab_size), rest_values(1) {
        const bool power = (run.vocab_size & (run.vocab_size - 1)) == 0;
        constexpr uint64_t kLimit = (uint64_t(1) << 63) - 1;
        while (!power && values <= kLimit / run.vocab_size) values *= run.vocab_size, ++digits;
        whole = run.count / digits, rest = run.count % digits;
        for (uint64_t i = 0; i < rest; ++i) rest_values *= run.vocab_size;
        width = uint64_t(bit_length(values - 1)), rest_width = rest ? uint64_t(bit_length(rest_values - 1)) : 0;
    }
    uint64_t bits() const { return whole * width + rest_width; }  // below 2^46
};

// Bits from a string, most significant first; it must have as many as are taken.
class Reader {
  public:
    explicit Reader(const uint8_t* data) : next_(data) {}
    uint64_t take(uint64_t width) {  // at most 63
        while (held_ < width && held_ <= 56) bits_ = bits_ << 8 | *next_++, held_ += 8;
        if (held_ >= width) {
            held_ -= width;
            return bits_ >> held_ & mask(width);
        }
        const uint64_t missing = width - held_;  // 1 ... 7: the next byte does not fit beside those held
        const uint64_t byte = *next_++, high = (bits_ & mask(held_)) << missing | byte >> (8 - missing);
        bits_ = byte, held_ = 8 - missing;
        return high;
    }

  private:
    static uint64_t mask(uint64_t width) { return (uint64_t(1) << width) - 1; }
    const uint8_t* next_;
    uint64_t bits_ = 0, held_ = 0;  // the lowest `held_` of bits_ are still to be taken
};

class Writer {
  public:
    explicit Writer(uint8_t* data) : next_(data) {}
    void put(uint64_t value, uint64_t width) {  // value < 2^width, width at most 63
        while (width) {
            const uint64_t some = std::min(width, 8 - held_);
            width -= some;
            byte_ = byte_ << some | (value >> width & ((uint64_t(1) << some) - 1));
            if ((held_ += some) == 8) *next_++ = uint8_t(byte_), byte_ = held_ = 0;
        }
    }
    void finish() {
        if (held_) *next_ = uint8_t(byte_ << (8 - held_));
    }

  private:
    uint8_t* next_;
    uint64_t byte_ = 0, held_ = 0;
};

bool split(uint64_t number, uint64_t values, uint64_t vocab_size, uint64_t digits, int64_t* tokens) {
    if (number >= values) return false;
    for (uint64_t i = digits; i-- > 1; number /= vocab_size) tokens[i] = int64_t(number % vocab_size);
    tokens[0] = int64_t(number);
    return true;
}

}  // namespace

const char* name(Refusal refusal) {
    constexpr const char* kNames[kRefusals] = {"",     "few",     "many", "magic",   "checksum", "version",   "size",
                                               "spec", "derived", "zero", "payload", "padding",  "vocabulary"};
    return kNames[int(refusal)];
}

uint32_t crc32c_portable(const uint8_t* data, size_t size) {
    static const Tables table = make_tables();
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; data += 8, size -= 8) {
        const uint32_t a = crc ^ little(data, 4);
        crc = table[7][a & 255] ^ table[6][a >> 8 & 255] ^ table[5][a >> 16 & 255] ^ table[4][a >> 24] ^
              table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
    }
    for (; size; ++data, --size) crc = table[0][(crc ^ *data) & 255] ^ crc >> 8;
    return ~crc;
}

uint32_t crc32c(const uint8_t* data, size_t size) {
#ifdef NOISEBOOK_CRC
    static const bool instruction = [] {
        __builtin_cpu_init();
        return bool(__builtin_cpu_supports("sse4.2"));
    }();
    if (instruction) return crc32c_instruction(data, size);
#endif
    return crc32c_portable(data, size);
}

Refusal parse(const uint8_t* data, size_t size, Fields& fields) {
    fields = {};
    if (size < kOverhead) return Refusal::few;
    if (size > kMaxFile) return Refusal::many;
    if (data[0] != 0xB7 || data[1] != 0x4E) return Refusal::magic;
    const size_t end = size - 4;
    if (little(data + end, 4) != crc32c(data, end)) return Refusal::checksum;
    fields.flags = data[2] & 15;
    if (data[2] >> 4 != kVersion || fields.flags > kDerived) return Refusal::version;
    fields.preset = data[3];
    fields.height = uint16_t(little(data + 12, 2)), fields.width = uint16_t(little(data + 14, 2));
    if (!fields.height || !fields.width) return Refusal::size;
    fields.spec_at = fields.payload_at = kHeader;
    if (fields.flags == kSpec) {
        if (end - kHeader < 4) return Refusal::spec;
        fields.spec_at = kHeader + 4, fields.spec_size = little(data + kHeader, 4);
        if (fields.spec_size > end - fields.spec_at) return Refusal::spec;
        fields.payload_at = fields.spec_at + fields.spec_size;
    }
    if (fields.flags == kDerived) {
        if (end - kHeader < 4) return Refusal::derived;
        fields.steps = data[kHeader], fields.tokens = little(data + kHeader + 1, 3);
        if (!fields.steps || !fields.tokens) return Refusal::zero;
        fields.payload_at = kHeader + 4;
    }
    fields.payload_size = end - fields.payload_at;
    return Refusal::none;
}

uint64_t packed_bits(const Run* runs, size_t count) {
    uint64_t bits = 0, most = (uint64_t(1) << 63) - 1;
    for (size_t i = 0; i < count; ++i) bits = std::min(most, bits + Groups(runs[i]).bits());
    return bits;
}

Refusal check(const uint8_t* payload, size_t size, const Run* runs, size_t count) {
    const uint64_t bits = packed_bits(runs, count), bytes = bits / 8 + (bits % 8 != 0);
    if (size != bytes) return Refusal::payload;
    if (bits % 8 && payload[size - 1] & 255 >> bits % 8) return Refusal::padding;
    return Refusal::none;
}

Refusal unpack(const uint8_t* payload, const Run* runs, size_t count, int64_t* tokens) {
    Reader reader(payload);
    for (size_t i = 0; i < count; ++i) {
        const Groups groups(runs[i]);
        const uint64_t v = runs[i].vocab_size;
        for (uint64_t n = 0; n < groups.whole; ++n, tokens += groups.digits)
            if (!split(reader.take(groups.width), groups.values, v, groups.digits, tokens)) return Refusal::vocabulary;
        if (groups.rest && !split(reader.take(groups.rest_width), groups.rest_values, v, groups.rest, tokens))
            return Refusal::vocabulary;
        tokens += groups.rest;
    }
    return Refusal::none;
}

Refusal pack(const int64_t* tokens, const Run* runs, size_t count, uint8_t* payload, size_t& bad) {
    Writer writer(payload);
    const int64_t* next = tokens;
    for (size_t i = 0; i < count; ++i) {
        const Groups groups(runs[i]);
        for (uint64_t left = runs[i].count; left;) {
            const bool whole = left >= groups.digits;
            const uint64_t digits = whole ? groups.digits : groups.rest;
            uint64_t number = 0;
            for (uint64_t d = 0; d < digits; ++d, ++next) {
                bad = size_t(next - tokens);
                if (uint64_t(*next) >= runs[i].vocab_size) return Refusal::vocabulary;  // also where negative
                number = number * runs[i].vocab_size + uint64_t(*next);
            }
            writer.put(number, whole ? groups.width : groups.rest_width);
            left -= digits;
        }
    }
    writer.finish();
    return Refusal::none;
}

// ---- range-coded tokens ---------------------------------------------------------------------------------------------
bool decode_coded(const uint8_t* data, size_t size, const Coded* runs, size_t count, int64_t* tokens, CodedEnd& end) {
    constexpr uint64_t kAll = ~uint64_t(0), kLeast = uint64_t(1) << 48;
    uint64_t place = 0, code = 0, width = 0;
    const auto next = [&] { return place < size ? data[place++] : (++place, uint8_t(0)); };
    for (int i = 0; i < 8; ++i) code = code << 8 | next();
    for (size_t run = 0; run < count; ++run) {
        const Law& law = *runs[run].law;
        const uint32_t *begins = law.begins, *below = law.below;
        const uint64_t total = below[law.pieces];
        for (uint64_t left = runs[run].count; left; --left) {
            const uint64_t unit = width ? width / total : (kAll - total + 1) / total + 1;  // 2^64 / total at the start
            const uint64_t value = code / unit;
            if (value >= total) return false;
            const size_t piece = size_t(std::upper_bound(below, below + law.pieces, uint32_t(value)) - below) - 1;
            const uint64_t frequency = (below[piece + 1] - below[piece]) / (begins[piece + 1] - begins[piece]);
            const uint64_t ahead = (value - below[piece]) / frequency;
            *tokens++ = int64_t(begins[piece] + ahead);
            code -= unit * (below[piece] + ahead * frequency), width = unit * frequency;
            for (; width < kLeast; width <<= 8) code = code << 8 | next();
        }
    }
    end = {place, code, width};
    return true;
}

}  // namespace noisebook::nbk
