/* Scale and zero point of DynamicQuantizeLinear, from the smallest and the largest element (0 included).
 *
 * Layout   x [n], partial [GROUPS][2]; scale and zero point are one element each.
 * Work     extent: GROUPS groups of 64, each writes its own extremes. parameters: one work-item for the rest.
 */
__kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void extent(__global const float *restrict x, __global float *restrict partial, const int n) {
    __local float low[64], high[64];
    const int lane = get_local_id(0);
    float a = 0.0f, b = 0.0f;
    for (int i = get_global_id(0); i < n; i += get_global_size(0)) {
        a = fmin(a, x[i]);
        b = fmax(b, x[i]);
    }
    low[lane] = a;
    high[lane] = b;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = 32; step > 0; step /= 2) {
        if (lane < step) {
            low[lane] = fmin(low[lane], low[lane + step]);
            high[lane] = fmax(high[lane], high[lane + step]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (lane == 0) {
        partial[get_group_id(0) * 2] = low[0];
        partial[get_group_id(0) * 2 + 1] = high[0];
    }
}

__kernel void parameters(__global const float *restrict partial, __global float *restrict scale,
                         __global uchar *restrict zero_point, const int groups) {
    if (get_global_id(0) > 0) return;
    float a = 0.0f, b = 0.0f;
    for (int g = 0; g < groups; ++g) {
        a = fmin(a, partial[g * 2]);
        b = fmax(b, partial[g * 2 + 1]);
    }
    const float s = (b - a) / 255.0f;
    scale[0] = s;
    zero_point[0] = s > 0.0f ? convert_uchar_sat_rte(-a / s) : (uchar)0;
}
