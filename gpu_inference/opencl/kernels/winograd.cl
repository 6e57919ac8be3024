/* Winograd's minimal filtering for 3x3 filters with stride 1, NHWC: F(2x2, 3x3) or F(4x4, 3x3).
 *
 *   y = A^T [ (G g G^T) . (B^T d B) ] A, summed over channels (Lavin and Gray, 2015)
 *
 * An output tile of OUT x OUT pixels takes an input tile d of ALPHA x ALPHA (ALPHA = OUT + 2) and, instead of
 * 9 OUT^2 multiplications a channel pair, ALPHA^2: 2.25 times fewer with OUT = 2, 4 times with OUT = 4 (and about
 * a decimal digit less accurate than the direct sum). Three steps: winograd_input writes V = B^T d B; ALPHA^2
 * matrix products M = V U (conv_nhwc.cl, BATCH); winograd_output writes A^T M A with the epilogue. The filters
 * U = G g G^T are made at load.
 *
 * Layout   V [ALPHA^2][T][C], M [ALPHA^2][T][O] from m_off, T = N * tiles_y * tiles_x tiles, C and O multiples of 4.
 * Work     one work-item a tile and VN channels, lanes along channels: whole cache lines everywhere. ALPHA^2 * VN
 *          registers decide VN: 1 or 2 on gfx803.
 */
#include "epilogue.clh"

#define ALPHA (OUT + 2)

#if VN == 4
#define VEC float4
#define ACTIVATE(v) activate4(v, p0, p1)
#elif VN == 2
#define VEC float2
#define ACTIVATE(v) ((float2)(activate((v).x, p0, p1), activate((v).y, p0, p1)))
#else
#define VEC float
#define ACTIVATE(v) activate(v, p0, p1)
#endif
#define LOAD(p) (*(__global const VEC *)(p))
#define STORE(p, v) (*(__global VEC *)(p) = (v))
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define GET_X CAT(GET, VN)
#define PUT_Y CAT(PUT, VN)

/* One line of B^T d. */
static inline void transform_input(VEC *d) {
#if OUT == 2
    const VEC d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
    d[0] = d0 - d2;
    d[1] = d1 + d2;
    d[2] = d2 - d1;
    d[3] = d1 - d3;
#else
    const VEC d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4], d5 = d[5];
    const VEC even = mad((VEC)(-4.0f), d2, d4), odd = mad((VEC)(-4.0f), d1, d3);
    const VEC even2 = d4 - d2, odd2 = 2.0f * (d3 - d1);
    d[0] = mad((VEC)(4.0f), d0, mad((VEC)(-5.0f), d2, d4));
    d[1] = even + odd;
    d[2] = even - odd;
    d[3] = even2 + odd2;
    d[4] = even2 - odd2;
    d[5] = mad((VEC)(4.0f), d1, mad((VEC)(-5.0f), d3, d5));
#endif
}

/* One line of A^T m: OUT results from ALPHA. */
static inline void transform_output(const VEC *m, VEC *y) {
#if OUT == 2
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
#else
    const VEC s12 = m[1] + m[2], d12 = m[1] - m[2], s34 = m[3] + m[4], d34 = m[3] - m[4];
    y[0] = m[0] + s12 + s34;
    y[1] = mad((VEC)(2.0f), d34, d12);
    y[2] = mad((VEC)(4.0f), s34, s12);
    y[3] = mad((VEC)(8.0f), d34, d12) + m[5];
#endif
}

__kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void winograd_input(__global const XT *restrict x, __global float *restrict v, const int T,
                    const int tiles_x, const int tiles_y, const int CV, const int x_off, const int ldx,
                    const int H, const int W, const int PT, const int PL) {
    const int id = get_global_id(0);
    const int t = id / CV;
    if (t >= T) return;
    const int c = (id - t * CV) * VN;
    const int C = CV * VN;
    const int row = t / tiles_x;
    const int n = row / tiles_y;
    const int iy0 = (row - n * tiles_y) * OUT - PT;
    const int ix0 = (t - row * tiles_x) * OUT - PL;
    __global const XT *image = x + x_off + n * H * W * ldx + c;

    VEC d[ALPHA][ALPHA]; /* [column][row]: columns are transformed as they come */
#pragma unroll
    for (int j = 0; j < ALPHA; ++j) {
        const int ix = ix0 + j;
#pragma unroll
        for (int i = 0; i < ALPHA; ++i) {
            const int iy = iy0 + i;
            const bool inside = (uint)iy < (uint)H && (uint)ix < (uint)W;
            d[j][i] = inside ? GET_X(image + (iy * W + ix) * ldx) : (VEC)(0.0f);
        }
        transform_input(d[j]);
    }
    __global float *out = v + t * C + c;
#pragma unroll
    for (int i = 0; i < ALPHA; ++i) {
        VEC line[ALPHA];
#pragma unroll
        for (int j = 0; j < ALPHA; ++j) line[j] = d[j][i];
        transform_input(line);
#pragma unroll
        for (int j = 0; j < ALPHA; ++j) STORE(out + (i * ALPHA + j) * T * C, line[j]);
    }
}

__kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void winograd_output(__global const float *restrict products, BIAS_PARAM RES_PARAM __global XT *restrict y,
                     const int T, const int tiles_x, const int tiles_y, const int OV, const int m_off,
                     const int y_off, const int ldy, const int res_off, const int ldres, const int OH,
                     const int OW, const float p0, const float p1) {
    const int id = get_global_id(0);
    const int t = id / OV;
    if (t >= T) return;
    const int o = (id - t * OV) * VN;
    const int O = OV * VN;
    const int row = t / tiles_x;
    const int n = row / tiles_y;
    const int oy0 = (row - n * tiles_y) * OUT;
    const int ox0 = (t - row * tiles_x) * OUT;
    __global const float *in = products + m_off + t * O + o;

    VEC lines[OUT][ALPHA];
#pragma unroll
    for (int j = 0; j < ALPHA; ++j) {
        VEC m[ALPHA], r[OUT];
#pragma unroll
        for (int i = 0; i < ALPHA; ++i) m[i] = LOAD(in + (i * ALPHA + j) * T * O);
        transform_output(m, r);
#pragma unroll
        for (int i = 0; i < OUT; ++i) lines[i][j] = r[i];
    }
#if BIAS
    const VEC b = LOAD(bias + o);
#endif
#pragma unroll
    for (int i = 0; i < OUT; ++i) {
        VEC r[OUT];
        transform_output(lines[i], r);
#pragma unroll
        for (int j = 0; j < OUT; ++j) {
            if (oy0 + i < OH && ox0 + j < OW) {
                const int m = (n * OH + oy0 + i) * OW + ox0 + j;
                VEC s = r[j];
#if BIAS
                s += b;
#endif
#if RES == 1
                s += GET_X(res + res_off + m * ldres + o);
#endif
                s = ACTIVATE(s);
#if RES == 2
                s += GET_X(res + res_off + m * ldres + o);
#endif
                PUT_Y(y + y_off + m * ldy + o, s);
            }
        }
    }
}
