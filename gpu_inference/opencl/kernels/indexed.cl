/* Elements picked and placed by index.
 *
 * Layout   dense, row-major; I is the type of indices, of which negative ones count from the end.
 *          Elements that are only moved are moved as bits (T is an unsigned type of their size).
 * Work     one work-item an element of the result; a line along the axis where its elements depend on each
 *          other (scatter, cumulative sum), so that no atomics are needed and sums are always the same.
 */
#include "element.clh"

#ifdef I
#if !HALF
/* y[e] = x[start of e's line + index[e] * step]; starts [lines] holds where each line begins in x. */
__kernel void gather_elements(__global const T *restrict x, __global const I *restrict index,
                              __global const int *restrict starts, __global T *restrict y, const int n,
                              const int length, const int inner, const int size, const int step) {
    const int e = get_global_id(0);
    if (e >= n) return;
    const int line = e / inner / length * inner + e % inner;
    int k = (int)index[e];
    k += k < 0 ? size : 0;
    y[e] = x[starts[line] + k * step];
}

/* y[t, r] = x[batch of t, index[t, :], r]; sizes holds the extents that the `width` indices run in. */
__kernel void gather_nd(__global const T *restrict x, __global const I *restrict index,
                        __global const int *restrict sizes, __global T *restrict y, const int n,
                        const int inner, const int width, const int each, const int picked) {
    const int e = get_global_id(0);
    if (e >= n) return;
    const int r = e % inner, t = e / inner;
    int at = 0;
    for (int w = 0; w < width; ++w) {
        const int k = (int)index[t * width + w];
        at = at * sizes[w] + (k < 0 ? k + sizes[w] : k);
    }
    y[e] = x[((t / each) * picked + at) * inner + r];
}

/* y[o, d, r] = values[index[o, r] is d]; an index out of range is on nowhere. */
__kernel void one_hot(__global const I *restrict index, __global const T *restrict values,
                      __global T *restrict y, const int n, const int depth, const int inner) {
    const int e = get_global_id(0);
    if (e >= n) return;
    const int d = (e / inner) % depth;
    int k = (int)index[e / inner / depth * inner + e % inner];
    k += k < 0 ? depth : 0;
    y[e] = values[k == d];
}

/* Positions t of each batch element's sequence of length L come from L - 1 - t; later ones stay. */
__kernel void reverse_sequence(__global const T *restrict x, __global const I *restrict lengths,
                               __global T *restrict y, const int n, const int times, const int time_stride,
                               const int batches, const int batch_stride) {
    const int e = get_global_id(0);
    if (e >= n) return;
    const int t = (e / time_stride) % times;
    const int length = (int)lengths[(e / batch_stride) % batches];
    y[e] = x[t < length ? e + (length - 1 - 2 * t) * time_stride : e];
}
#endif

#ifdef REDUCTION
#if REDUCTION == 0
#define COMBINE(a, b) (b)
#elif REDUCTION == 1
#define COMBINE(a, b) ((a) + (b))
#elif REDUCTION == 2
#define COMBINE(a, b) ((a) * (b))
#elif REDUCTION == 3
#define COMBINE(a, b) max(a, b)
#else
#define COMBINE(a, b) min(a, b)
#endif
/* One work-item: a line of the updates along the axis, in order. */
__kernel void scatter_elements(__global const I *restrict index, __global const T *restrict updates,
                               __global const int *restrict starts, __global T *restrict y, const int lines,
                               const int length, const int inner, const int size, const int step) {
    const int line = get_global_id(0);
    if (line >= lines) return;
    const int first = line / inner * length * inner + line % inner;
    for (int j = 0; j < length; ++j) {
        const int e = first + j * inner;
        int k = (int)index[e];
        k += k < 0 ? size : 0;
        const int at = starts[line] + k * step;
        const C old = LOAD(y, at), update = LOAD(updates, e);
        STORE(COMBINE(old, update), y, at);
    }
}

/* One work-item: element r of `each` slices, in order. */
__kernel void scatter_nd(__global const I *restrict index, __global const T *restrict updates,
                         __global const int *restrict sizes, __global T *restrict y, const int n,
                         const int inner, const int width, const int each) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int r = i % inner;
    for (int t = i / inner * each; t < (i / inner + 1) * each; ++t) {
        int at = 0;
        for (int w = 0; w < width; ++w) {
            const int k = (int)index[t * width + w];
            at = at * sizes[w] + (k < 0 ? k + sizes[w] : k);
        }
        at = at * inner + r;
        const C old = LOAD(y, at), update = LOAD(updates, t * inner + r);
        STORE(COMBINE(old, update), y, at);
    }
}
#endif
#else
/* Sums of the elements before (and, unless exclusive, at) each place of a line. */
__kernel void cumulative_sum(__global const T *restrict x, __global T *restrict y, const int lines,
                             const int size, const int inner, const int exclusive, const int reverse) {
    const int line = get_global_id(0);
    if (line >= lines) return;
    const int first = line / inner * size * inner + line % inner;
    C sum = 0;
    for (int j = 0; j < size; ++j) {
        const int e = first + (reverse ? size - 1 - j : j) * inner;
        const C before = sum;
        sum += LOAD(x, e);
        STORE(exclusive ? before : sum, y, e);
    }
}
#endif
