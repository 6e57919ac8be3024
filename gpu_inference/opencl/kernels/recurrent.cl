/* One time step of RNN, GRU or LSTM, all directions and batch elements at once.
 *
 *   gate g of unit u = activation(xw[g, u] + wb[g, u] + rb[g, u] + sum over k of h[k] R[g, u, k])
 *
 * The products of the inputs with W come from one large product before the first step. A step reads R once;
 * sequences past their end keep their state and give zeros.
 *
 * Layout   xw [directions][rows][GATES*H], where row t, b is t*row_t + b*row_b; R [directions][GATES*H][H];
 *          bias [directions][2*GATES*H]; states [directions][batch][H]; y is written at
 *          t*y_t + direction*y_d + b*y_b + u. Gate order: LSTM i o f c, GRU z r h, RNN one gate.
 * Work     256 work-items make 32 units: 8 slices of the sum over k, added in local memory. Dimension 1 of
 *          the launch is the batch, dimension 2 the direction; `reverse` says that direction 0 runs backwards.
 *          CELL 0 RNN, 1 LSTM, 2 GRU with linear_before_reset, 3 GRU's gates z and r, 4 its candidate
 *          (reads r*h in place of h). ACT0..2(direction, v) are generated before this text.
 */
#if CELL == 1
#define GATES 4
#define FIRST 0
#define PRODUCTS 4
#elif CELL == 0
#define GATES 1
#define FIRST 0
#define PRODUCTS 1
#else
#define GATES 3
#define FIRST (CELL == 4 ? 2 : 0)
#define PRODUCTS (CELL == 2 ? 3 : CELL == 3 ? 2 : 1)
#endif
#define UNITS 32
#define SLICES 8

inline float keep(const float v, const float clip) { return clamp(v, -clip, clip); }

__kernel __attribute__((reqd_work_group_size(256, 1, 1)))
void recurrent_step(__global const float *restrict xw, __global const float *restrict R,
                    __global const float *restrict bias, __global const float *restrict peepholes,
                    __global const int *restrict lengths, __global const float *restrict h,
                    __global float *restrict h_next, __global float *restrict c, __global float *restrict reset,
                    __global float *restrict y, const int step, const int rows, const int H,
                    const int batches, const int row_t, const int row_b, const int y_t, const int y_d,
                    const int y_b, const int reverse, const float clip) {
    __local float sums[PRODUCTS][SLICES][UNITS];
    const int lane = get_local_id(0) % UNITS, slice = get_local_id(0) / UNITS;
    const int u = get_group_id(0) * UNITS + lane, b = get_global_id(1), dir = get_global_id(2);
    const int state = (dir * batches + b) * H;
#if CELL == 4
    __global const float *restrict v = reset + state;
#else
    __global const float *restrict v = h + state;
#endif
    float part[PRODUCTS];
    for (int g = 0; g < PRODUCTS; ++g) part[g] = 0.0f;
    if (u < H)
        for (int k = slice; k < H; k += SLICES) {
            const float hk = v[k];
            for (int g = 0; g < PRODUCTS; ++g)
                part[g] += hk * R[((dir * GATES + FIRST + g) * H + u) * H + k];
        }
    for (int g = 0; g < PRODUCTS; ++g) sums[g][slice][lane] = part[g];
    barrier(CLK_LOCAL_MEM_FENCE);
    if (slice > 0 || u >= H) return;
    for (int g = 0; g < PRODUCTS; ++g)
        for (int s = 1; s < SLICES; ++s) part[g] += sums[g][s][lane];

    const int length = lengths[b], at = state + u;
    const int backwards = reverse || dir == 1;
    const int t = backwards && step < length ? length - 1 - step : step;
    const int place = t * y_t + dir * y_d + b * y_b + u;
    const float before = h[at];
    if (step >= length) {
#if CELL != 3
        h_next[at] = before;
        y[place] = 0.0f;
#else
        reset[at] = 0.0f;
        c[at] = 0.0f;
#endif
        return;
    }
    __global const float *x = xw + (dir * rows + t * row_t + b * row_b) * GATES * H;
    __global const float *wb = bias + dir * 2 * GATES * H, *rb = wb + GATES * H;
    float in[PRODUCTS];
    for (int g = 0; g < PRODUCTS; ++g) {
        const int k = (FIRST + g) * H + u;
        in[g] = x[k] + wb[k];
        part[g] += rb[k];
    }
#if CELL == 0
    const float result = ACT0(dir, keep(in[0] + part[0], clip));
#elif CELL == 1
    __global const float *p = peepholes + dir * 3 * H;
    const float old = c[at];
    const float i = ACT0(dir, keep(in[0] + part[0] + p[u] * old, clip));
#if COUPLED
    const float f = 1.0f - i;
#else
    const float f = ACT0(dir, keep(in[2] + part[2] + p[2 * H + u] * old, clip));
#endif
    const float cell = f * old + i * ACT1(dir, keep(in[3] + part[3], clip));
    const float o = ACT0(dir, keep(in[1] + part[1] + p[H + u] * cell, clip));
    c[at] = cell;
    const float result = o * ACT2(dir, cell);
#elif CELL == 3
    c[at] = ACT0(dir, keep(in[0] + part[0], clip));
    reset[at] = ACT0(dir, keep(in[1] + part[1], clip)) * before;
#else
#if CELL == 2
    const float z = ACT0(dir, keep(in[0] + part[0], clip));
    const float r = ACT0(dir, keep(in[1] + part[1], clip));
    const float candidate = ACT1(dir, keep(in[2] + r * part[2], clip));
#else
    const float z = c[at];
    const float candidate = ACT1(dir, keep(in[0] + part[0], clip));
#endif
    const float result = (1.0f - z) * candidate + z * before;
#endif
#if CELL != 3
    h_next[at] = result;
    y[place] = result;
#endif
}
