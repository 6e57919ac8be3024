/* Softmax and its relatives along one axis.
 *
 * Maths: a row x[0..n) becomes exp(x - m) / s, x - m - log(s), 1 at its first maximum and 0 elsewhere, or
 * x / |x|_p (not a number where the norm is 0), with m the maximum and s the sum of exp(x - m), found in one pass:
 * a partial (m, s) is rescaled whenever m grows, and partial ones merge the same way.
 * Layout: [outer, n, inner]; a row's elements are `inner` apart.
 * Work-group: OX rows by RY partial sums. With inner == 1 (ACROSS 0) neighbouring work-items read along the
 * row, else they read neighbouring rows.
 */
#define SOFTMAX 0
#define LOG_SOFTMAX 1
#define HARDMAX 2
#define NORM_1 3
#define NORM_2 4

#if HALF
#define LOAD(i) vload_half(i, x)
#define STORE(v, i) vstore_half(v, i, y)
#else
#define LOAD(i) x[i]
#define STORE(v, i) y[i] = (v)
#endif

static inline float2 merge(float2 a, float2 b) {
#if KIND <= LOG_SOFTMAX
    const float m = fmax(a.x, b.x);
    const float s = (a.x == m ? a.y : a.y * exp(a.x - m)) + (b.x == m ? b.y : b.y * exp(b.x - m));
    return (float2)(m, s);
#elif KIND == HARDMAX
    return b.x > a.x || (b.x == a.x && b.y < a.y) ? b : a;
#else
    return a + b;
#endif
}

__kernel void softmax(__global const T* restrict x, __global T* restrict y, const int rows, const int n,
                      const int inner) {
    __local float2 part[OX * RY];
    const int id = get_local_id(0);
    const int ox = ACROSS ? id % OX : id / RY, ry = ACROSS ? id / OX : id % RY;
    const int row = get_group_id(0) * OX + ox;
    const int base = (row / inner) * n * inner + row % inner;
#if KIND <= LOG_SOFTMAX
    float2 acc = (float2)(-INFINITY, 0.0f);
#elif KIND == HARDMAX
    float2 acc = (float2)(-INFINITY, 1.0e9f);
#else
    float2 acc = (float2)(0.0f, 0.0f);
#endif
    if (row < rows)
        for (int j = ry; j < n; j += RY) {
            const float v = LOAD(base + j * inner);
#if KIND <= LOG_SOFTMAX
            acc = merge(acc, (float2)(v, 1.0f));
#elif KIND == HARDMAX
            acc = merge(acc, (float2)(v, (float)j));
#else
            acc.x += KIND == NORM_1 ? fabs(v) : v * v;
#endif
        }
    part[ry * OX + ox] = acc;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int rest = RY / 2; rest > 0; rest /= 2) {
        if (ry < rest) part[ry * OX + ox] = merge(part[ry * OX + ox], part[(ry + rest) * OX + ox]);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (row >= rows) return;
    acc = part[ox];
#if KIND == SOFTMAX
    const float scale = 1.0f / acc.y;
#elif KIND == LOG_SOFTMAX
    const float scale = log(acc.y);
#elif KIND >= NORM_1
    const float norm = KIND == NORM_2 ? sqrt(acc.x) : acc.x;
    const float scale = 1.0f / norm;
#endif
    for (int j = ry; j < n; j += RY) {
        const int i = base + j * inner;
#if KIND == SOFTMAX
        STORE(exp(LOAD(i) - acc.x) * scale, i);
#elif KIND == LOG_SOFTMAX
        STORE(LOAD(i) - acc.x - scale, i);
#elif KIND == HARDMAX
        STORE((float)j == acc.y ? 1.0f : 0.0f, i);
#else
        STORE(LOAD(i) * scale, i);
#endif
    }
}
