/* Local response normalisation across channels.
 *
 * Maths: y = x / (bias + alpha / size * sum of x^2 over `before` channels before and `after` behind)^beta.
 * Layout: element i = a + channel * step, where channels are `step` apart: plain has step = spatial size,
 * channels last has step 1. `stored` counts channels in memory; those past c are left 0.
 * Work-group: 64 work-items, an element each.
 */
#if HALF
#define LOAD(p, i) vload_half(i, p)
#define STORE(v, p, i) vstore_half(v, i, p)
#else
#define LOAD(p, i) (p)[i]
#define STORE(v, p, i) (p)[i] = (v)
#endif

__kernel void lrn(__global const T* restrict x, __global T* restrict y, const int count, const int c,
                  const int stored, const int step, const int before, const int after, const float alpha,
                  const float beta, const float bias) {
    const int i = get_global_id(0);
    if (i >= count) return;
    const int channel = (i / step) % stored;
    if (channel >= c) {
        STORE(0.0f, y, i);
        return;
    }
    float sum = 0.0f;
    for (int k = max(-channel, -before); k <= min(after, c - 1 - channel); ++k) {
        const float v = LOAD(x, i + k * step);
        sum += v * v;
    }
    STORE(LOAD(x, i) * pow(bias + alpha * sum, -beta), y, i);
}
