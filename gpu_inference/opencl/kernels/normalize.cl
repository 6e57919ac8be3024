/* Normalisation of contiguous rows: layer, RMS, instance and group normalisation.
 *
 * Maths: y = (x - mean) / sqrt(variance + epsilon) * scale + bias, mean and variance over a row of n elements;
 * with RMS the mean is 0. The variance is summed around the mean, in a second reading that the caches serve.
 * Layout: [rows, n]. Element j of row r takes scale[s] with s = (r % period) * step + j / span:
 *   layer and RMS: period 1, step 0, span 1; instance: period c, step 1, span n;
 *   group: period groups, step c / groups, span spatial size.
 * Work-group: RY work-items a row, OX rows; partial sums meet in local memory.
 */
#if HALF
#define LOAD(p, i) vload_half(i, p)
#define STORE(v, p, i) vstore_half(v, i, p)
#else
#define LOAD(p, i) (p)[i]
#define STORE(v, p, i) (p)[i] = (v)
#endif

static inline float total(__local float* part, int ox, int ry, float v) {
    barrier(CLK_LOCAL_MEM_FENCE);
    part[ox * RY + ry] = v;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int rest = RY / 2; rest > 0; rest /= 2) {
        if (ry < rest) part[ox * RY + ry] += part[ox * RY + ry + rest];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    return part[ox * RY];
}

__kernel void norm_rows(__global const T* restrict x, __global const T* restrict scale,
                        __global const T* restrict bias, __global T* restrict y, __global float* restrict means,
                        __global float* restrict inverses, const int rows, const int n, const int period,
                        const int step, const int span, const float epsilon) {
    __local float part[OX * RY];
    const int ox = get_local_id(0) / RY, ry = get_local_id(0) % RY;
    const int row = get_group_id(0) * OX + ox, base = row * n;
    const int end = row < rows ? n : 0;
#if RMS
    const float mean = 0.0f;
#else
    float sum = 0.0f;
    for (int j = ry; j < end; j += RY) sum += LOAD(x, base + j);
    const float mean = total(part, ox, ry, sum) / (float)n;
#endif
    float square = 0.0f;
    for (int j = ry; j < end; j += RY) {
        const float d = LOAD(x, base + j) - mean;
        square += d * d;
    }
    const float inverse = 1.0f / sqrt(total(part, ox, ry, square) / (float)n + epsilon);
    const int first = (row % period) * step;
    for (int j = ry; j < end; j += RY) {
        const int s = first + j / span;
        float v = (LOAD(x, base + j) - mean) * inverse * LOAD(scale, s);
#if BIAS
        v += LOAD(bias, s);
#endif
        STORE(v, y, base + j);
    }
#if STATISTICS
    if (ry == 0 && row < rows) {
        means[row] = mean;
        inverses[row] = inverse;
    }
#endif
}
