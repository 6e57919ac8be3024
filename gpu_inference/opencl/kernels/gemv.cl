/* A few rows times a constant matrix: the fully connected layer at batch 1 to 4.
 *
 *   y[m, n] = act(alpha * sum over k of x[m, k] * w[n, k] + bias[m*bias_sm + n*bias_sn] (+ residual))
 *
 * The weights are read once and nothing is reused, so memory decides: LANES neighbouring work-items read LANES
 * contiguous quads of one column's weights, and many columns are in flight.
 *
 * Layout   x [ROWS, K], w quads (weights.clh) of [N][K4] (K padded with zeros to a multiple of 4), y and residual [ROWS, N].
 * Work     256 work-items make 256/LANES columns; their sums are added in local memory.
 *          VEC_A: K is a multiple of 4, so x is read as float4.
 */
#include "epilogue.clh"
#include "weights.clh"

#define COLUMNS (256 / LANES)

__kernel __attribute__((reqd_work_group_size(256, 1, 1)))
void gemv(__global const XT *restrict x, WEIGHT_PARAM BIAS_PARAM RES_PARAM
          __global XT *restrict y, const int N, const int K, const int bias_sm, const int bias_sn,
          const float alpha, const float p0, const float p1) {
    __local float sums[ROWS][COLUMNS][LANES + 1];
    WEIGHT_BEGIN;
    const int lane = get_local_id(0) % LANES;
    const int column = get_local_id(0) / LANES;
    const int n = get_group_id(0) * COLUMNS + column;
    const int quads = (K + 3) / 4;

    float4 acc[ROWS];
#pragma unroll
    for (int m = 0; m < ROWS; ++m) acc[m] = (float4)(0.0f);
    if (n < N) {
        __global const QUAD *row = w + n * quads;
#pragma unroll 4
        for (int q = lane; q < quads; q += LANES) {
            const float4 f = WEIGHT4(row + q);
#pragma unroll
            for (int m = 0; m < ROWS; ++m) {
                __global const XT *p = x + m * K + q * 4;
#if VEC_A
                const float4 v = GET4(p);
#else
                const int left = K - q * 4;
                const float4 v = (float4)(GET(p, 0), left > 1 ? GET(p, 1) : 0.0f, left > 2 ? GET(p, 2) : 0.0f,
                                          left > 3 ? GET(p, 3) : 0.0f);
#endif
                acc[m] = mad(f, v, acc[m]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < ROWS; ++m)
        sums[m][column][lane] = (acc[m].x + acc[m].y) + (acc[m].z + acc[m].w);
    for (int reach = LANES / 2; reach > 0; reach /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < reach) {
#pragma unroll
            for (int m = 0; m < ROWS; ++m) sums[m][column][lane] += sums[m][column][lane + reach];
        }
    }
    if (lane == 0 && n < N) {
#pragma unroll
        for (int m = 0; m < ROWS; ++m) {
            float s = SCALED(sums[m][column][0], n) * alpha;
#if BIAS
            s += bias[m * bias_sm + n * bias_sn];
#endif
#if RES == 1
            s += GET(res, m * N + n);
#endif
            s = activate(s, p0, p1);
#if RES == 2
            s += GET(res, m * N + n);
#endif
            PUT(y, m * N + n, s);
        }
    }
}
