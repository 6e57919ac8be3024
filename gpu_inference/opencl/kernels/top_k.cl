/* The k largest (or smallest) elements of each line, in order; equal ones by index.
 *
 * An element's place is the number of elements that come before it, so each work-item counts those of its
 * line: n*n comparisons, but no sorting passes, no atomics, and a stable order.
 *
 * Layout   x [outer, size, inner], values and indices [outer, k, inner].
 * Work     one work-item an element of x. KEY is an integer type that orders as C does; floats are mapped to
 *          one by turning their bits (NaN is larger than everything, and both zeros are equal).
 *          LARGEST 1 or 0; FLOATS 1 where C is float.
 */
#include "element.clh"

inline KEY key_of(const C v) {
#if FLOATS
    const int bits = as_int(v == 0.0f ? 0.0f : v);
    const KEY key = bits < 0 ? (KEY)(bits ^ 0x7fffffff) : (KEY)bits;
#else
    const KEY key = (KEY)v;
#endif
    return key;
}

__kernel void top_k(__global const T *restrict x, __global T *restrict values, __global long *restrict indices,
                    const int n, const int size, const int inner, const int k) {
    const int e = get_global_id(0);
    if (e >= n) return;
    const int r = e % inner, j = (e / inner) % size, o = e / inner / size;
    const int first = o * size * inner + r;
    const C mine = LOAD(x, e);
    const KEY key = key_of(mine);
    int place = 0;
    for (int i = 0; i < size; ++i) {
        const KEY other = key_of(LOAD(x, first + i * inner));
#if LARGEST
        place += other > key || (other == key && i < j);
#else
        place += other < key || (other == key && i < j);
#endif
    }
    if (place < k) {
        const int at = (o * k + place) * inner + r;
        STORE(mine, values, at);
        indices[at] = j;
    }
}
