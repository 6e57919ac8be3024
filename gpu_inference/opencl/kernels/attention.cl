/* Attention in one pass over keys and values; scores are never kept.
 *
 * Maths: y = softmax(cap(scale * q k^T + mask)) v a head. Keys come in tiles of 64. With m the greatest score of
 * a query so far and s the sum of exp(score - m), a tile with a greater score rescales s and the sum of values.
 * A query that may look at nothing gives 0.
 * Layout: q, k, v and y by strides of batch, head and position, channels contiguous, so that [b, l, h * d] and
 * [b, h, l, d] need no copies; `share` query heads use one head of keys. Scores, where wanted, are
 * [b, h, queries, keys].
 * Work-group: 64 work-items, BQ queries of one head. A work-item scores one key of the tile for all of them,
 * then sums STEPS channels of the values; DMAX is the room for a query's channels.
 */
#define BQ 4
#define TILE 64

#if HALF
#define LOAD(p, i) vload_half(i, p)
#define STORE(v, p, i) vstore_half(v, i, p)
#else
#define LOAD(p, i) (p)[i]
#define STORE(v, p, i) (p)[i] = (v)
#endif

__kernel void attention(__global const T* restrict q, __global const T* restrict k, __global const T* restrict v,
                        __global const TM* restrict mask, __global const long* restrict lengths,
                        __global T* restrict y, __global T* restrict scores,
                        const int queries, const int keys, const int d, const int dv, const int heads,
                        const int share, const int past, const int mask_keys,
                        const int qb, const int qh, const int qs, const int kb, const int kh, const int ks,
                        const int vb, const int vh, const int vs, const int yb, const int yh, const int ys,
                        const int mb, const int mh, const int mq, const float scale, const float cap) {
    __local float query[BQ * DMAX];
    __local float weight[BQ * TILE];
    __local float part[BQ * TILE];
    const int id = get_local_id(0);
    const int b = get_global_id(1) / heads, h = get_global_id(1) % heads;
    const int first = get_group_id(0) * BQ, kv = h / share;
    for (int i = id; i < BQ * d; i += TILE) {
        const int row = min(first + i / d, queries - 1);
        query[(i / d) * DMAX + i % d] = LOAD(q, b * qb + h * qh + row * qs + i % d) * scale;
    }
    float m[BQ], s[BQ], acc[BQ * STEPS];
    for (int r = 0; r < BQ; ++r) {
        m[r] = -INFINITY;
        s[r] = 0.0f;
        for (int t = 0; t < STEPS; ++t) acc[r * STEPS + t] = 0.0f;
    }
#if LENGTHS
    const int length = (int)lengths[b];
#endif
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int tile = 0; tile < keys; tile += TILE) {
        const int key = tile + id;
        float score[BQ];
        for (int r = 0; r < BQ; ++r) score[r] = 0.0f;
        if (key < keys) {
            const int at = b * kb + kv * kh + key * ks;
            for (int c = 0; c < d; ++c) {
                const float x = LOAD(k, at + c);
                for (int r = 0; r < BQ; ++r) score[r] += query[r * DMAX + c] * x;
            }
        }
        for (int r = 0; r < BQ; ++r) {
            const int row = first + r;
            const int inside = key < keys && row < queries;
            const int place = ((b * heads + h) * queries + row) * keys + key;
#if SCORES == 1
            if (inside) STORE(score[r], scores, place);
#endif
#if MASK
            if (inside) {
                const int i = b * mb + h * mh + row * mq + key;
#if MASK == 1
                if (key >= mask_keys || !mask[i]) score[r] = -INFINITY;
#else
                score[r] += key < mask_keys ? LOAD(mask, i) : -INFINITY;
#endif
            }
#endif
#if CAUSAL
            if (key > row + past) score[r] = -INFINITY;
#endif
#if LENGTHS
            if (key >= length) score[r] = -INFINITY;
#endif
#if SCORES == 2
            if (inside) STORE(score[r], scores, place);
#endif
#if CAP
            score[r] = cap * tanh(score[r] / cap);
#endif
#if SCORES == 3
            if (inside) STORE(score[r], scores, place);
#endif
            if (key >= keys) score[r] = -INFINITY;
            part[r * TILE + id] = score[r];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int rest = TILE / 2; rest > 0; rest /= 2) {
            if (id < rest)
                for (int r = 0; r < BQ; ++r)
                    part[r * TILE + id] = fmax(part[r * TILE + id], part[r * TILE + id + rest]);
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        for (int r = 0; r < BQ; ++r) {
            const float top = fmax(m[r], part[r * TILE]);
            const float shrink = m[r] == top ? 1.0f : exp(m[r] - top);
            m[r] = top;
            s[r] *= shrink;
            for (int t = 0; t < STEPS; ++t) acc[r * STEPS + t] *= shrink;
            weight[r * TILE + id] = score[r] == -INFINITY ? 0.0f : exp(score[r] - top);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        const int count = min(TILE, keys - tile);
        for (int j = 0; j < count; ++j) {
            const int at = b * vb + kv * vh + (tile + j) * vs;
            for (int r = 0; r < BQ; ++r) s[r] += weight[r * TILE + j];
            for (int t = 0; t < STEPS; ++t) {
                const int c = t * TILE + id;
                const float x = c < dv ? LOAD(v, at + c) : 0.0f;
                for (int r = 0; r < BQ; ++r) acc[r * STEPS + t] += weight[r * TILE + j] * x;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int r = 0; r < BQ; ++r) {
        const int row = first + r;
        const float inverse = s[r] > 0.0f ? 1.0f / s[r] : 0.0f;
        for (int t = 0; t < STEPS; ++t) {
            const int c = t * TILE + id;
            if (row < queries && c < dv) STORE(acc[r * STEPS + t] * inverse, y, b * yb + h * yh + row * ys + c);
        }
    }
}
