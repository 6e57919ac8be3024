/* Pooling of regions of interest, sampled bilinearly.
 *
 *   y[r, c, py, px] = mean (or max) over a grid of samples in bin (py, px) of region r
 *
 * Layout   x [n, c, h, w], rois [regions, 4] as x1, y1, x2, y2, batch [regions], y [regions, c, ph, pw].
 * Work     one work-item an element of y. MAXIMUM 1 takes the largest weighted corner, as ONNX defines it.
 *          HALF_PIXEL 1 moves the regions by half an element and lets them be smaller than 1.
 */
#include "element.clh"

__kernel void roi_align(__global const T *restrict x, __global const T *restrict rois,
                        __global const I *restrict batch, __global T *restrict y, const int n,
                        const int channels, const int h, const int w, const int ph, const int pw,
                        const int ratio, const float scale) {
    const int e = get_global_id(0);
    if (e >= n) return;
    const int px = e % pw, py = (e / pw) % ph, c = (e / pw / ph) % channels, r = e / pw / ph / channels;
    const float shift = HALF_PIXEL ? 0.5f : 0.0f;
    const float x1 = LOAD(rois, r * 4) * scale - shift, y1 = LOAD(rois, r * 4 + 1) * scale - shift;
    float width = LOAD(rois, r * 4 + 2) * scale - shift - x1;
    float height = LOAD(rois, r * 4 + 3) * scale - shift - y1;
#if !HALF_PIXEL
    width = fmax(width, 1.0f);
    height = fmax(height, 1.0f);
#endif
    const float bw = width / pw, bh = height / ph;
    const int gx = ratio > 0 ? ratio : (int)ceil(bw), gy = ratio > 0 ? ratio : (int)ceil(bh);
    const int plane = ((int)batch[r] * channels + c) * h;
    float result = 0.0f;
    int any = 0;
    for (int j = 0; j < gy; ++j) {
        for (int i = 0; i < gx; ++i) {
            float sy = y1 + py * bh + (j + 0.5f) * bh / gy, sx = x1 + px * bw + (i + 0.5f) * bw / gx;
            float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (sy >= -1.0f && sy <= h && sx >= -1.0f && sx <= w) {
                sy = clamp(sy, 0.0f, h - 1.0f);
                sx = clamp(sx, 0.0f, w - 1.0f);
                const int top = (int)sy, left = (int)sx;
                const int bottom = min(top + 1, h - 1), right = min(left + 1, w - 1);
                const float fy = sy - top, fx = sx - left;
                v[0] = (1.0f - fy) * (1.0f - fx) * LOAD(x, (plane + top) * w + left);
                v[1] = (1.0f - fy) * fx * LOAD(x, (plane + top) * w + right);
                v[2] = fy * (1.0f - fx) * LOAD(x, (plane + bottom) * w + left);
                v[3] = fy * fx * LOAD(x, (plane + bottom) * w + right);
            }
#if MAXIMUM
            const float best = fmax(fmax(v[0], v[1]), fmax(v[2], v[3]));
            result = any ? fmax(result, best) : best;
            any = 1;
#else
            result += v[0] + v[1] + v[2] + v[3];
#endif
        }
    }
    STORE(MAXIMUM ? result : result / max(gx * gy, 1), y, e);
}
