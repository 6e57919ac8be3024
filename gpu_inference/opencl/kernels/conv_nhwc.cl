/* Convolution as a matrix product without the unfolded matrix (implicit GEMM), NHWC.
 *
 *   y[n, oy, ox, o] = act(sum over ky, kx, c of x[n, oy*sh - pt + ky*dh, ox*sw - pl + kx*dw, c] * w[ky, kx, c, o]
 *                         + bias[o] (+ residual))
 *
 * Rows of the product are output pixels m = (n, oy, ox), columns are output channels o, the inner dimension
 * is k = (ky, kx, c) with c fastest.
 *
 * Layout   x  float [N, H, W, ldx], channels padded with zeros to a multiple of 4 (C4); ldx >= C4 and x_off
 *             let it be a slice of channels of a wider tensor
 *          w  quads (weights.clh) of [groups][K rounded up to WK][Og4]: zero rows past K and columns past O
 *          y  float [N, OH, OW, ldy] from y_off; res likewise
 *          With NCHW (the first layer), x is plain float [N, C, H, W] and w's rows are k = (c, ky, kx).
 *          With SPLIT, y is the workspace [split][M][groups*Og4], and splitk.cl adds the parts and runs
 *          the epilogue.
 *
 * Loads    A work-item fetches the same float4 of k for A_LOADS pixels, so that the tap (ky, kx) and the
 *          channel are stepped once a tile with additions only; pixels come from registers. POINTWISE (1x1,
 *          no padding) drops the bounds checks. BATCH: gridZ products with their own x, w and y, for Winograd.
 *          NCHW: neighbouring work-items fetch neighbouring pixels of one k, float by float, and find its tap in
 *          a table in local memory; that saves the transposition of the image and the fourth channel.
 *
 * Work-group and tile: tile.clh. Group (x: column tile, y: row tile, z: group * split + part): column tiles
 * are neighbours, so that the pixels of a row tile are read from cache by all of them.
 */
#include "epilogue.clh"
#include "tile.clh"
#include "weights.clh"

/* What is added later, or transformed, stays float. */
#if SPLIT || BATCH
#define YT float
#define PUT_Y(p, v) *(__global float4 *)(p) = (v)
#else
#define YT XT
#define PUT_Y PUT4
#endif
#define KQ (BK / 4)
#if NCHW
#define A_LOADS (BM * BK / THREADS)
#define A_STEP (THREADS / BM) /* rows k between two loads; THREADS is a multiple of BM */
#define A_TYPE float
#else
#define A_QUADS (BM * KQ)
#define A_LOADS ((A_QUADS + THREADS - 1) / THREADS)
#define A_STEP (THREADS / KQ) /* pixels between two loads */
#define A_TYPE float4
#endif
#define B_QUADS (BK * BN4)
#define B_LOADS ((B_QUADS + THREADS - 1) / THREADS)
#define B_STEP (THREADS / BN4)

__kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void conv_nhwc(__global const XT *restrict x, WEIGHT_PARAM BIAS_PARAM RES_PARAM
               __global YT *restrict y,
               const int M,          /* output pixels N*OH*OW */
               const int C,          /* input channels of a group, multiple of 4 */
               const int O,          /* output channels of a group, multiple of 4 */
               const int steps,      /* tiles of BK along the inner dimension */
               const int part_steps, /* of which one of the parts handles so many */
               const int split,      /* parts of the inner dimension; 1 without SPLIT */
               const int w_stride,   /* quads of w of one group (or product of a batch) */
               const int x_off, const int ldx, const int y_off, const int ldy,
               const int res_off, const int ldres,
#if !POINTWISE
               const int H, const int W, const int OH, const int OW,
               const int KH, const int KW, const int SH, const int SW,
               const int PT, const int PL, const int DH, const int DW,
#endif
               const float p0, const float p1) {
    __local float4 pool[POOL];
    __local float4 *const as = pool;
    __local float4 *const bs = pool + 2 * A_TILE;

    WEIGHT_BEGIN;
    const int tid = get_local_id(0);
    const int lane = tid % PLANE;
    const int slice = tid / PLANE;
    const int tx = lane % TX;
    const int ty = lane / TX;
    const int m0 = get_group_id(1) * BM;
    const int o0 = get_group_id(0) * BN;
#if SPLIT
    const int part = get_group_id(2) % split;
    const int group = get_group_id(2) / split;
#else
    const int part = 0;
    const int group = get_group_id(2);
#endif
    const int tiles = min(part_steps, steps - part * part_steps);
#if NCHW
    const int am = tid % BM;
    const int ak = tid / BM;
#else
    const int kq = tid % KQ;
    const int am = tid / KQ;
#endif
    const int bq = tid % BN4;
    const int bk = tid / BN4;
    const int k_first = part * part_steps * BK;

    /* where this work-item's pixels start */
#if NCHW
    /* k -> (offset in x, dy << 16 | dx) */
    __local int2 taps[MAX_K];
    for (int k = tid; k < steps * BK; k += THREADS) {
        const int cc = k / (KH * KW);
        const int dy = (k / KW - cc * KH) * DH;
        const int dx = k % KW * DW;
        taps[k] = cc < C ? (int2)((cc * H + dy) * W + dx, dy << 16 | dx) : (int2)(0, 0x7fff << 16);
    }
    const int m_mine = m0 + am;
    const int row = m_mine / OW;
    const int iy0 = m_mine < M ? row % OH * SH - PT : -0x10000000;
    const int ix0 = (m_mine - row * OW) * SW - PL;
    __global const XT *xp = x + x_off + (row / OH * C * H + (row % OH * SH - PT)) * W + ix0;
    w += group * w_stride;
    int k_mine = k_first + ak;
    barrier(CLK_LOCAL_MEM_FENCE);
#elif POINTWISE
    int base[A_LOADS];
    bool inside[A_LOADS];
#if BATCH
    x += group * M * ldx;
    w += group * w_stride;
    const int c_off = x_off;
#else
    const int c_off = x_off + group * C;
    w += group * w_stride;
#endif
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
        const int m = m0 + am + i * A_STEP;
        inside[i] = m < M;
        base[i] = (m < M ? m : 0) * ldx + c_off;
    }
    int c = k_first + kq * 4;
#else
    w += group * w_stride;
    int base[A_LOADS];
    int iy0[A_LOADS], ix0[A_LOADS];
    const int c_off = x_off + group * C;
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
        const int m = m0 + am + i * A_STEP;
        const int ox = m % OW;
        const int row = m / OW;
        const int oy = row % OH;
        const int n = row / OH;
        iy0[i] = m < M ? oy * SH - PT : -0x10000000;
        ix0[i] = ox * SW - PL;
        base[i] = ((n * H + (oy * SH - PT)) * W + ix0[i]) * ldx + c_off;
    }
    int c = k_first + kq * 4;
    const int tap = c / C;
    c -= tap * C;
    int ky = tap / KW;
    int kx = tap - ky * KW;
#endif
    const bool b_inside = o0 + bq * 4 < O;
    const int OQ = O >> 2;
    __global const QUAD *wp = w + (k_first + bk) * OQ + (b_inside ? (o0 >> 2) + bq : 0);

    float4 acc[TM][TN4];
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN4; ++j) acc[i][j] = (float4)(0.0f);

    A_TYPE ra[A_LOADS];
    float4 rb[B_LOADS];

#if NCHW
#define LOAD_A()                                                                                           \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < A_LOADS; ++i) {                                              \
            const int2 tap = taps[k_mine + i * A_STEP];                                                    \
            const int iy = iy0 + (tap.y >> 16), ix = ix0 + (tap.y & 0xffff);                               \
            ra[i] = (uint)iy < (uint)H && (uint)ix < (uint)W ? GET(xp, tap.x) : 0.0f;                      \
        }                                                                                                  \
        k_mine += BK;                                                                                      \
    }
#define STORE_A(ta)                                                                                        \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < A_LOADS; ++i) {                                              \
            const int k = ak + i * A_STEP;                                                                 \
            ta[k * LDA4 * 4 + A_AT(k >> 2, am >> 2) * 4 + (am & 3)] = ra[i];                               \
        }                                                                                                  \
    }
#else
#define STORE_A(ta)                                                                                        \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < A_LOADS; ++i) if (A_QUADS % THREADS == 0 ||                  \
                                                                am + i * A_STEP < BM)                      \
            tile_store_transposed(ta, kq, am + i * A_STEP, ra[i]);                                         \
    }
#if POINTWISE
#define LOAD_A()                                                                                           \
    {                                                                                                      \
        const bool live = c < C;                                                                           \
        _Pragma("unroll") for (int i = 0; i < A_LOADS; ++i) ra[i] =                                        \
            inside[i] && live ? GET4(x + base[i] + c) : (float4)(0.0f);                                    \
        c += BK;                                                                                           \
    }
#else
#define LOAD_A()                                                                                           \
    {                                                                                                      \
        const bool live = ky < KH;                                                                         \
        const int dy = ky * DH, dx = kx * DW;                                                              \
        const int off = (dy * W + dx) * ldx + c;                                                           \
        _Pragma("unroll") for (int i = 0; i < A_LOADS; ++i) {                                              \
            const bool ok = live && (uint)(iy0[i] + dy) < (uint)H && (uint)(ix0[i] + dx) < (uint)W;        \
            ra[i] = ok ? GET4(x + base[i] + off) : (float4)(0.0f);                                         \
        }                                                                                                  \
        c += BK;                                                                                           \
        while (c >= C) {                                                                                   \
            c -= C;                                                                                        \
            if (++kx == KW) {                                                                              \
                kx = 0;                                                                                    \
                ++ky;                                                                                      \
            }                                                                                              \
        }                                                                                                  \
    }
#endif
#endif
#define LOAD_B()                                                                                           \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < B_LOADS; ++i) rb[i] =                                        \
            b_inside && (B_QUADS % THREADS == 0 || bk + i * B_STEP < BK)                                   \
                ? WEIGHT4(wp + i * B_STEP * OQ)                                                            \
                : (float4)(0.0f);                                                                          \
        wp += BK * OQ;                                                                                     \
    }
#define STORE(buffer)                                                                                      \
    {                                                                                                      \
        __local float *ta = (__local float *)(as + (buffer)*A_TILE);                                       \
        __local float4 *tb = bs + (buffer)*B_TILE;                                                         \
        STORE_A(ta);                                                                                       \
        _Pragma("unroll") for (int i = 0; i < B_LOADS; ++i) if (B_QUADS % THREADS == 0 ||                  \
                                                                bk + i * B_STEP < BK)                      \
            tb[(bk + i * B_STEP) * BN4 + bq] = rb[i];                                                      \
    }

    LOAD_A();
    LOAD_B();
    STORE(0);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int t = 1; t < tiles; ++t) {
        LOAD_A();
        LOAD_B();
        tile_multiply(as + ((t - 1) & 1) * A_TILE, bs + ((t - 1) & 1) * B_TILE, acc, slice, ty, tx);
        STORE(t & 1);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    {
        const int last = (tiles - 1) & 1;
        tile_multiply(as + last * A_TILE, bs + last * B_TILE, acc, slice, ty, tx);
    }
    tile_reduce(pool, acc, slice, lane);
    if (KS > 1 && slice > 0) return;

#pragma unroll
    for (int j = 0; j < TN4; ++j) {
        const int o = o0 + TILE_COL4(j) * 4;
        if (o < O) {
            const int oo = group * O + o;
#if SPLIT
            __global YT *out = y + part * M * ldy + oo;
#elif BATCH
            __global YT *out = y + y_off + group * M * ldy + o;
#else
            __global YT *out = y + y_off + oo;
#if BIAS
            const float4 b = *(__global const float4 *)(bias + oo);
#endif
#endif
#pragma unroll
            for (int i = 0; i < TM; ++i) {
                const int m = m0 + TILE_ROW(i);
                if (m < M) {
                    float4 v = SCALED4(acc[i][j], oo);
#if !SPLIT && !BATCH
#if BIAS
                    v += b;
#endif
#if RES == 1
                    v += GET4(res + res_off + m * ldres + oo);
#endif
                    v = activate4(v, p0, p1);
#if RES == 2
                    v += GET4(res + res_off + m * ldres + oo);
#endif
#endif
                    PUT_Y(out + m * ldy, v);
                }
            }
        }
    }
}
