/* Stored weights to fp32, bf16 or fp16 on the CPU: the same numbers as the plain torch decoding, to the last
 * bit.
 *
 * The arithmetic is fp32 and one rounding to the output type follows, as in torch. An affine product code *
 * scale is exact (at most 8 bits times the 8 bits of bf16), so only its sum with the minimum rounds. Compile
 * with -ffp-contract=off: quanto's products round before the subtraction.
 *
 * A block with codes of at most 4 bits has at most 16 values. They are computed and rounded once a block and
 * then looked up: with AVX-512 by one shuffle of whole values, else with the byte shuffle of SSSE3 and NEON,
 * one table of 16 bytes for each byte of the output type. Compile with -fno-strict-aliasing: the tables are
 * written as numbers and read as bytes.
 */
#include "codes.h"

enum { TABLES = 32 }; /* blocks tabled at a time */

/* The 16 values of some blocks one after the other; filled together, as loops over one block are too short
   to be fast. */
typedef struct {
    float values[16 * TABLES];
    uint8_t whole[64 * TABLES];     /* in the output type */
    uint8_t planes[4][16 * TABLES]; /* byte p of each, for the shuffles */
} Tables;

static void fill(Tables *tables, int64_t blocks, int kind) {
    store(tables->whole, tables->values, 16 * blocks, kind);
#ifndef __AVX512BW__
    if (kind == FP32) {
        const uint32_t *words = (const uint32_t *)(const void *)tables->whole;
        for (int p = 0; p < 4; p++)
            for (int64_t i = 0; i < 16 * blocks; i++) tables->planes[p][i] = (uint8_t)(words[i] >> 8 * p);
    } else {
        const uint16_t *halves = (const uint16_t *)(const void *)tables->whole;
        for (int64_t i = 0; i < 16 * blocks; i++) tables->planes[0][i] = (uint8_t)halves[i];
        for (int64_t i = 0; i < 16 * blocks; i++) tables->planes[1][i] = (uint8_t)(halves[i] >> 8);
    }
#endif
}

/* Sixteen values at once; gives how many of n it did. Reads whole vectors of codes inside n only. */
INLINE int64_t shuffle(uint8_t *out, const Tables *tables, int64_t block, const uint8_t *codes, int64_t n,
                       int kind) {
    int64_t i = 0;
    /* unused where there is no shuffle */
    (void)out, (void)tables, (void)block, (void)codes, (void)n, (void)kind;
#ifdef __AVX512BW__
    if (kind == FP32) {
        __m512i values = _mm512_loadu_si512(tables->whole + 64 * block);
        for (; i + 16 <= n; i += 16) {
            __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i)));
            _mm512_storeu_si512(out + 4 * i, _mm512_permutexvar_epi32(code, values));
        }
        return i;
    }
    __m512i values =
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(tables->whole + 32 * block)));
    for (; i + 32 <= n; i += 32) {
        __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(codes + i)));
        _mm512_storeu_si512(out + 2 * i, _mm512_permutexvar_epi16(code, values));
    }
#elif defined(__SSSE3__)
    __m128i plane[4];
    for (int p = 0; p < width(kind); p++)
        plane[p] = _mm_loadu_si128((const __m128i *)(tables->planes[p] + 16 * block));
    for (; i + 16 <= n; i += 16) {
        __m128i code = _mm_loadu_si128((const __m128i *)(codes + i));
        __m128i byte0 = _mm_shuffle_epi8(plane[0], code), byte1 = _mm_shuffle_epi8(plane[1], code);
        __m128i low = _mm_unpacklo_epi8(byte0, byte1), high = _mm_unpackhi_epi8(byte0, byte1);
        __m128i *to = (__m128i *)(out + i * width(kind));
        if (kind == FP32) {
            __m128i byte2 = _mm_shuffle_epi8(plane[2], code), byte3 = _mm_shuffle_epi8(plane[3], code);
            __m128i low2 = _mm_unpacklo_epi8(byte2, byte3), high2 = _mm_unpackhi_epi8(byte2, byte3);
            _mm_storeu_si128(to, _mm_unpacklo_epi16(low, low2));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low, low2));
            _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high, high2));
            _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high, high2));
        } else {
            _mm_storeu_si128(to, low);
            _mm_storeu_si128(to + 1, high);
        }
    }
#elif defined(__ARM_NEON) && defined(__aarch64__)
    for (; i + 16 <= n; i += 16) {
        uint8x16_t code = vld1q_u8(codes + i);
        uint8x16x4_t bytes;
        for (int p = 0; p < width(kind); p++)
            bytes.val[p] = vqtbl1q_u8(vld1q_u8(tables->planes[p] + 16 * block), code);
        if (kind == FP32) vst4q_u8(out + 4 * i, bytes);
        else vst2q_u8(out + 2 * i, ((uint8x16x2_t){{bytes.val[0], bytes.val[1]}}));
    }
#endif
    return i;
}

INLINE void look_up(uint8_t *out, const Tables *tables, int64_t block, const uint8_t *codes, int64_t n,
                    int kind) {
    int64_t size = width(kind);
    int64_t i = n == 64 ? shuffle(out, tables, block, codes, 64, kind)
                        : shuffle(out, tables, block, codes, n, kind);
    for (; i < n; i++) memcpy(out + i * size, tables->whole + (16 * block + codes[i]) * size, (size_t)size);
}

/* One matrix: `blocks` blocks of `block` codes a row, `columns` of them wanted. Affine without a book, else
   book[code] * absmax. */
typedef struct {
    Packed codes;
    const float *book, *absmax;
    const uint16_t *scale, *minimum;
    int64_t block, blocks, columns;
} Matrix;

INLINE void scaled(float *restrict out, const uint8_t *restrict codes, int64_t n, float scale,
                   float minimum) {
    for (int64_t i = 0; i < n; i++) out[i] = (float)codes[i] * scale + minimum;
}

INLINE void affine_values(float *restrict values, const uint16_t *restrict scale,
                          const uint16_t *restrict minimum, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++)
        for (int v = 0; v < 16; v++)
            values[16 * b + v] = (float)v * from_bf16(scale[b]) + from_bf16(minimum[b]);
}

INLINE void book_values(float *restrict values, const float *restrict book, const float *restrict absmax,
                        int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++)
        for (int v = 0; v < 16; v++) values[16 * b + v] = book[v] * absmax[b];
}

/* Columns at … end - 1 of a row by tables: at most TABLES blocks. */
INLINE void tabled(const Matrix *m, const uint8_t *codes, int64_t block, int64_t at, int64_t end, int kind,
                   uint8_t *out) {
    Tables tables;
    int64_t blocks = (end - 1) / m->block - at / m->block + 1;
    if (m->book) book_values(tables.values, m->book, m->absmax + block, blocks);
    else affine_values(tables.values, m->scale + block, m->minimum + block, blocks);
    fill(&tables, blocks, kind);
    int64_t n = m->block - at % m->block;
    for (int64_t b = 0; b < blocks; b++, at += n, codes += n, n = m->block) {
        n = least(n, end - at);
        look_up(out + at * width(kind), &tables, b, codes, n, kind);
    }
}

INLINE void computed(const Matrix *m, const uint8_t *codes, int64_t block, int64_t at, int64_t end,
                     int kind, uint8_t *out) {
    float values[CHUNK];
    int64_t n = m->block - at % m->block;
    for (int64_t j = 0; j < end - at; block++, j += n, n = m->block) {
        float scale = from_bf16(m->scale[block]), minimum = from_bf16(m->minimum[block]);
        n = least(n, end - at - j);
        if (n == 64) scaled(values + j, codes + j, 64, scale, minimum);
        else scaled(values + j, codes + j, n, scale, minimum);
    }
    store(out + at * width(kind), values, end - at, kind);
}

INLINE void one_row(const Matrix *m, int64_t row, int kind, uint8_t *out) {
    uint8_t buffer[CHUNK + SLACK];
    int by_table = m->codes.bits <= 4 && (m->book || m->block >= 32);
    /* A piece that starts inside a block touches one block more than its length says. */
    int64_t step = by_table ? least(CHUNK, (TABLES - 1) * m->block) : CHUNK, end;
    for (int64_t at = 0; at < m->columns; at = end) {
        end = least(at + step, m->columns);
        const uint8_t *codes = unpack(m->codes, row * m->blocks * m->block + at, end - at, buffer);
        int64_t block = row * m->blocks + at / m->block;
        if (by_table) tabled(m, codes, block, at, end, kind, out);
        else computed(m, codes, block, at, end, kind, out);
    }
}

static void row_fp32(const Matrix *m, int64_t row, uint8_t *out) {
    one_row(m, row, FP32, out + row * m->columns * 4);
}
static void row_bf16(const Matrix *m, int64_t row, uint8_t *out) {
    one_row(m, row, BF16, out + row * m->columns * 2);
}
static void row_fp16(const Matrix *m, int64_t row, uint8_t *out) {
    one_row(m, row, FP16, out + row * m->columns * 2);
}

static void all_rows(const Matrix *m, int64_t rows, int kind, int threads, uint8_t *out) {
    void (*one)(const Matrix *, int64_t, uint8_t *) =
        kind == FP32 ? row_fp32 : kind == BF16 ? row_bf16 : row_fp16;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t row = 0; row < rows; row++) one(m, row, out);
}

/* code * scale + minimum; scale and minimum are bf16, one a block. */
void bitrank_affine(const uint8_t *codes, int64_t bytes, int bits, const uint16_t *scale,
                    const uint16_t *minimum, int64_t block,
                    int64_t rows, int64_t columns, int kind, int threads, void *out) {
    Matrix m = {{codes, bytes, bits}, 0, 0, scale, minimum, block, (columns + block - 1) / block, columns};
    all_rows(&m, rows, kind, threads, out);
}

/* book[code] * absmax; 4-bit codes, 16 entries, fp32 absmax, one a block. */
void bitrank_codebook(const uint8_t *codes, int64_t bytes, const float *book, const float *absmax,
                      int64_t block, int64_t rows,
                      int64_t columns, int kind, int threads, void *out) {
    Matrix m = {{codes, bytes, 4}, book, absmax, 0, 0, block, (columns + block - 1) / block, columns};
    all_rows(&m, rows, kind, threads, out);
}

/* Nested scales: book[code] * outer + offset, 256 codes to an outer scale; `first` is the place of the first
   code among them all. */
void bitrank_nested(const uint8_t *restrict codes, const float *restrict book, const float *restrict outer,
                    const float *offset,
                    int64_t first, int64_t n, float *restrict out) {
    for (int64_t i = 0, end; i < n; i = end) {
        float scale = outer[(first + i) / 256], plus = *offset;
        end = least(n, (first + i) / 256 * 256 + 256 - first);
        for (int64_t j = i; j < end; j++) out[j] = book[codes[j]] * scale + plus;
    }
}

/* A matrix and its nested scales, which go into `absmax`: in one call, as a call takes as long as they do. */
void bitrank_nested_codebook(const uint8_t *scales, const float *scale_book, const float *outer,
                             const float *offset, float *absmax,
                             const uint8_t *codes, int64_t bytes, const float *book, int64_t block,
                             int64_t rows, int64_t columns,
                             int kind, int threads, void *out) {
    bitrank_nested(scales, scale_book, outer, offset, 0, rows * ((columns + block - 1) / block), absmax);
    bitrank_codebook(codes, bytes, book, absmax, block, rows, columns, kind, threads, out);
}

/* To a type and back; at most 16 * TABLES values. */
static void round_values(float *restrict values, int64_t n, int kind) {
    uint16_t halves[16 * TABLES];
    if (kind == FP32) return;
    store(halves, values, n, kind);
    fetch(values, halves, n, kind);
}

/* code * scale; int8 codes, one scale a row, of whatever type it is stored in. */
void bitrank_rows(const int8_t *codes, const void *scales, int scale_kind, int64_t rows, int64_t columns,
                  int kind, int threads, uint8_t *out) {
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t row = 0; row < rows; row++) {
        float scale;
        fetch(&scale, (const uint8_t *)scales + row * width(scale_kind), 1, scale_kind);
        for (int64_t at = row * columns; at < (row + 1) * columns; at += CHUNK) {
            float values[CHUNK];
            int64_t n = least(CHUNK, (row + 1) * columns - at);
            for (int64_t i = 0; i < n; i++) values[i] = (float)codes[at + i] * scale;
            store(out + at * width(kind), values, n, kind);
        }
    }
}

INLINE void quanto_values(float *restrict values, const float *restrict scale, const float *restrict shift,
                          int64_t groups, int kind) {
    for (int64_t g = 0; g < groups; g++)
        for (int v = 0; v < 16; v++) values[16 * g + v] = (float)v * scale[g];
    round_values(values, 16 * groups, kind);
    for (int64_t g = 0; g < groups; g++)
        for (int v = 0; v < 16; v++) values[16 * g + v] -= shift[g];
}

INLINE void one_group(const uint8_t *packed, int low, int mask, const Tables *tables, int64_t g,
                      int64_t size, int kind, uint8_t *out) {
    uint8_t codes[CHUNK];
    for (int64_t at = 0; at < size; at += CHUNK) {
        int64_t n = least(CHUNK, size - at);
        for (int64_t i = 0; i < n; i++) codes[i] = packed[at + i] >> low & mask;
        look_up(out + at * width(kind), tables, g, codes, n, kind);
    }
}

/* quanto: code * scale - shift, all in the output type, so the product is rounded as well. Groups lie one
 * below the other; the first `lines` of them fill the low bits of the bytes, the next `lines` the bits
 * above, and so on. */
void bitrank_quanto(const uint8_t *packed, int bits, const uint8_t *scale, const uint8_t *shift,
                    int64_t groups, int64_t lines,
                    int64_t size, int kind, int threads, uint8_t *out) {
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t first = 0; first < groups; first += TABLES) {
        Tables tables;
        int64_t count = least(TABLES, groups - first);
        float scales[TABLES], shifts[TABLES];
        fetch(scales, scale + first * width(kind), count, kind);
        fetch(shifts, shift + first * width(kind), count, kind);
        quanto_values(tables.values, scales, shifts, count, kind);
        fill(&tables, count, kind);
        for (int64_t b = 0, g = first; b < count; b++, g++) {
            const uint8_t *line = packed + g % lines * size;
            int low = (int)(g / lines) * bits;
            int mask = (1 << bits) - 1;
            if (kind == FP32) one_group(line, low, mask, &tables, b, size, FP32, out + g * size * 4);
            else one_group(line, low, mask, &tables, b, size, BF16, out + g * size * 2); /* FP16 too */
        }
    }
}
