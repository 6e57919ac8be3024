/* Convolution from registers alone, NHWC: no local memory, no barrier.
 *
 *   y[n, oy, ox, o] = act(sum over ky, kx, c of x[n, oy*sh - pt + ky*dh, ox*sw - pl + kx*dw, c] * w[o, c, ky, kx]
 *                         + bias[o] (+ residual)), groups apart
 *
 * For CPUs, where a barrier costs a loop over the group, and for groups too narrow for conv_nhwc.cl (any number
 * of channels: x is read float by float).
 *
 * Layout   x float [N, H, W, ldx] from x_off; with NCHW plain [N, C, H, W]
 *          w quads (weights.clh) of [groups][blocks of NV*VN output channels][KH][KW][Cg][NV*VN], zeros past Og
 *          y float [N, OH, OW, ldy] from y_off; res likewise. With O not a multiple of 4, the padding channels
 *          of y are written too (with the activation of zero): they must be finite.
 * Work     one work-item: PX neighbouring pixels of one output row x NV*VN output channels, PX*NV vectors of
 *          sums. VN is the device's vector (16 with AVX-512, 4 on a GPU). Dimension 0 is the strips of pixels
 *          on a CPU, so that a block's weights stay in its L2, and the blocks of channels on a GPU
 *          (BLOCKS_FIRST), so that neighbouring lanes read neighbouring weights and the same pixels.
 */
#include "epilogue.clh"
#include "weights.clh"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define VEC CAT(float, VN)
#define WEIGHTS_AT(p) CAT(WEIGHT, VN)(p)
#define VSTORE CAT(vstore, VN)
#define WIDE (NV * VN)
#define WIDE4 (WIDE / 4)
/* floats from a pixel to the next, from a channel to the next */
#if NCHW
#define STEP_X 1
#define STEP_C (H * W)
#else
#define STEP_X ldx
#define STEP_C 1
#endif

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void conv_direct(__global const XT *restrict x, WEIGHT_PARAM BIAS_PARAM RES_PARAM
                 __global XT *restrict y,
                 const int rows,   /* N*OH */
                 const int strips, /* ceil(OW / PX) */
                 const int blocks, /* of output channels in a group */
                 const int groups, const int C, const int O, const int O_all, const int x_off, const int ldx,
                 const int y_off, const int ldy, const int res_off, const int ldres, const int H, const int W,
                 const int OH, const int OW, const int KH, const int KW, const int SH, const int SW, const int PT,
                 const int PL, const int DH, const int DW, const float p0, const float p1) {
    WEIGHT_BEGIN;
#if BLOCKS_FIRST
    const int all_block = get_global_id(0);
    const int strip = get_global_id(1);
#else
    const int all_block = get_global_id(1);
    const int strip = get_global_id(0);
#endif
    if (all_block >= blocks * groups || strip >= rows * strips) return;
    const int group = all_block / blocks;
    const int block = all_block - group * blocks;
    const int row = strip / strips;
    const int ox0 = (strip - row * strips) * PX;
    const int n = row / OH;
    const int oy = row - n * OH;
    const int iy0 = oy * SH - PT;
    const int ix0 = ox0 * SW - PL;

    VEC acc[PX][NV];
#pragma unroll
    for (int p = 0; p < PX; ++p)
#pragma unroll
        for (int v = 0; v < NV; ++v) acc[p][v] = (VEC)(0.0f);

    __global const QUAD *wp = w + all_block * KH * KW * C * WIDE4;
    for (int ky = 0; ky < KH; ++ky) {
        const int iy = iy0 + ky * DH;
        if (iy < 0 || iy >= H) {
            wp += KW * C * WIDE4;
            continue;
        }
#if NCHW
        __global const XT *line = x + x_off + ((n * groups + group) * C * H + iy) * W;
#else
        __global const XT *line = x + x_off + (n * H + iy) * W * ldx + group * C;
#endif
        for (int kx = 0; kx < KW; ++kx) {
            const int ix = ix0 + kx * DW;
            if (ix >= 0 && ix + (PX - 1) * SW < W) {
                __global const XT *xp = line + ix * STEP_X;
                for (int c = 0; c < C; ++c) {
                    VEC b[NV];
#pragma unroll
                    for (int v = 0; v < NV; ++v) b[v] = WEIGHTS_AT(wp + v * (VN / 4));
#pragma unroll
                    for (int p = 0; p < PX; ++p) {
                        const VEC a = (VEC)(GET(xp, p * SW * STEP_X + c * STEP_C));
#pragma unroll
                        for (int v = 0; v < NV; ++v) acc[p][v] = mad(a, b[v], acc[p][v]);
                    }
                    wp += WIDE4;
                }
            } else {
                for (int c = 0; c < C; ++c) {
                    VEC b[NV];
#pragma unroll
                    for (int v = 0; v < NV; ++v) b[v] = WEIGHTS_AT(wp + v * (VN / 4));
#pragma unroll
                    for (int p = 0; p < PX; ++p) {
                        const int at = ix + p * SW;
                        const VEC a = (VEC)(at >= 0 && at < W ? GET(line, at * STEP_X + c * STEP_C) : 0.0f);
#pragma unroll
                        for (int v = 0; v < NV; ++v) acc[p][v] = mad(a, b[v], acc[p][v]);
                    }
                    wp += WIDE4;
                }
            }
        }
    }

    /* the last block also writes the channels that pad the tensor */
    const int o0 = block * WIDE;
    const int limit = group == groups - 1 ? O_all - group * O : O;
#pragma unroll
    for (int p = 0; p < PX; ++p) {
        const int ox = ox0 + p;
        if (ox < OW) {
            const int m = row * OW + ox;
#pragma unroll
            for (int v = 0; v < NV; ++v) {
                float lanes[VN];
                VSTORE(acc[p][v], 0, lanes);
#pragma unroll
                for (int l = 0; l < VN; ++l) {
                    const int o = o0 + v * VN + l;
                    if (o < limit) {
                        const int oo = group * O + o;
                        float r = SCALED(lanes[l], oo);
#if BIAS
                        r += bias[oo];
#endif
#if RES == 1
                        r += GET(res, res_off + m * ldres + oo);
#endif
                        r = activate(r, p0, p1);
#if RES == 2
                        r += GET(res, res_off + m * ldres + oo);
#endif
                        PUT(y, y_off + m * ldy + oo, r);
                    }
                }
            }
        }
    }
}
