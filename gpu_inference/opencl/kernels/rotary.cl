/* Rotary embedding.
 *
 * Maths: of the first `turn` channels of a head, pairs (a, b) become (a cos - b sin, b cos + a sin); the rest
 * stay. A pair is (c, c + turn / 2), or (2c, 2c + 1) with INTERLEAVED.
 * Layout: dense; channels of a head innermost, `stride` elements from one position to the next. The caches are
 * [positions, turn / 2], looked up by POSITIONS, else [batch, length, turn / 2].
 * Work-group: 64 work-items, an element each.
 */
#if HALF
#define LOAD(p, i) vload_half(i, p)
#define STORE(v, p, i) vstore_half(v, i, p)
#else
#define LOAD(p, i) (p)[i]
#define STORE(v, p, i) (p)[i] = (v)
#endif

__kernel void rotary(__global const T* restrict x, __global const T* restrict cosines,
                     __global const T* restrict sines, __global const long* restrict positions,
                     __global T* restrict y, const int total, const int length, const int stride, const int image,
                     const int d, const int turn) {
    const int i = get_global_id(0);
    if (i >= total) return;
    const int c = i % d, token = (i / image) * length + (i / stride) % length;
    if (c >= turn) {
        STORE(LOAD(x, i), y, i);
        return;
    }
#if POSITIONS
    const int row = (int)positions[token];
#else
    const int row = token;
#endif
#if INTERLEAVED
    const int pair = c / 2, second = c % 2, other = second ? i - 1 : i + 1;
#else
    const int pair = c % (turn / 2), second = c >= turn / 2, other = second ? i - turn / 2 : i + turn / 2;
#endif
    const float co = LOAD(cosines, row * (turn / 2) + pair), si = LOAD(sines, row * (turn / 2) + pair);
    STORE(LOAD(x, i) * co + (second ? si : -si) * LOAD(x, other), y, i);
}
