/* Building blocks of decode.c: numbers to and from 16 bits, and packed codes to one byte each. */
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the packing is read as little-endian words"
#endif
#ifdef __SSSE3__
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

enum { FP32, BF16, FP16 };
/* Codes unpacked at a time (in L1), and further bytes for the whole groups of eight that they touch. */
enum { CHUNK = 1024, SLACK = 32 };
#define INLINE static inline __attribute__((always_inline))

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest, ties to even; NaN becomes torch's NaN. */
static void to_bf16(uint16_t *restrict out, const float *restrict in, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, in + i, 4);
        uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
        out[i] = (uint16_t)(in[i] != in[i] ? 0x7fc0u : rounded);
    }
}

/* The same to fp16 without an instruction for it: subnormals by an addition that shifts the last bits out,
   the rest by integers. */
INLINE uint16_t one_fp16(float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (bits >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
    if (bits < 0x38800000u) {
        float small;
        memcpy(&small, &bits, 4);
        small += 0.5f;
        memcpy(&bits, &small, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    return (uint16_t)(sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1)) >> 13));
}

static void to_fp16(uint16_t *restrict out, const float *restrict in, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__) && defined(__SSSE3__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(
            (__m128i *)(out + i),
            _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
    for (; i < n; i++) out[i] = one_fp16(in[i]);
}

INLINE int width(int kind) { return kind == FP32 ? 4 : 2; }

static void store(void *out, const float *in, int64_t n, int kind) {
    if (kind == BF16) to_bf16(out, in, n);
    else if (kind == FP16) to_fp16(out, in, n);
    else memcpy(out, in, (size_t)n * 4);
}

/* Exact, subnormals and infinities too. */
INLINE float from_fp16(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    memcpy(&bits, &value, 4);
    if (value >= 65536.0f) bits |= 0x7f800000u;
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/* The inverse of `store`, exact. */
static void fetch(float *restrict out, const void *restrict in, int64_t n, int kind) {
    const uint16_t *halves = in;
    if (kind == FP32) memcpy(out, in, (size_t)n * 4);
    else for (int64_t i = 0; i < n; i++) out[i] = kind == BF16 ? from_bf16(halves[i]) : from_fp16(halves[i]);
}

/* Eight codes of `bits` bits in the low bits of a word, moved apart into eight bytes: halves, quarters,
 * eighths. One instruction does it on CPUs of the last ten years; the first two Zen run it as a program of
 * their own, slowly. */
INLINE uint64_t spread(uint64_t word, int bits) {
#if defined(__BMI2__) && !defined(__znver1__) && !defined(__znver2__)
    return _pdep_u64(word, UINT64_C(0x0101010101010101) * ((1u << bits) - 1));
#else
    uint64_t two = 0x0000000100000001u * ((1u << 2 * bits) - 1);
    uint64_t one = 0x0001000100010001u * ((1u << bits) - 1);
    word = (word & ((UINT64_C(1) << 4 * bits) - 1)) | word >> 4 * bits << 32;
    word = (word & two) | (word >> 2 * bits & two) << 16;
    return (word & one) | (word >> bits & one) << 8;
#endif
}

INLINE void unpack_words(uint8_t *restrict out, const uint8_t *restrict in, int64_t bytes, int64_t groups,
                         int bits) {
    /* groups whose 8-byte load ends inside the array */
    int64_t whole = bytes < 8 ? 0 : least(groups, (bytes - 8) / bits + 1);
    for (int64_t g = 0; g < groups; g++) {
        uint64_t word = 0;
        if (g < whole) memcpy(&word, in + g * bits, 8);
        else memcpy(&word, in + g * bits, bits);
        word = spread(word, bits);
        memcpy(out + 8 * g, &word, 8);
    }
}

/* 2- and 4-bit codes are packed with the first one in the high bits of a byte. */
INLINE void unpack_some_twos(uint8_t *restrict out, const uint8_t *restrict in, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i++)
        for (int k = 0; k < 4; k++) out[4 * i + k] = in[i] >> (6 - 2 * k) & 3;
}

/* In pieces of a fixed length, which compilers turn into shuffles. */
INLINE void unpack_twos(uint8_t *restrict out, const uint8_t *restrict in, int64_t bytes) {
    int64_t i = 0;
    for (; i + 16 <= bytes; i += 16) unpack_some_twos(out + 4 * i, in + i, 16);
    unpack_some_twos(out + 4 * i, in + i, bytes - i);
}

INLINE void unpack_fours(uint8_t *restrict out, const uint8_t *restrict in, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i++) {
        out[2 * i] = in[i] >> 4;
        out[2 * i + 1] = in[i] & 15;
    }
}

typedef struct {
    const uint8_t *data;
    int64_t bytes;
    int bits;
} Packed;

/* Codes start … start + n - 1 of the flat array, at most CHUNK of them; `buffer` has CHUNK + SLACK
   bytes. */
static const uint8_t *unpack(Packed codes, int64_t start, int64_t n, uint8_t *buffer) {
    int bits = codes.bits;
    if (bits == 8) return codes.data + start;
    int64_t first = start / 8, groups = (start + n + 7) / 8 - first;
    const uint8_t *in = codes.data + first * bits;
    int64_t bytes = codes.bytes - first * bits, used = least(bytes, groups * bits);
    switch (bits) {
    case 2: unpack_twos(buffer, in, used); break;
    case 3: unpack_words(buffer, in, bytes, groups, 3); break;
    case 4: unpack_fours(buffer, in, used); break;
    case 5: unpack_words(buffer, in, bytes, groups, 5); break;
    case 6: unpack_words(buffer, in, bytes, groups, 6); break;
    default: unpack_words(buffer, in, bytes, groups, 7);
    }
    return buffer + start % 8;
}
