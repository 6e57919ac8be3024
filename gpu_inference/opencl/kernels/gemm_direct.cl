/* Matrix product from registers alone, batched: for CPUs, where local memory and barriers only cost.
 *
 * The maths and the arguments are gemm.cl's. A work-item computes PM rows x 2*VN columns; the columns of b are
 * read as vectors (TRANS_B: float by float; PACKED: quads of weights.clh), the last ones of a row float by float.
 *
 * Work     one work-item a group; dimension 0: blocks of rows, 1: blocks of columns (whose part of b stays in
 *          the cache), 2: batch.
 */
#include "epilogue.clh"
#include "weights.clh"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define VEC CAT(float, VN)
#define WIDE (2 * VN)
#define A(m, k) (TRANS_A ? GET(a, (k) * lda + (m)) : GET(a, (m) * lda + (k)))
#if PACKED
#define B_PARAM WEIGHT_PARAM
#define B(k, n) WEIGHT(w, (k) * ldb + (n))
#define B_VEC(v, k) CAT(WEIGHT, VN)(w + (k) * (ldb >> 2) + (n0 >> 2) + (v) * (VN / 4))
#define B_SCALED SCALED
#else
#define B_PARAM __global const XT *restrict b,
#define B(k, n) (TRANS_B ? GET(b, (n) * ldb + (k)) : GET(b, (k) * ldb + (n)))
#define B_VEC(v, k) CAT(GET, VN)(b + (k) * ldb + n0 + (v) * VN)
#define B_SCALED(v, n) (v)
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemm_direct(__global const XT *restrict a, B_PARAM BIAS_PARAM RES_PARAM
                 __global XT *restrict c, const int M, const int N, const int K, const int lda, const int ldb,
                 const int batch1, const int batch2, const int a0, const int a1, const int a2, const int b0,
                 const int b1, const int b2, const int bias_sm, const int bias_sn, const float alpha,
                 const float p0, const float p1) {
#if PACKED
    WEIGHT_BEGIN;
#endif
    const int m0 = get_group_id(0) * PM;
    const int n0 = get_group_id(1) * WIDE;
    const int z = get_group_id(2);
    const int z2 = z % batch2;
    const int z1 = z / batch2 % batch1;
    const int z0 = z / batch2 / batch1;
    a += z0 * a0 + z1 * a1 + z2 * a2;
#if !PACKED
    b += z0 * b0 + z1 * b1 + z2 * b2;
#endif

    float sums[PM][WIDE];
    if (!TRANS_B && n0 + WIDE <= N) {
        VEC acc[PM][2];
        int row[PM];
#pragma unroll
        for (int i = 0; i < PM; ++i) {
            acc[i][0] = acc[i][1] = (VEC)(0.0f);
            row[i] = min(m0 + i, M - 1);
        }
        for (int k = 0; k < K; ++k) {
            const VEC v0 = B_VEC(0, k);
            const VEC v1 = B_VEC(1, k);
#pragma unroll
            for (int i = 0; i < PM; ++i) {
                const VEC s = (VEC)(A(row[i], k));
                acc[i][0] = mad(s, v0, acc[i][0]);
                acc[i][1] = mad(s, v1, acc[i][1]);
            }
        }
#pragma unroll
        for (int i = 0; i < PM; ++i) {
            CAT(vstore, VN)(acc[i][0], 0, sums[i]);
            CAT(vstore, VN)(acc[i][1], 1, sums[i]);
        }
    } else {
        for (int i = 0; i < PM; ++i)
            for (int j = 0; j < WIDE; ++j) {
                float s = 0.0f;
                if (m0 + i < M && n0 + j < N)
                    for (int k = 0; k < K; ++k) s = mad(A(m0 + i, k), B(k, n0 + j), s);
                sums[i][j] = s;
            }
    }
    for (int i = 0; i < PM && m0 + i < M; ++i) {
        const int m = m0 + i;
        for (int j = 0; j < WIDE && n0 + j < N; ++j) {
            const int n = n0 + j;
            float s = B_SCALED(sums[i][j], n) * alpha;
#if BIAS
            s += bias[m * bias_sm + n * bias_sn];
#endif
#if RES == 1
            s += GET(res, z * M * N + m * N + n);
#endif
            s = activate(s, p0, p1);
#if RES == 2
            s += GET(res, z * M * N + m * N + n);
#endif
            PUT(c, z * M * N + m * N + n, s);
        }
    }
}
