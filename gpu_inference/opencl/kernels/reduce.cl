/* Reductions over any axes of a tensor with any strides.
 *
 * Maths: y[o] = finish(combine of x[o, r] over r). KIND says which: a sum (of x, |x|, x^2, (x - shift[o])^2),
 * a product, an extremum, log(sum(exp(x))) kept as a running maximum and a scaled sum, or the index of an
 * extremum. An empty reduction gives the neutral element.
 * Layout: o counts the result, dense; up to 4 merged kept dimensions (sizes k, steps p) and up to 4 merged
 * reduced ones (sizes r, steps q) lead to x, so that plain and channels-last tensors are read as they lie.
 * Work-group: OX results by RY partial reductions, then a tree over RY in local memory. INNER: neighbouring
 * work-items take neighbouring elements of the reduction (it is contiguous), else neighbouring results.
 */
#define SUM 0
#define ABS 1
#define SQUARE 2
#define CENTRED 3
#define PRODUCT 4
#define MAXIMUM 5
#define MINIMUM 6
#define LOG_SUM_EXP 7
#define ARG_MAX 8
#define ARG_MIN 9

#define FINISH_NONE 0
#define FINISH_MEAN 1
#define FINISH_SQRT 2
#define FINISH_LOG 3

#if HALF
#define LOAD(i) vload_half(i, x)
#else
#define LOAD(i) ((A)x[i])
#endif

typedef struct {
    A v;
#if KIND == LOG_SUM_EXP
    float s;
#elif KIND >= ARG_MAX
    int at;
#endif
} State;

static inline State empty(void) {
    State a;
#if KIND == PRODUCT
    a.v = 1;
#elif KIND == MAXIMUM
    a.v = LOWEST;
#elif KIND == MINIMUM
    a.v = HIGHEST;
#elif KIND == LOG_SUM_EXP
    a.v = -INFINITY;
    a.s = 0.0f;
#else
    a.v = 0;
#endif
#if KIND >= ARG_MAX
    a.at = -1;
#endif
    return a;
}

static inline State merge(State a, State b) {
#if KIND <= CENTRED
    a.v += b.v;
#elif KIND == PRODUCT
    a.v *= b.v;
#elif KIND == MAXIMUM
    a.v = b.v > a.v || b.v != b.v ? b.v : a.v;
#elif KIND == MINIMUM
    a.v = b.v < a.v || b.v != b.v ? b.v : a.v;
#elif KIND == LOG_SUM_EXP
    const float m = fmax(a.v, b.v);
    const float s = (a.v == m ? a.s : a.s * exp(a.v - m)) + (b.v == m ? b.s : b.s * exp(b.v - m));
    a.v = m;
    a.s = s;
#else
#if KIND == ARG_MAX
    const int better = b.v > a.v;
#else
    const int better = b.v < a.v;
#endif
    const int tie = b.v == a.v && (LAST ? b.at > a.at : b.at < a.at);
    if (a.at < 0 || (b.at >= 0 && (better || tie))) a = b;
#endif
    return a;
}

static inline State one(A v, A shift, int r) {
    State a;
#if KIND == ABS
    a.v = v < 0 ? -v : v;
#elif KIND == SQUARE
    a.v = v * v;
#elif KIND == CENTRED
    a.v = (v - shift) * (v - shift);
#else
    a.v = v;
#endif
#if KIND == LOG_SUM_EXP
    a.s = 1.0f;
#elif KIND >= ARG_MAX
    a.at = r;
#endif
    return a;
}

__kernel void reduce(__global const T* restrict x, __global const float* restrict shift,
                     __global TO* restrict y, const int outputs, const int count,
                     const int k1, const int k2, const int k3,
                     const int p0, const int p1, const int p2, const int p3,
                     const int r1, const int r2, const int r3,
                     const int q0, const int q1, const int q2, const int q3) {
    __local State part[OX * RY];
    const int id = get_local_id(0);
    const int ox = INNER ? id / RY : id % OX, ry = INNER ? id % RY : id / OX;
    const int o = get_group_id(0) * OX + ox;
    State acc = empty();
    if (o < outputs) {
        int u = o;
        int base = (u % k3) * p3;
        u /= k3;
        base += (u % k2) * p2;
        u /= k2;
        base += (u % k1) * p1 + (u / k1) * p0;
#if KIND == CENTRED
        const float centre = shift[o];
#else
        const A centre = 0;
#endif
        for (int r = ry; r < count; r += RY) {
#if FLAT
            const int i = base + r * q3;
#else
            int t = r;
            int i = base + (t % r3) * q3;
            t /= r3;
            i += (t % r2) * q2;
            t /= r2;
            i += (t % r1) * q1 + (t / r1) * q0;
#endif
            acc = merge(acc, one(LOAD(i), centre, r));
        }
    }
    part[ry * OX + ox] = acc;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int half_rows = RY / 2; half_rows > 0; half_rows /= 2) {
        if (ry < half_rows)
            part[ry * OX + ox] = merge(part[ry * OX + ox], part[(ry + half_rows) * OX + ox]);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (ry > 0 || o >= outputs) return;
    acc = part[ox];
#if KIND >= ARG_MAX
    y[o] = acc.at;
#else
#if KIND == LOG_SUM_EXP
    const float v = log(acc.s) + (acc.s > 0.0f ? acc.v : 0.0f);
#elif FINISH == FINISH_MEAN
    const A v = acc.v / (A)count;
#elif FINISH == FINISH_SQRT
    const float v = sqrt((float)acc.v);
#elif FINISH == FINISH_LOG
    const float v = log((float)acc.v);
#else
    const A v = acc.v;
#endif
#if HALF_OUT
    vstore_half(v, o, y);
#else
    y[o] = (TO)v;
#endif
#endif
}
