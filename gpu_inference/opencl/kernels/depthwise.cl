/* Depthwise convolution (one filter a channel), NHWC.
 *
 *   y[n, oy, ox, c] = act(sum over ky, kx of x[n, oy*SH - pt + ky*DH, ox*SW - pl + kx*DW, c] * w[ky, kx, c]
 *                         + bias[c] (+ residual))
 *
 * Memory decides here (18 flops for 8 bytes at 3x3), so a work-item makes PY x PX neighbouring pixels of VN
 * channels and keeps the rows that they share in registers: with 3x3, stride 1 and 2x4 pixels it reads
 * 4*6 vectors for 8 results instead of 72. Lanes lie along channels: every access is a whole cache line.
 *
 * Layout   x [N, H, W, ldx] from x_off, y [N, OH, OW, ldy] from y_off, w quads (weights.clh) of [KH][KW][C4].
 *          C4 is a multiple of VN.
 * Work     dimension 0: channel vectors x strips in a row, 1: strips of rows x N. KH, KW, SH, SW, DH, DW, PX, PY
 *          are compile-time, so that the window is indexed by constants and lives in registers.
 */
#include "epilogue.clh"
#include "weights.clh"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define VEC CAT(float, VN)
#define SPAN_X ((PX - 1) * SW + (KW - 1) * DW + 1)

#if VN == 4
#define ACTIVATE(v) activate4(v, p0, p1)
#elif VN == 8
#define ACTIVATE(v) ((float8)(activate4((v).lo, p0, p1), activate4((v).hi, p0, p1)))
#else
#define ACTIVATE(v)                                                                                        \
    ((float16)(activate4((v).lo.lo, p0, p1), activate4((v).lo.hi, p0, p1), activate4((v).hi.lo, p0, p1),   \
               activate4((v).hi.hi, p0, p1)))
#endif
/* Tensors are aligned to four elements, not to a wider vector. */
#define LOAD(p) CAT(GET, VN)(p)
#define STORE(v, p) CAT(PUT, VN)(p, v)
#if VN == 4
#define BIAS_AT(p) (*(__global const float4 *)(p))
#else
#define BIAS_AT(p) CAT(vload, VN)(0, p)
#endif

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void depthwise(__global const XT *restrict x, WEIGHT_PARAM BIAS_PARAM RES_PARAM
               __global XT *restrict y, const int CV, /* vectors of channels */
               const int strips_x, const int strips_y, const int x_off, const int ldx, const int y_off,
               const int ldy, const int res_off, const int ldres, const int H, const int W, const int OH,
               const int OW, const int PT, const int PL, const float p0, const float p1) {
    WEIGHT_BEGIN;
    const int id = get_global_id(0);
    const int strip_x = id / CV;
    if (strip_x >= strips_x) return;
    const int c = (id - strip_x * CV) * VN;
    const int strip = get_global_id(1);
    const int n = strip / strips_y;
    const int oy0 = (strip - n * strips_y) * PY;
    const int ox0 = strip_x * PX;
    const int iy0 = oy0 * SH - PT;
    const int ix0 = ox0 * SW - PL;

    VEC acc[PY][PX];
#pragma unroll
    for (int j = 0; j < PY; ++j)
#pragma unroll
        for (int i = 0; i < PX; ++i) acc[j][i] = (VEC)(0.0f);

    __global const XT *image = x + x_off + n * H * W * ldx + c;
#pragma unroll
    for (int r = 0; r < (PY - 1) * SH + (KH - 1) * DH + 1; ++r) {
        const int iy = iy0 + r;
        if (iy >= 0 && iy < H) {
            VEC window[SPAN_X];
#pragma unroll
            for (int s = 0; s < SPAN_X; ++s) {
                const int ix = ix0 + s;
                window[s] = ix >= 0 && ix < W ? LOAD(image + (iy * W + ix) * ldx) : (VEC)(0.0f);
            }
#pragma unroll
            for (int j = 0; j < PY; ++j) {
                const int d = r - j * SH;
                if (d >= 0 && d % DH == 0 && d / DH < KH) {
#pragma unroll
                    for (int kx = 0; kx < KW; ++kx) {
                        const VEC f = CAT(WEIGHT, VN)(QUAD_OF(w, (d / DH * KW + kx) * CV * VN, c));
#pragma unroll
                        for (int i = 0; i < PX; ++i) acc[j][i] = mad(window[i * SW + kx * DW], f, acc[j][i]);
                    }
                }
            }
        }
    }

#if BIAS
    const VEC b = BIAS_AT(bias + c);
#endif
#pragma unroll
    for (int j = 0; j < PY; ++j) {
#pragma unroll
        for (int i = 0; i < PX; ++i) {
            if (oy0 + j < OH && ox0 + i < OW) {
                const int m = (n * OH + oy0 + j) * OW + ox0 + i;
                VEC v = CAT(SCALED, VN)(acc[j][i], c);
#if BIAS
                v += b;
#endif
#if RES == 1
                v += LOAD(res + res_off + m * ldres + c);
#endif
                v = ACTIVATE(v);
#if RES == 2
                v += LOAD(res + res_off + m * ldres + c);
#endif
                STORE(v, y + y_off + m * ldy + c);
            }
        }
    }
}
