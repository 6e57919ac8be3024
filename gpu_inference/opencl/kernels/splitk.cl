/* Adds the parts of a split inner dimension and runs the epilogue.
 *
 *   y[m, o] = act(sum over s of part[s, m, o] + bias[o] (+ residual))
 *
 * Layout   part float [split][M][O], y [M, ldy] from y_off, res [M, ldres] from res_off; O multiple of 4.
 * Work     one work-item a float4 of y, groups of 64 along the flat index, so that reads and writes are whole
 *          cache lines. The parts are added in order: the result doesn't depend on timing.
 */
#include "epilogue.clh"

__kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void splitk_reduce(__global const float4 *restrict part, BIAS_PARAM RES_PARAM __global XT *restrict y,
                   const int M, const int O4, const int split, const int y_off, const int ldy,
                   const int res_off, const int ldres, const float p0, const float p1) {
    const int i = get_global_id(0);
    const int total = M * O4;
    if (i >= total) return;
    float4 v = part[i];
    for (int s = 1; s < split; ++s) v += part[s * total + i];
    const int m = i / O4;
    const int o = (i - m * O4) * 4;
#if BIAS
    v += *(__global const float4 *)(bias + o);
#endif
#if RES == 1
    v += GET4(res + res_off + m * ldres + o);
#endif
    v = activate4(v, p0, p1);
#if RES == 2
    v += GET4(res + res_off + m * ldres + o);
#endif
    PUT4(y + y_off + m * ldy + o, v);
}
