/* Products of 8-bit integers with zero points, summed in 32 bits.
 *
 *   integer_matmul   y[b, m, n] = sum over k of (a[b, m, k] - za[m]) (w[b, k, n] - zw[n])
 *   integer_conv     y[n, o, p] = sum over c, taps of (x[n, c, at] - zx) (w[o, c, taps] - zw[o])
 *
 * Layout   dense, row-major; zero points are one for all (step 0) or one a row, column or filter (step 1).
 *          Batches of a and w repeat every a_batches and w_batches matrices. Three spatial dimensions,
 *          leading ones of 1. Outside the image is the zero point, so nothing is added.
 * Work     one work-item an element of y. A and W: types of the operands.
 */
__kernel void integer_matmul(__global const A *restrict a, __global const W *restrict w,
                             __global const A *restrict za, __global const W *restrict zw,
                             __global int *restrict y, const int total, const int m, const int n, const int k,
                             const int a_batches, const int w_batches, const int za_step, const int zw_step) {
    const int i = get_global_id(0);
    if (i >= total) return;
    const int column = i % n, row = (i / n) % m, batch = i / n / m;
    const int a0 = ((batch % a_batches) * m + row) * k, w0 = (batch % w_batches) * k * n + column;
    const int a_zero = za[row * za_step], w_zero = zw[column * zw_step];
    int sum = 0;
    for (int j = 0; j < k; ++j) sum += ((int)a[a0 + j] - a_zero) * ((int)w[w0 + j * n] - w_zero);
    y[i] = sum;
}

__kernel void integer_conv(__global const A *restrict x, __global const W *restrict w,
                           __global const A *restrict zx, __global const W *restrict zw,
                           __global int *restrict y, const int total, const int filters, const int channels,
                           const int groups, const int zw_step, const int d, const int h, const int v,
                           const int od, const int oh, const int ow, const int kd, const int kh, const int kw,
                           const int sd, const int sh, const int sw, const int dd, const int dh, const int dw,
                           const int pd, const int ph, const int pw) {
    const int i = get_global_id(0);
    if (i >= total) return;
    const int ox = i % ow, oy = (i / ow) % oh, oz = (i / ow / oh) % od;
    const int filter = (i / ow / oh / od) % filters, image = i / ow / oh / od / filters;
    const int group = filter / (filters / groups);
    const int x_zero = zx[0], w_zero = zw[filter * zw_step];
    int sum = 0;
    for (int c = 0; c < channels; ++c) {
        const int plane = (image * groups + group) * channels + c, taps = (filter * channels + c) * kd;
        for (int a = 0; a < kd; ++a) {
            const int z = oz * sd - pd + a * dd;
            if (z < 0 || z >= d) continue;
            for (int b = 0; b < kh; ++b) {
                const int r = oy * sh - ph + b * dh;
                if (r < 0 || r >= h) continue;
                for (int e = 0; e < kw; ++e) {
                    const int q = ox * sw - pw + e * dw;
                    if (q < 0 || q >= v) continue;
                    sum += ((int)x[((plane * d + z) * h + r) * v + q] - x_zero) *
                           ((int)w[((taps + a) * kh + b) * kw + e] - w_zero);
                }
            }
        }
    }
    y[i] = sum;
}
