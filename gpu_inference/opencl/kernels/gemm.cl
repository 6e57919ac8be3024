/* Matrix product of row-major matrices, batched.
 *
 *   c[b, m, n] = act(alpha * sum over k of a[b, m, k] * b[b, k, n] + bias[m*bias_sm + n*bias_sn] (+ residual))
 *
 * Layout   a [M, lda], or [K, lda] with TRANS_A; b [K, ldb], or [N, ldb] with TRANS_B; c and residual [M, N].
 *          A batch has up to three dimensions with their own strides in a and b (0 broadcasts); c is dense.
 *          VEC_A, VEC_B, VEC_C: pointers, pitches and extents are multiples of four floats, so that loads and
 *          stores are aligned float4; otherwise they go float by float.
 *          EXACT: extents are multiples of the tile's, nothing is guarded (3% at 4096^3 on an H200).
 *          With SPLIT, c is the workspace [parts][M][N], and splitk.cl does the rest (no batch then).
 *
 * Work-group and tile: tile.clh. Group (x: column tile, y: row tile, z: batch or part).
 */
#include "epilogue.clh"
#include "tile.clh"
#include "weights.clh"

/* A packed b lies in rows of whole quads, whatever its type; another one is plain floats. */
#if PACKED
#define B_PARAM WEIGHT_PARAM
#define B_BEGIN                                                                                            \
    WEIGHT_BEGIN;                                                                                          \
    __global const QUAD *b = w
#else
#define B_PARAM __global const XT *restrict b,
#define B_BEGIN
#endif

#if SPLIT
#define CT float
#else
#define CT XT
#endif
#define KQ (BK / 4)
/* Quads of A: along k (then stored as a column), or along m with TRANS_A (stored as they are). */
#if TRANS_A
#define A_ROW BM4
#define A_ROWS BK
#else
#define A_ROW KQ
#define A_ROWS BM
#endif
#if TRANS_B
#define B_ROW KQ
#define B_ROWS BN
#else
#define B_ROW BN4
#define B_ROWS BK
#endif
#define A_LOADS ((A_ROW * A_ROWS + THREADS - 1) / THREADS)
#define B_LOADS ((B_ROW * B_ROWS + THREADS - 1) / THREADS)
#define A_STEP (THREADS / A_ROW)
#define B_STEP (THREADS / B_ROW)
#define A_WHOLE (A_ROW * A_ROWS % THREADS == 0)
#define B_WHOLE (B_ROW * B_ROWS % THREADS == 0)

#if PACKED
#define B_SCALED SCALED
#define B_SCALED4 SCALED4
#else
#define B_SCALED(v, n) (v)
#define B_SCALED4(v, n) (v)
#endif

/* Four floats of a row from column `at`, zeros at and past `end`. */
static inline float4 quad(__global const XT *row, int at, int end, int vector) {
    if (vector) return EXACT || at < end ? GET4(row + at) : (float4)(0.0f);
    float4 v = (float4)(0.0f);
    if (at < end) v.x = GET(row, at);
    if (at + 1 < end) v.y = GET(row, at + 1);
    if (at + 2 < end) v.z = GET(row, at + 2);
    if (at + 3 < end) v.w = GET(row, at + 3);
    return v;
}

__kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void gemm(__global const XT *restrict a, B_PARAM BIAS_PARAM RES_PARAM
          __global CT *restrict c, const int M, const int N, const int K, const int lda, const int ldb,
          const int batch1, const int batch2, const int a0, const int a1, const int a2, const int b0,
          const int b1, const int b2, const int part_steps, const int bias_sm, const int bias_sn,
          const float alpha, const float p0, const float p1) {
    __local float4 pool[POOL];
    __local float4 *const as = pool;
    __local float4 *const bs = pool + 2 * A_TILE;

    B_BEGIN;
    const int tid = get_local_id(0);
    const int lane = tid % PLANE;
    const int slice = tid / PLANE;
    const int tx = lane % TX;
    const int ty = lane / TX;
    const int m0 = get_group_id(1) * BM;
    const int n0 = get_group_id(0) * BN;
    const int z = get_group_id(2);
#if SPLIT
    const int k_begin = z * part_steps * BK;
    const int k_end = min(K, k_begin + part_steps * BK);
    c += z * M * N;
#else
    const int k_begin = 0;
    const int k_end = K;
    const int z2 = z % batch2;
    const int z1 = z / batch2 % batch1;
    const int z0 = z / batch2 / batch1;
    a += z0 * a0 + z1 * a1 + z2 * a2;
#if !PACKED
    b += z0 * b0 + z1 * b1 + z2 * b2;
#endif
    c += z * M * N;
#endif
    const int steps = (k_end - k_begin + BK - 1) / BK;
    const int aq = tid % A_ROW, ar = tid / A_ROW;
    const int bq = tid % B_ROW, br = tid / B_ROW;

    float4 acc[TM][TN4];
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN4; ++j) acc[i][j] = (float4)(0.0f);
    float4 ra[A_LOADS], rb[B_LOADS];

#if TRANS_A
#define A_QUAD(i)                                                                                          \
    (EXACT || k0 + ar + (i)*A_STEP < k_end ? quad(a + (k0 + ar + (i)*A_STEP) * lda, m0 + aq * 4, M, VEC_A)          \
                                  : (float4)(0.0f))
#define A_PUT(i) as[at * A_TILE + (ar + (i)*A_STEP) * LDA4 + A_AT((ar + (i)*A_STEP) >> 2, aq)] = ra[i]
#else
#define A_QUAD(i)                                                                                          \
    (EXACT || m0 + ar + (i)*A_STEP < M ? quad(a + (m0 + ar + (i)*A_STEP) * lda, k0 + aq * 4, k_end, VEC_A)          \
                              : (float4)(0.0f))
#define A_PUT(i) tile_store_transposed((__local float *)(as + at * A_TILE), aq, ar + (i)*A_STEP, ra[i])
#endif
#if PACKED
#define B_QUAD(i)                                                                                          \
    (EXACT || (k0 + br + (i)*B_STEP < k_end && n0 + bq * 4 < N)                                            \
         ? WEIGHT4(b + (k0 + br + (i)*B_STEP) * (ldb >> 2) + (n0 >> 2) + bq)                               \
         : (float4)(0.0f))
#define B_PUT(i) bs[at * B_TILE + (br + (i)*B_STEP) * BN4 + bq] = rb[i]
#elif TRANS_B
#define B_QUAD(i)                                                                                          \
    (EXACT || n0 + br + (i)*B_STEP < N ? quad(b + (n0 + br + (i)*B_STEP) * ldb, k0 + bq * 4, k_end, VEC_B)          \
                              : (float4)(0.0f))
#define B_PUT(i)                                                                                           \
    {                                                                                                      \
        __local float *p = (__local float *)(bs + at * B_TILE) + bq * 4 * BN + br + (i)*B_STEP;            \
        p[0] = rb[i].x;                                                                                    \
        p[BN] = rb[i].y;                                                                                   \
        p[2 * BN] = rb[i].z;                                                                               \
        p[3 * BN] = rb[i].w;                                                                               \
    }
#else
#define B_QUAD(i)                                                                                          \
    (EXACT || k0 + br + (i)*B_STEP < k_end ? quad(b + (k0 + br + (i)*B_STEP) * ldb, n0 + bq * 4, N, VEC_B)          \
                                  : (float4)(0.0f))
#define B_PUT(i) bs[at * B_TILE + (br + (i)*B_STEP) * BN4 + bq] = rb[i]
#endif
#define LOAD()                                                                                             \
    {                                                                                                      \
        _Pragma("unroll") for (int i = 0; i < A_LOADS; ++i) ra[i] =                                        \
            A_WHOLE || ar + i * A_STEP < A_ROWS ? A_QUAD(i) : (float4)(0.0f);                              \
        _Pragma("unroll") for (int i = 0; i < B_LOADS; ++i) rb[i] =                                        \
            B_WHOLE || br + i * B_STEP < B_ROWS ? B_QUAD(i) : (float4)(0.0f);                              \
        k0 += BK;                                                                                          \
    }
#define STORE(buffer)                                                                                      \
    {                                                                                                      \
        const int at = buffer;                                                                             \
        _Pragma("unroll") for (int i = 0; i < A_LOADS; ++i) if (A_WHOLE || ar + i * A_STEP < A_ROWS)       \
            A_PUT(i);                                                                                      \
        _Pragma("unroll") for (int i = 0; i < B_LOADS; ++i) if (B_WHOLE || br + i * B_STEP < B_ROWS)       \
            B_PUT(i);                                                                                      \
    }

    int k0 = k_begin;
    LOAD();
    STORE(0);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int t = 1; t < steps; ++t) {
        LOAD();
        tile_multiply(as + ((t - 1) & 1) * A_TILE, bs + ((t - 1) & 1) * B_TILE, acc, slice, ty, tx);
        STORE(t & 1);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    tile_multiply(as + ((steps - 1) & 1) * A_TILE, bs + ((steps - 1) & 1) * B_TILE, acc, slice, ty, tx);
    tile_reduce(pool, acc, slice, lane);
    if (KS > 1 && slice > 0) return;

#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const int m = m0 + TILE_ROW(i);
        if (EXACT || m < M) {
#pragma unroll
            for (int j = 0; j < TN4; ++j) {
                const int n = n0 + TILE_COL4(j) * 4;
                float4 v = acc[i][j];
#if VEC_C || SPLIT
                if (n < N) v = B_SCALED4(v, n);
#endif
#if !SPLIT
                v *= alpha;
#if VEC_C
                if (n < N) {
#if BIAS
                    v += BIAS_ROW ? *(__global const float4 *)(bias + n + m * bias_sm)
                                  : (float4)(bias[m * bias_sm]);
#endif
#if RES
                    const float4 r = GET4(res + z * M * N + m * N + n);
#endif
#if RES == 1
                    v += r;
#endif
                    v = activate4(v, p0, p1);
#if RES == 2
                    v += r;
#endif
                    PUT4(c + m * N + n, v);
                }
#else
                const float lanes[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int l = 0; l < 4; ++l) {
                    if (n + l < N) {
                        float s = B_SCALED(lanes[l], n + l);
#if BIAS
                        s += bias[m * bias_sm + (n + l) * bias_sn];
#endif
#if RES == 1
                        s += GET(res, z * M * N + m * N + n + l);
#endif
                        s = activate(s, p0, p1);
#if RES == 2
                        s += GET(res, z * M * N + m * N + n + l);
#endif
                        PUT(c, m * N + n + l, s);
                    }
                }
#endif
#else
                if (n < N) *(__global float4 *)(c + m * N + n) = v;
#endif
            }
        }
    }
}
