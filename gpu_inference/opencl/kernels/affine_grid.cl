/* The grid of positions in [-1, 1] that an affine map of the regular grid comes to.
 *
 *   y[n, p] = theta[n] * (x, y(, z), 1)
 *
 * Layout   theta [n, DIMS, DIMS + 1], y [n, d, h, w, DIMS] (d is 1 for DIMS 2).
 * Work     one work-item a position. ALIGN 1: -1 and 1 are the centres of the corner elements.
 */
#include "element.clh"

inline float position(const int i, const int size) {
#if ALIGN
    return size > 1 ? 2.0f * i / (size - 1) - 1.0f : -1.0f;
#else
    return (2.0f * i + 1.0f) / size - 1.0f;
#endif
}

__kernel void affine_grid(__global const T *restrict theta, __global T *restrict y, const int n, const int d,
                          const int h, const int w) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int px = i % w, py = (i / w) % h, pz = (i / w / h) % d;
    const int base = (i / w / h / d) * DIMS * (DIMS + 1);
    const float p[3] = {position(px, w), position(py, h), position(pz, d)};
    for (int row = 0; row < DIMS; ++row) {
        const int t = base + row * (DIMS + 1);
        float sum = LOAD(theta, t + DIMS);
        for (int k = 0; k < DIMS; ++k) sum += LOAD(theta, t + k) * p[k];
        STORE(sum, y, i * DIMS + row);
    }
}
