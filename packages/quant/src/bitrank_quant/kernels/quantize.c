/* Choice of codes on a CPU: the error of scales, and the column loops of GPTQ and of coordinate descent.
 *
 * The values of a group are offset + step * point. Points are the whole numbers from `low` to `high`, or the
 * ascending entries of a code book. Rows are independent of each other, so numbers do not depend on the
 * threads. Compile with -ffp-contract=off: torch rounds a product before it subtracts it.
 */
#include <float.h>

#include "vectors.h"

enum { ENTRIES = 16 };
typedef struct {
    float low, high;
    int64_t entries; /* of the book; 0: whole numbers */
    float book[ENTRIES], middles[ENTRIES];
} Points;

static Points points_of(float low, float high, const float *book, int64_t entries) {
    Points points = {.low = low, .high = high, .entries = entries};
    for (int64_t i = 0; i < entries; i++) points.book[i] = book[i];
    for (int64_t i = 0; i + 1 < entries; i++) points.middles[i] = (book[i + 1] + book[i]) / 2;
    return points;
}

/* The nearest of the whole numbers; adding 1.5 * 2^23 rounds halves to even. NaN stays. */
INLINE vf whole_numbers(vf t, const Points *points) {
    t = pick(t < points->low, splat(points->low), t);
    t = pick(t > points->high, splat(points->high), t);
    return (t + 12582912.0f) - 12582912.0f;
}

/* The nearest entry of the book; ties go to the lower one, and NaN to the highest. */
INLINE vf entries_of(vf t, const Points *points) {
    vf found = splat(points->book[points->entries - 1]);
    for (int64_t i = points->entries - 2; i >= 0; i--)
        found = pick(t <= points->middles[i], splat(points->book[i]), found);
    return found;
}

INLINE float group_error(const float *w, const float *weights, int64_t width, float step, float offset,
                         const Points *points, int has_book) {
    vf sum = splat(0);
    float divisor = has_book && step < FLT_MIN ? FLT_MIN : step;
    for (int64_t j = 0; j < width; j += LANES) {
        vf x = some(w, j, width - j, 0, FP32), t = (x - offset) / divisor;
        vf near = has_book ? entries_of(t, points) : whole_numbers(t, points);
        vf lost = near * step + offset - x;
        sum += lost * lost * some(weights, j, width - j, 0, FP32);
    }
    return total(sum);
}

/* w: (rows, groups, width); weights: (groups, width); step, offset (or none) and out: (candidates, rows,
   groups) */
void bitrank_errors(const float *w, const float *weights, const float *step, const float *offset,
                    int64_t candidates, int64_t rows, int64_t groups, int64_t width, float low, float high,
                    const float *book, int64_t entries, int threads, float *out) {
    Points points = points_of(low, high, book, entries);
    (void)threads;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t g = 0; g < groups; g++) {
            const float *group = w + (row * groups + g) * width, *by = weights + g * width;
            for (int64_t c = 0; c < candidates; c++) {
                int64_t at = (c * rows + row) * groups + g;
                float zero = offset ? offset[at] : 0.0f;
                out[at] = entries ? group_error(group, by, width, step[at], zero, &points, 1)
                                  : group_error(group, by, width, step[at], zero, &points, 0);
            }
        }
}

/* The number of the nearest point, or the point itself if it is a whole number; and its value. */
INLINE float nearest(float x, float step, float offset, const Points *points, float *value) {
    float t, code, point;
    if (points->entries) {
        int64_t place = points->entries - 1;
        t = x / (step < FLT_MIN ? FLT_MIN : step);
        for (int64_t i = points->entries - 2; i >= 0; i--)
            if (t <= points->middles[i]) place = i;
        code = (float)place;
        point = points->book[place];
    } else {
        t = (x - offset) / step;
        t = t < points->low ? points->low : t > points->high ? points->high : t;
        code = point = (t + 12582912.0f) - 12582912.0f;
    }
    *value = point * step + offset;
    return code;
}

INLINE void subtract_multiple(float *row, const float *of, float times, int64_t from, int64_t to) {
    for (int64_t j = from; j < to; j++) row[j] -= times * of[j];
}

/* One group of columns of GPTQ. w: (rows, width) with `stride`, in place: each column's error over the
   diagonal is taken from the later columns. upper: (width, width) with `upper_stride`. codes and errors:
   (rows, width). step and offset: (rows). */
void bitrank_feedback(float *w, int64_t stride, const float *upper, int64_t upper_stride, const float *step,
                      const float *offset, int64_t rows, int64_t width, float low, float high,
                      const float *book, int64_t entries, int threads, float *codes, float *errors) {
    Points points = points_of(low, high, book, entries);
    (void)threads;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        float *weights = w + row * stride, zero = offset ? offset[row] : 0.0f, value;
        for (int64_t c = 0; c < width; c++) {
            codes[row * width + c] = nearest(weights[c], step[row], zero, &points, &value);
            float error = (weights[c] - value) / upper[c * upper_stride + c];
            errors[row * width + c] = error;
            subtract_multiple(weights, upper + c * upper_stride, error, c + 1, width);
        }
    }
}

/* One panel of columns of coordinate descent. values: (rows, columns) with `stride`, in place; pull: (rows,
   columns), overwritten; moments: (columns, columns) with `moments_stride`; step and offset: (rows, groups of
   `width` columns) with `scale_stride`; codes and changes: (rows, columns). */
void bitrank_descend(float *values, int64_t stride, float *pull, const float *moments,
                     int64_t moments_stride, const float *step, const float *offset, int64_t scale_stride,
                     int64_t rows, int64_t columns, int64_t width, float low, float high, const float *book,
                     int64_t entries, int threads, float *codes, float *changes) {
    Points points = points_of(low, high, book, entries);
    (void)threads;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        float *now = values + row * stride, *wanted = pull + row * columns, value;
        for (int64_t c = 0; c < columns; c++) {
            int64_t scale = row * scale_stride + c / width;
            const float *of = moments + c * moments_stride;
            float best = now[c] + wanted[c] / of[c], zero = offset ? offset[scale] : 0.0f;
            codes[row * columns + c] = nearest(best, step[scale], zero, &points, &value);
            float change = value - now[c];
            now[c] += change;
            changes[row * columns + c] = change;
            subtract_multiple(wanted, of, change, c + 1, columns);
        }
    }
}
