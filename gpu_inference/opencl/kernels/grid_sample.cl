/* Samples of images at positions that a grid gives in [-1, 1].
 *
 *   y[n, c, p] = interpolation of x[n, c] at grid[n, p]   (the grid's last axis runs x, y(, z))
 *
 * Layout   x [n, c, d, h, w] (d is 1 for images), grid [n, positions, DIMS], y [n, c, positions].
 * Work     one work-item an element of y; neighbours share the channel, so that taps lie close together.
 *          DIMS 2 or 3; MODE 0 nearest, 1 linear, 2 cubic (Keys, a = -0.75); PADDING 0 zeros, 1 border,
 *          2 reflection (cubic taps are put on the border each, not the position). ALIGN 1: -1 and 1 are the
 *          centres of the corner elements, not their outer edges.
 */
#include "element.clh"

inline float reflect(float v, const float low, const float high) {
    const float range = high - low;
    if (range <= 0.0f) return low;
    v = fabs(v - low);
    const float turns = floor(v / range);
    const float rest = v - turns * range;
    return ((int)turns & 1) ? high - rest : low + rest;
}

inline float place(const float g, const int size) {
#if ALIGN
    const float low = 0.0f, high = size - 1.0f;
    float v = (g + 1.0f) * 0.5f * (size - 1);
#else
    const float low = -0.5f, high = size - 0.5f;
    float v = ((g + 1.0f) * size - 1.0f) * 0.5f;
#endif
#if MODE == 0
    v = rint(v);
#endif
    if (v < low || v > high) {
#if PADDING == 1 && MODE < 2
        v = clamp(v, 0.0f, size - 1.0f);
#elif PADDING == 2
        v = reflect(v, low, high);
#endif
    }
#if PADDING == 2
    return v;
#else
    return fmin(fmax(v, -4.0f), size + 3.0f); /* as far out for every tap, and an int holds it */
#endif
}

/* The element's index, -1 where it counts as zero. */
inline int tap(const int i, const int size) {
#if PADDING == 0
    return (i >= 0 && i < size) ? i : -1;
#elif PADDING == 1
    return clamp(i, 0, size - 1);
#elif ALIGN
    return clamp((int)reflect((float)i, 0.0f, size - 1.0f), 0, size - 1);
#else
    return clamp((int)reflect((float)i, -0.5f, size - 0.5f), 0, size - 1);
#endif
}

#if MODE == 0
#define TAPS 1
#elif MODE == 1
#define TAPS 2
#else
#define TAPS 4
#endif

/* Indices and weights along one axis. */
inline void taps_of(const float v, const int size, int *index, float *weight) {
#if MODE == 0
    index[0] = tap((int)v, size);
    weight[0] = 1.0f;
#else
    const float base = floor(v);
    const float f = v - base;
    const int first = (int)base - (TAPS / 2 - 1);
    for (int t = 0; t < TAPS; ++t) index[t] = tap(first + t, size);
#if MODE == 1
    weight[0] = 1.0f - f;
    weight[1] = f;
#else
    const float a = -0.75f, g = 1.0f - f;
    weight[0] = ((a * (f + 1.0f) - 5.0f * a) * (f + 1.0f) + 8.0f * a) * (f + 1.0f) - 4.0f * a;
    weight[1] = ((a + 2.0f) * f - (a + 3.0f)) * f * f + 1.0f;
    weight[2] = ((a + 2.0f) * g - (a + 3.0f)) * g * g + 1.0f;
    weight[3] = ((a * (g + 1.0f) - 5.0f * a) * (g + 1.0f) + 8.0f * a) * (g + 1.0f) - 4.0f * a;
#endif
#endif
}

__kernel void grid_sample(__global const T *restrict x, __global const T *restrict grid,
                          __global T *restrict y, const int n, const int channels, const int positions,
                          const int d, const int h, const int w) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int p = i % positions, plane = i / positions;
    const int g = ((plane / channels) * positions + p) * DIMS;
    int ix[TAPS], iy[TAPS];
    float wx[TAPS], wy[TAPS];
    taps_of(place(LOAD(grid, g), w), w, ix, wx);
    taps_of(place(LOAD(grid, g + 1), h), h, iy, wy);
#if DIMS == 3
    int iz[TAPS];
    float wz[TAPS];
    taps_of(place(LOAD(grid, g + 2), d), d, iz, wz);
#endif
    float sum = 0.0f;
#if DIMS == 3
    for (int c = 0; c < TAPS; ++c) {
        if (iz[c] < 0) continue;
        const int slice = (plane * d + iz[c]) * h;
        const float wc = wz[c];
#else
    {
        const int slice = plane * h;
        const float wc = 1.0f;
#endif
        for (int b = 0; b < TAPS; ++b) {
            if (iy[b] < 0) continue;
            float line = 0.0f;
            for (int a = 0; a < TAPS; ++a)
                if (ix[a] >= 0) line += wx[a] * LOAD(x, (slice + iy[b]) * w + ix[a]);
            sum += wc * wy[b] * line;
        }
    }
    STORE(sum, y, i);
}
