/* Resize along one or two neighbouring axes.
 *
 *   y[o, oy, ox, r] = sum over a, b of wy[oy, a] wx[ox, b] x[o, iy[oy, a], ix[ox, b], r]
 *
 * The tables of source indices and weights come from the host: they hold every mode and coordinate
 * transformation, so that one kernel serves all. An index of -1 says that the coordinate lies outside:
 * y is *outside there.
 *
 * Layout   x [outer, h, w, inner], y [outer, oh, ow, inner], dense. For NCHW inner is 1, for NHWC the channels.
 * Work     one work-item an element of y, or four of them (VECTOR) where inner is a multiple of 4.
 *          NEAREST: one tap, elements are moved as bits and may have any type.
 */
#include "element.clh"

#if VECTOR
#define READ(i) ((__global const float4 *)x)[i]
#define WRITE(v, i) ((__global float4 *)y)[i] = (v)
#define SUM float4
#else
#define READ(i) LOAD(x, i)
#define WRITE(v, i) STORE(v, y, i)
#define SUM C
#endif

__kernel void resize(__global const T *restrict x, __global T *restrict y, __global const T *restrict outside,
                     __global const int *restrict iy, __global const int *restrict ix,
                     __global const float *restrict wy, __global const float *restrict wx, const int n,
                     const int h, const int w, const int oh, const int ow, const int inner, const int ty,
                     const int tx) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int r = i % inner;
    int k = i / inner;
    const int ox = k % ow;
    k /= ow;
    const int oy = k % oh, o = k / oh;
    if (iy[oy * ty] < 0 || ix[ox * tx] < 0) {
        WRITE((SUM)(LOAD(outside, 0)), i);
        return;
    }
#if NEAREST
    WRITE(READ(((o * h + iy[oy]) * w + ix[ox]) * inner + r), i);
#else
    SUM sum = (SUM)(0);
    for (int a = 0; a < ty; ++a) {
        const int row = (o * h + iy[oy * ty + a]) * w;
        SUM line = (SUM)(0);
        for (int b = 0; b < tx; ++b)
            line += wx[ox * tx + b] * READ((row + ix[ox * tx + b]) * inner + r);
        sum += wy[oy * ty + a] * line;
    }
    WRITE(sum, i);
#endif
}
