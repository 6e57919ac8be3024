/* Pooling over up to three spatial dimensions, plain or NHWC.
 *
 *   MAX       y = max over the window of x, and where it was
 *   AVERAGE   y = sum over the window of x / number of its elements (with INCLUDE_PAD those of the padding too)
 *   LP        y = (sum over the window of |x|^p)^(1/p)
 *
 * Layout   element strides of x and y: image, channel, and three spatial dimensions (missing ones have size 1).
 *          x_off and y_off: elements before the first one (channels of a wider tensor).
 *          With NHWC the padding channels of y (up to c4) are written as zero.
 * Work     one work-item an output element, channels fastest with NHWC, else the last dimension, so that
 *          neighbours read and write neighbours; groups of 64.
 */
#include "element.clh"

#define MAX 0
#define AVERAGE 1
#define LP 2

__kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void pool(__global const T *restrict x, __global T *restrict y, __global long *restrict where,
          const int total, const int c, const int c4,
          const int d0, const int d1, const int d2, const int e0, const int e1, const int e2,
          const int k0, const int k1, const int k2, const int s0, const int s1, const int s2,
          const int l0, const int l1, const int l2, const int p0, const int p1, const int p2,
          const int q0, const int q1, const int q2,
          const int xn, const int xc, const int x0, const int x1, const int x2,
          const int yn, const int yc, const int y0, const int y1, const int y2,
          const int w0, const int w1, const int w2, const int x_off, const int y_off, const float power) {
    int i = get_global_id(0);
    if (i >= total) return;
#if NHWC
    const int channel = i % c4; i /= c4;
    const int o2 = i % e2; i /= e2;
    const int o1 = i % e1; i /= e1;
    const int o0 = i % e0, image = i / e0;
#else
    const int o2 = i % e2; i /= e2;
    const int o1 = i % e1; i /= e1;
    const int o0 = i % e0; i /= e0;
    const int channel = i % c, image = i / c;
#endif
    const int to = y_off + image * yn + channel * yc + o0 * y0 + o1 * y1 + o2 * y2;
#if NHWC
    if (channel >= c) {
        STORE((C)0, y, to);
        return;
    }
#endif
    const int from = x_off + image * xn + channel * xc;
    const int b0 = o0 * s0 - p0, b1 = o1 * s1 - p1, b2 = o2 * s2 - p2;
#if KIND == MAX
    C best = 0;
    long at = -1;
#else
    float sum = 0.0f;
    int count = 0;
#endif
    for (int i0 = 0; i0 < k0; ++i0) {
        const int a0 = b0 + i0 * l0;
        for (int i1 = 0; i1 < k1; ++i1) {
            const int a1 = b1 + i1 * l1;
            for (int i2 = 0; i2 < k2; ++i2) {
                const int a2 = b2 + i2 * l2;
#if KIND == AVERAGE && INCLUDE_PAD
                count += a0 < d0 + q0 && a1 < d1 + q1 && a2 < d2 + q2;
#endif
                if (a0 < 0 || a0 >= d0 || a1 < 0 || a1 >= d1 || a2 < 0 || a2 >= d2) continue;
                const C v = LOAD(x, from + a0 * x0 + a1 * x1 + a2 * x2);
#if KIND == MAX
                if (at < 0 || v > best) {
                    best = v;
                    at = (long)(image * c + channel) * d0 * d1 * d2 + a0 * w0 + a1 * w1 + a2 * w2;
                }
#elif KIND == AVERAGE
                sum += (float)v;
                count += !INCLUDE_PAD;
#else
                sum += POWER == 1 ? fabs((float)v) : POWER == 2 ? (float)v * (float)v : pow(fabs((float)v), power);
#endif
            }
        }
    }
#if KIND == MAX
    STORE(best, y, to);
#if INDICES
    where[to] = at;
#endif
#elif KIND == AVERAGE
    STORE((C)(sum / (float)max(count, 1)), y, to);
#else
    STORE((C)(POWER == 1 ? sum : POWER == 2 ? sqrt(sum) : pow(sum, 1.0f / power)), y, to);
#endif
}
