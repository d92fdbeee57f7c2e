/* Vector operations of rows.c: sixteen numbers at a time, from and to fp32 or bf16, and sums,
 * maxima and powers of them.
 *
 * GCC's vectors, which clang has too: a compiler maps one of them to one register or several, as the CPU has.
 */
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
enum { FP32, BF16 };
enum { LANES = 16 };
typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf pick(vi where, vf yes, vf no) { return (vf)(((vi)yes & where) | ((vi)no & ~where)); }

INLINE vf whole(const void *from, int64_t at, int kind) {
    if (kind == FP32) return *(const vf *)((const float *)from + at);
    return (vf)(__builtin_convertvector(*(const vh *)((const uint16_t *)from + at), vu) << 16);
}

/* Round to nearest, ties to even; NaN becomes torch's NaN. */
INLINE vh halves(vf value) {
    vu bits = (vu)value, rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16, nan = (vu)(value != value);
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), vh);
}

INLINE void keep(void *to, int64_t at, vf value, int kind) {
    if (kind == FP32) *(vf *)((float *)to + at) = value;
    else *(vh *)((uint16_t *)to + at) = halves(value);
}

/* The first n < LANES numbers, `other` after them; and back. */
#if defined(__AVX512BW__) && defined(__AVX512VL__)
INLINE vf part(const void *from, int64_t at, int64_t n, float other, int kind) {
    __mmask16 there = (__mmask16)((1u << n) - 1);
    vf value = kind == FP32 ? (vf)_mm512_maskz_loadu_ps(there, (const float *)from + at)
                            : (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there,
                                (const uint16_t *)from + at)), 16);
    return (vf)_mm512_mask_blend_ps(there, (__m512)splat(other), (__m512)value);
}

INLINE void keep_part(void *to, int64_t at, int64_t n, vf value, int kind) {
    __mmask16 there = (__mmask16)((1u << n) - 1);
    if (kind == FP32) _mm512_mask_storeu_ps((float *)to + at, there, (__m512)value);
    else _mm256_mask_storeu_epi16((uint16_t *)to + at, there, (__m256i)halves(value));
}
#else
INLINE vf part(const void *from, int64_t at, int64_t n, float other, int kind) {
    float numbers[LANES];
    for (int64_t i = 0; i < LANES; i++) numbers[i] = other;
    if (kind == FP32) memcpy(numbers, (const float *)from + at, (size_t)n * 4);
    else for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)((const uint16_t *)from)[at + i] << 16;
        memcpy(numbers + i, &bits, 4);
    }
    return *(const vf *)numbers;
}

INLINE void keep_part(void *to, int64_t at, int64_t n, vf value, int kind) {
    vh half = halves(value);
    if (kind == FP32) memcpy((float *)to + at, &value, (size_t)n * 4);
    else memcpy((uint16_t *)to + at, &half, (size_t)n * 2);
}
#endif
INLINE vf some(const void *from, int64_t at, int64_t n, float other, int kind) {
    return n >= LANES ? whole(from, at, kind) : part(from, at, n, other, kind);
}

INLINE void keep_some(void *to, int64_t at, int64_t n, vf value, int kind) {
    if (n >= LANES) keep(to, at, value, kind);
    else keep_part(to, at, n, value, kind);
}

/* The first n lanes, `other` in the rest. */
INLINE vf first(vf value, int64_t n, float other) {
    vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return pick(lane < (int32_t)n, value, splat(other));
}

/* Over the lanes, halving: eight, four, two, one. */
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));
INLINE float total(vf v) {
    v8 a[2];
    v4 b[2];
    memcpy(a, &v, sizeof a);
    a[0] += a[1];
    memcpy(b, a, sizeof b);
    b[0] += b[1];
    return (b[0][0] + b[0][2]) + (b[0][1] + b[0][3]);
}

INLINE float more(float a, float b) { return a > b ? a : b; }

INLINE float highest(vf v) {
    v8 a[2];
    v4 b[2];
    memcpy(a, &v, sizeof a);
    for (int i = 0; i < 8; i++) a[0][i] = more(a[0][i], a[1][i]);
    memcpy(b, a, sizeof b);
    for (int i = 0; i < 4; i++) b[0][i] = more(b[0][i], b[1][i]);
    return more(more(b[0][0], b[0][2]), more(b[0][1], b[0][3]));
}

/* e^x for x <= 0; 0 below -87.3, NaN of NaN (the polynomial of Cephes' expf). */
INLINE vf power(vf x) {
    vi under = x < -87.3f;
    vf n = x * 1.44269504088896341f + 12582912.0f;  /* rounds to a whole number by its last bit */
    vi exponent = ((vi)n - 0x4b400000) << 23;
    n -= 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f, y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return pick(under, splat(0), pick(x == x, (vf)((vi)y + exponent), x));
}
