/* The inverse of MaxPool: each element goes where its maximum came from; y is zeros before.
 *
 * Maths: where[i] counts elements of the tensor [planes, d0, d1, d2] that was pooled, row-major; y may be larger
 * (e0, e1, e2) and holds it at the corner.
 * Work-group: 64 work-items, an element of x each.
 */
#include "element.clh"

__kernel void unpool(__global const T* restrict x, __global const long* restrict where, __global T* restrict y,
                     const int total, const int d0, const int d1, const int d2, const int e0, const int e1,
                     const int e2) {
    const int i = get_global_id(0);
    if (i >= total) return;
    int r = (int)where[i];
    const int a2 = r % d2;
    r /= d2;
    const int a1 = r % d1;
    r /= d1;
    const int a0 = r % d0, plane = r / d0;
    const C v = LOAD(x, i);
    STORE(v, y, ((plane * e0 + a0) * e1 + a1) * e2 + a2);
}
