/* Passes over rows between a model's products: each reads its numbers once, computes in fp32, and writes
 * once.
 *
 * Every row is one thread's work, and lanes are summed in one order, so numbers do not depend on the
 * threads.
 */
#include <math.h>
#include <stdlib.h>

#include "vectors.h"

/* --- softmax of scale·s + mask, in place --- */
INLINE void softmax_row(void *s, int64_t at, int64_t keys, float scale, const void *mask, int64_t mask_at,
                        float *row, int kind) {
    vf top = splat(-INFINITY), sum = splat(0);
    for (int64_t j = 0; j < keys; j += LANES) {
        vf v = some(s, at + j, keys - j, 0, kind) * scale;
        if (mask) v += some(mask, mask_at + j, keys - j, 0, kind);
        if (keys - j < LANES) v = first(v, keys - j, -INFINITY);
        *(vf *)(row + j) = v;
        top = pick(v > top, v, top);
    }
    float most = highest(top);
    for (int64_t j = 0; j < keys; j += LANES) {
        vf e = power(*(vf *)(row + j) - most);
        *(vf *)(row + j) = e;
        sum += e;
    }
    float share = 1.0f / total(sum);
    for (int64_t j = 0; j < keys; j += LANES) keep_some(s, at + j, keys - j, *(vf *)(row + j) * share, kind);
}

/* s: rows of `keys` scores, `length` of them a head, `heads` a sequence. mask: rows of `keys` by sequence
   and position, or none. */
void bitrank_softmax(void *s, int64_t rows, int64_t keys, int64_t length, int64_t heads, float scale,
                     const void *mask, int64_t batch_stride,
                     int64_t row_stride, int kind, int threads) {
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *row = aligned_alloc(64, (size_t)(keys + 2 * LANES) / LANES * LANES * 4);
        #pragma omp for
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = i / (heads * length) * batch_stride + i % length * row_stride;
            if (kind == FP32) softmax_row(s, i * keys, keys, scale, mask, at, row, FP32);
            else softmax_row(s, i * keys, keys, scale, mask, at, row, BF16);
        }
        free(row);
    }
}

INLINE void softmax_back_row(void *g, const void *p, int64_t at, int64_t keys, float scale, int kind) {
    vf dot = splat(0);
    for (int64_t j = 0; j < keys; j += LANES)
        dot += some(g, at + j, keys - j, 0, kind) * some(p, at + j, keys - j, 0, kind);
    float mean = total(dot);
    for (int64_t j = 0; j < keys; j += LANES)
        keep_some(g, at + j, keys - j,
                  some(p, at + j, keys - j, 0, kind) * (some(g, at + j, keys - j, 0, kind) - mean) * scale,
                  kind);
}

/* g, the gradient of the shares p, becomes that of the scores */
void bitrank_softmax_gradient(void *g, const void *p, int64_t rows, int64_t keys, float scale, int kind,
                              int threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++)
        if (kind == FP32) softmax_back_row(g, p, i * keys, keys, scale, FP32);
        else softmax_back_row(g, p, i * keys, keys, scale, BF16);
}

/* --- w · x / √(mean x² + eps) --- */
INLINE void rms_row(void *out, const void *x, int64_t at, int64_t size, const float *w, float eps,
                    float *held, int kind) {
    vf squares = splat(0);
    for (int64_t j = 0; j < size; j += LANES) { vf v = some(x, at + j, size - j, 0, kind); squares += v * v; }
    float scale = 1.0f / sqrtf(total(squares) / (float)size + eps);
    *held = scale;
    for (int64_t j = 0; j < size; j += LANES)
        keep_some(out, at + j, size - j,
                  some(x, at + j, size - j, 0, kind) * scale * some(w, j, size - j, 0, FP32), kind);
}

void bitrank_rms(void *out, const void *x, int64_t rows, int64_t size, const float *w, float eps,
                 float *scales, int kind, int threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++)
        if (kind == FP32) rms_row(out, x, i * size, size, w, eps, scales + i, FP32);
        else rms_row(out, x, i * size, size, w, eps, scales + i, BF16);
}

INLINE void rms_back_row(void *out, const void *g, const void *x, int64_t at, int64_t size, const float *w,
                         float scale, int kind) {
    vf dot = splat(0);
    for (int64_t j = 0; j < size; j += LANES)
        dot += some(g, at + j, size - j, 0, kind) * some(w, j, size - j, 0, FP32)
               * some(x, at + j, size - j, 0, kind);
    float along = total(dot) * scale * scale / (float)size;
    for (int64_t j = 0; j < size; j += LANES)
        keep_some(out, at + j, size - j,
                  (some(g, at + j, size - j, 0, kind) * some(w, j, size - j, 0, FP32)
                   - some(x, at + j, size - j, 0, kind) * along) * scale,
                  kind);
}

void bitrank_rms_gradient(void *out, const void *g, const void *x, int64_t rows, int64_t size,
                          const float *w, const float *scales, int kind, int threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++)
        if (kind == FP32) rms_back_row(out, g, x, i * size, size, w, scales[i], FP32);
        else rms_back_row(out, g, x, i * size, size, w, scales[i], BF16);
}

/* --- silu(gate) · up --- */
enum { PIECE = 2048 };
INLINE vf sigmoid(vf x) {
    vf a = (vf)((vi)x | (int32_t)0x80000000), e = power(a), s = e / (1.0f + e);  /* of −|x| */
    return pick(x < 0, s, 1.0f - s);
}

INLINE void swiglu_some(void *out, const void *gate, const void *up, int64_t from, int64_t to, int kind) {
    for (int64_t i = from; i < to; i += LANES) {
        vf x = some(gate, i, to - i, 0, kind);
        keep_some(out, i, to - i, x * sigmoid(x) * some(up, i, to - i, 0, kind), kind);
    }
}

void bitrank_swiglu(void *out, const void *gate, const void *up, int64_t n, int kind, int threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += PIECE)
        if (kind == FP32) swiglu_some(out, gate, up, i, least(n, i + PIECE), FP32);
        else swiglu_some(out, gate, up, i, least(n, i + PIECE), BF16);
}

INLINE void swiglu_back_some(void *grad_gate, void *grad_up, const void *g, const void *gate,
                             const void *up, int64_t from, int64_t to, int kind) {
    for (int64_t i = from; i < to; i += LANES) {
        vf x = some(gate, i, to - i, 0, kind), s = sigmoid(x), grad = some(g, i, to - i, 0, kind),
            u = some(up, i, to - i, 0, kind);
        keep_some(grad_up, i, to - i, grad * x * s, kind);
        keep_some(grad_gate, i, to - i, grad * u * s * (1.0f + x * (1.0f - s)), kind);
    }
}

void bitrank_swiglu_gradient(void *grad_gate, void *grad_up, const void *g, const void *gate,
                             const void *up, int64_t n, int kind, int threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += PIECE)
        if (kind == FP32) swiglu_back_some(grad_gate, grad_up, g, gate, up, i, least(n, i + PIECE), FP32);
        else swiglu_back_some(grad_gate, grad_up, g, gate, up, i, least(n, i + PIECE), BF16);
}

/* --- rotary positions; `back` by the angle's negative --- */
INLINE void rotate_row(void *out, int64_t to, const void *x, int64_t at, const void *cosine,
                       const void *sine, int64_t angle, int64_t half, int back, int kind) {
    for (int64_t j = 0; j < half; j += LANES) {
        int64_t n = half - j;
        vf a = some(x, at + j, n, 0, kind), b = some(x, at + half + j, n, 0, kind);
        vf c = some(cosine, angle + j, n, 0, kind), d = some(cosine, angle + half + j, n, 0, kind);
        vf s = some(sine, angle + j, n, 0, kind), t = some(sine, angle + half + j, n, 0, kind);
        keep_some(out, to + j, n, back ? a * c + b * t : a * c - b * s, kind);
        keep_some(out, to + half + j, n, back ? b * d - a * s : b * d + a * t, kind);
    }
}

/* x and out: (batch, heads, length, size), both with strides of their own; cosine and sine: (batch, length,
   size), likewise */
void bitrank_rotate(void *out, int64_t out_batch, int64_t out_head, int64_t out_row, const void *x,
                    int64_t x_batch, int64_t x_head,
                    int64_t x_row, const void *cosine, const void *sine, int64_t angle_batch,
                    int64_t angle_row, int64_t batch, int64_t heads,
                    int64_t length, int64_t size, int back, int kind, int threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < batch * length; i++) {
        int64_t b = i / length, t = i % length, angle = b * angle_batch + t * angle_row;
        for (int64_t h = 0; h < heads; h++) {
            int64_t to = b * out_batch + h * out_head + t * out_row,
                at = b * x_batch + h * x_head + t * x_row;
            if (kind == FP32) rotate_row(out, to, x, at, cosine, sine, angle, size / 2, back, FP32);
            else rotate_row(out, to, x, at, cosine, sine, angle, size / 2, back, BF16);
        }
    }
}
