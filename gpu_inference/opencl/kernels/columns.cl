/* Columns of filter taps, to and from images.
 *
 *   col2im           y[n, c, p] = sum of x[n, c, taps, block] over the blocks and taps that lie on p
 *   deform_columns   col[n, c, a, b, p] = mask * bilinear sample of x[n, c] at tap (a, b) of p, moved by offset
 *
 * Layout   col2im: x [n, c, kd*kh*kw, blocks], y [n, c, d, h, w]; leading spatial dimensions of 1.
 *          deform_columns: offset [n, groups, kh, kw, 2, oh, ow], mask [n, groups, kh, kw, oh, ow],
 *          col [n, c, kh, kw, oh, ow], which a product with the filters turns into the result.
 * Work     one work-item an element of the result; col2im gathers, so that nothing is added twice at once.
 *          MASK 0: there is no mask.
 */
#include "element.clh"

/* The block along one axis whose tap `a` lies on element i, -1 where there is none. */
inline int block_of(const int i, const int a, const int stride, const int dilation, const int pad,
                    const int blocks) {
    const int v = i + pad - a * dilation;
    return (v >= 0 && v % stride == 0 && v / stride < blocks) ? v / stride : -1;
}

#if DEFORM == 0
__kernel void col2im(__global const T *restrict x, __global T *restrict y, const int n, const int d,
                     const int h, const int w, const int kd, const int kh, const int kw, const int sd,
                     const int sh, const int sw, const int dd, const int dh, const int dw, const int pd,
                     const int ph, const int pw, const int bd, const int bh, const int bw) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int px = i % w, py = (i / w) % h, pz = (i / w / h) % d, plane = i / w / h / d;
    C sum = 0;
    for (int a = 0; a < kd; ++a) {
        const int z = block_of(pz, a, sd, dd, pd, bd);
        if (z < 0) continue;
        for (int b = 0; b < kh; ++b) {
            const int r = block_of(py, b, sh, dh, ph, bh);
            if (r < 0) continue;
            for (int c = 0; c < kw; ++c) {
                const int q = block_of(px, c, sw, dw, pw, bw);
                if (q < 0) continue;
                const int tap = ((plane * kd + a) * kh + b) * kw + c;
                sum += LOAD(x, ((tap * bd + z) * bh + r) * bw + q);
            }
        }
    }
    STORE(sum, y, i);
}
#else
inline float at(__global const float *restrict x, const int row, const int column, const int h, const int w) {
    return (row >= 0 && row < h && column >= 0 && column < w) ? x[row * w + column] : 0.0f;
}

__kernel void deform_columns(__global const float *restrict x, __global const float *restrict offset,
                             __global const float *restrict mask, __global float *restrict y, const int n,
                             const int channels, const int h, const int w, const int groups, const int kh,
                             const int kw, const int oh, const int ow, const int sh, const int sw,
                             const int dh, const int dw, const int ph, const int pw) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int px = i % ow, py = (i / ow) % oh, b = (i / ow / oh) % kw, a = (i / ow / oh / kw) % kh;
    const int plane = i / ow / oh / kw / kh;
    const int group = plane / channels * groups + plane % channels / (channels / groups);
    const int tap = (group * kh + a) * kw + b, p = py * ow + px, size = oh * ow;
    const float row = py * sh - ph + a * dh + offset[tap * 2 * size + p];
    const float column = px * sw - pw + b * dw + offset[(tap * 2 + 1) * size + p];
    const float top = floor(row), left = floor(column), fy = row - top, fx = column - left;
    const int r = (int)top, c = (int)left;
    __global const float *image = x + plane * h * w;
    float v = (1.0f - fy) * ((1.0f - fx) * at(image, r, c, h, w) + fx * at(image, r, c + 1, h, w)) +
              fy * ((1.0f - fx) * at(image, r + 1, c, h, w) + fx * at(image, r + 1, c + 1, h, w));
#if MASK
    v *= mask[tap * size + p];
#endif
    y[i] = v;
}
#endif
