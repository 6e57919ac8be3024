/* 1x1 convolution whose weights are the same for every lane of a wavefront.
 *
 *   y[m, o] = act(sum over c of x[m, c] * w[c, o] + bias[o] (+ residual))
 *
 * A lane owns PX pixels and ON output channels; a wavefront owns 64*PX pixels and the same ON channels, so every
 * address of w is uniform. GCN reads it with s_load into scalar registers and multiplies with v_mac_f32 v, s, v:
 * no local memory, no barrier, nothing but multiply-adds in the inner loop. A lane walks along the channels of
 * its own pixels, 16 bytes at a time: a cache line serves four steps.
 *
 * Layout   x float [M, ldx] from x_off, w quads (weights.clh) of [blocks of ON][C][ON] with zeros past O, y [M, ldy] from y_off,
 *          res likewise. C and O are multiples of 4. With SPLIT y is the parts [split][M][ldy], no epilogue.
 * Work     groups of 64: one wavefront. Dimension 1 is the blocks of channels, dimension 2 the parts of C.
 */
#include "epilogue.clh"
#include "weights.clh"

#define ON4 (ON / 4)
#if SPLIT
#define YT float
#else
#define YT XT
#endif

__kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void conv_uniform(__global const XT *restrict x, WEIGHT_PARAM BIAS_PARAM RES_PARAM
                  __global YT *restrict y, const int M, const int C, const int O, const int part_c,
                  const int x_off, const int ldx, const int y_off, const int ldy, const int res_off,
                  const int ldres, const float p0, const float p1) {
    WEIGHT_BEGIN;
    const int m0 = get_group_id(0) * (64 * PX) + get_local_id(0);
    const int block = get_group_id(1), part = get_group_id(2);
    const int first = part * part_c, last = min(first + part_c, C);

    int at[PX];
#pragma unroll
    for (int p = 0; p < PX; ++p) at[p] = x_off + min(m0 + 64 * p, M - 1) * ldx;
    float4 acc[PX][ON4];
#pragma unroll
    for (int p = 0; p < PX; ++p)
#pragma unroll
        for (int j = 0; j < ON4; ++j) acc[p][j] = (float4)(0.0f);

    __global const QUAD *row = w + (block * C + first) * ON4;
    for (int c = first; c < last; c += 4 * DEPTH) {
        float4 a[PX][DEPTH];
#pragma unroll
        for (int q = 0; q < DEPTH; ++q)
#pragma unroll
            for (int p = 0; p < PX; ++p)
                a[p][q] = c + 4 * q < last ? GET4(x + at[p] + c + 4 * q) : (float4)(0.0f);
#pragma unroll
        for (int q = 0; q < DEPTH; ++q) {
#pragma unroll
            for (int j = 0; j < ON4; ++j) {
                const float4 b0 = WEIGHT4(row + j), b1 = WEIGHT4(row + ON4 + j);
                const float4 b2 = WEIGHT4(row + 2 * ON4 + j), b3 = WEIGHT4(row + 3 * ON4 + j);
#pragma unroll
                for (int p = 0; p < PX; ++p) {
                    acc[p][j] += a[p][q].x * b0;
                    acc[p][j] += a[p][q].y * b1;
                    acc[p][j] += a[p][q].z * b2;
                    acc[p][j] += a[p][q].w * b3;
                }
            }
            row += 4 * ON4;
        }
    }

#pragma unroll
    for (int p = 0; p < PX; ++p) {
        const int m = m0 + 64 * p;
        if (m >= M) continue;
#pragma unroll
        for (int j = 0; j < ON4; ++j) {
            const int o = block * ON + 4 * j;
            if (o >= O) continue;
            float4 v = SCALED4(acc[p][j], o);
#if SPLIT
            *(__global float4 *)(y + (part * M + m) * ldy + o) = v;
#else
#if BIAS
            v += *(__global const float4 *)(bias + o);
#endif
#if RES == 1
            v += GET4(res + res_off + m * ldres + o);
#endif
            v = activate4(v, p0, p1);
#if RES == 2
            v += GET4(res + res_off + m * ldres + o);
#endif
            PUT4(y + y_off + m * ldy + o, v);
#endif
        }
    }
}
