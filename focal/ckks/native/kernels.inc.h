/* The kernels of one set, over an arithmetic that was included before (kernels.h lists them). It defines
 *
 *     vec, LANES        residues in a register, in a range of the arithmetic's own
 *     take, put         residues from memory; reduced residues to memory
 *     load_vec,         a vec that stays one: between two passes of a transform
 *       store_vec
 *     known, WORDS      a factor with what products by it need; known_at: one for all lanes, known_each: one per lane
 *     times             vec times known: in the range that add, subtract and put take
 *     forward_pair      (u, v) -> (u + w v, u - w v)       Cooley and Tukey
 *     inverse_pair      (u, v) -> (u + v, w (u - v))       Gentleman and Sande
 *     settle            a vec that grew, made small again
 *     piece, PIECES     a word below 2^60 as the vecs x_0 + 2^30 x_1 ...
 *     sum, SUM_LANES    a sum of at most SUM_MOST products
 */
#include <string.h>

enum { SUM_MOST = 8 };

/* ---- transforms ----
 *
 *    root: one or two stages     levels: two stages each     leaf: the last log2(LANES) stages
 *    |___________________________|___________________________|_|_|_|_|
 *     whole polynomial            blocks, smaller and smaller  LANES x LANES words, transposed in registers
 *
 * A block of len words is two halves that meet in len / 2 butterflies with the block's one factor; block b of a stage
 * is entry b of the tables (modulus.h) and its halves are blocks 2 b and 2 b + 1. Two stages are done at a time, so a
 * word is loaded half as often. Blocks that fit the first cache are finished one after the other.
 */
enum { CACHED = 2048 };

struct four {
    vec a, b, c, d;
};

/* Quarters of block b, whose halves' factors are w_first and w_second. */
static inline struct four forward_four(struct four x, struct known w, struct known w_first, struct known w_second,
                                       struct field f) {
    forward_pair(&x.a, &x.c, w, f);
    forward_pair(&x.b, &x.d, w, f);
    forward_pair(&x.a, &x.b, w_first, f);
    forward_pair(&x.c, &x.d, w_second, f);
    return x;
}

/* The sum of all four has grown fourfold, and is settled. */
static inline struct four inverse_four(struct four x, struct known w, struct known w_first, struct known w_second,
                                       struct field f) {
    inverse_pair(&x.a, &x.b, w_first, f);
    inverse_pair(&x.c, &x.d, w_second, f);
    inverse_pair(&x.a, &x.c, w, f);
    inverse_pair(&x.b, &x.d, w, f);
    x.a = settle(x.a, f);
    return x;
}

static inline struct four load_four(const uint64_t *x, size_t step) {
    return (struct four){load_vec(x), load_vec(x + step), load_vec(x + 2 * step), load_vec(x + 3 * step)};
}

static inline void store_four(uint64_t *x, size_t step, struct four v) {
    store_vec(x, v.a);
    store_vec(x + step, v.b);
    store_vec(x + 2 * step, v.c);
    store_vec(x + 3 * step, v.d);
}

static void forward_level(const struct factors *w, struct field f, uint64_t *x, size_t len, size_t block,
                          size_t blocks) {
    size_t quarter = len / 4;
    for (size_t b = block; b < block + blocks; b++, x += len) {
        struct known own = known_at(w, b), first = known_at(w, 2 * b), second = known_at(w, 2 * b + 1);
        for (size_t i = 0; i < quarter; i += LANES)
            store_four(x + i, quarter, forward_four(load_four(x + i, quarter), own, first, second, f));
    }
}

static void inverse_level(const struct factors *w, struct field f, uint64_t *x, size_t len, size_t block,
                          size_t blocks) {
    size_t quarter = len / 4;
    for (size_t b = block; b < block + blocks; b++, x += len) {
        struct known own = known_at(w, b), first = known_at(w, 2 * b), second = known_at(w, 2 * b + 1);
        for (size_t i = 0; i < quarter; i += LANES)
            store_four(x + i, quarter, inverse_four(load_four(x + i, quarter), own, first, second, f));
    }
}

/* LANES blocks of LANES words at a time: transposed, word j of each block is lane by lane in v[j]. Their factors lie
 * LANES by LANES in the order of use, LANES - 1 vectors for every such square. */
static void forward_leaves(const struct factors *w, struct field f, uint64_t *x, size_t len, size_t at) {
    for (size_t i = 0; i < len; i += LANES * LANES, x += LANES * LANES) {
        vec v[LANES];
        for (int j = 0; j < LANES; j++) v[j] = load_vec(x + j * LANES);
        transpose_vec(v);
        for (int half = LANES / 2; half; half /= 2)
            for (int j = 0; j < LANES; j += 2 * half, at += LANES) {
                struct known each = known_each(w, at);
                for (int k = j; k < j + half; k++) forward_pair(v + k, v + k + half, each, f);
            }
        transpose_vec(v);
        for (int j = 0; j < LANES; j++) put(x + j * LANES, v[j], f);
    }
}

static void inverse_leaves(const struct factors *w, struct field f, const uint64_t *in, uint64_t *x, size_t len,
                           size_t at) {
    for (size_t i = 0; i < len; i += LANES * LANES, x += LANES * LANES, in += LANES * LANES) {
        vec v[LANES];
        for (int j = 0; j < LANES; j++) v[j] = take(in + j * LANES);
        transpose_vec(v);
        for (int half = 1; half < LANES; half *= 2)
            for (int j = 0; j < LANES; j += 2 * half, at += LANES) {
                struct known each = known_each(w, at);
                for (int k = j; k < j + half; k++) inverse_pair(v + k, v + k + half, each, f);
            }
        if (LANES > 1) v[0] = settle(v[0], f);
        transpose_vec(v);
        for (int j = 0; j < LANES; j++) store_vec(x + j * LANES, v[j]);
    }
}

/* Whether the root is two stages, so that the levels between it and the leaves are twos as well. */
static int root_is_two(size_t n) {
    return !(__builtin_ctzll(n / LANES) & 1);
}

static void forward(const struct focal_prime *p, const uint64_t *in, uint64_t *out) {
    const struct factors *w = &p->forward;
    struct field f = field_of(&p->m);
    size_t len = p->n, blocks = 1;
    struct known own = known_at(w, 1);
    if (root_is_two(p->n)) {
        struct known first = known_at(w, 2), second = known_at(w, 3);
        len /= 4, blocks = 4;
        for (size_t i = 0; i < len; i += LANES) {
            struct four x = {take(in + i), take(in + len + i), take(in + 2 * len + i), take(in + 3 * len + i)};
            store_four(out + i, len, forward_four(x, own, first, second, f));
        }
    } else {
        len /= 2, blocks = 2;
        for (size_t i = 0; i < len; i += LANES) {
            vec u = take(in + i), v = take(in + len + i);
            forward_pair(&u, &v, own, f);
            store_vec(out + i, u);
            store_vec(out + len + i, v);
        }
    }
    for (; len > CACHED; len /= 4, blocks *= 4) forward_level(w, f, out, len, blocks, blocks);
    for (size_t b = 0; b < blocks; b++) {
        uint64_t *x = out + b * len;
        size_t block = blocks + b, below = 1, size = len;
        for (; size > LANES; size /= 4, block *= 4, below *= 4) forward_level(w, f, x, size, block, below);
        forward_leaves(&p->forward_leaf, f, x, len, b * len / LANES * (LANES - 1));
    }
}

/* `scale` / n is multiplied into the factors of the last stage: (u, v) -> (w (u + v), w' (u - v)). */
static void inverse(const struct focal_prime *p, uint64_t scale, const uint64_t *in, uint64_t *out) {
    const struct factors *w = &p->inverse;
    struct field f = field_of(&p->m);
    uint64_t both = times_mod(scale, p->n_inverse, &p->m);
    struct known even = known(factor_of(both, &p->m)),
                 odd = known(factor_of(times_mod(both, p->root_inverse_1, &p->m), &p->m));
    size_t root = root_is_two(p->n) ? 4 : 2, len = p->n / root, blocks = root;
    while (len > CACHED) len /= 4, blocks *= 4;
    for (size_t b = 0; b < blocks; b++) {
        uint64_t *x = out + b * len;
        inverse_leaves(&p->inverse_leaf, f, in + b * len, x, len, b * len / LANES * (LANES - 1));
        size_t size = 4 * LANES, below = len / size;
        for (; size <= len; size *= 4, below /= 4) inverse_level(w, f, x, size, (blocks + b) * below, below);
    }
    for (; blocks > root;) {
        len *= 4, blocks /= 4;
        inverse_level(w, f, out, len, blocks, blocks);
    }
    struct known first = known_at(w, 2), second = known_at(w, 3);
    size_t half = p->n / 2, quarter = p->n / 4;
    for (size_t i = 0; i < (root == 4 ? quarter : half); i += LANES) {
        struct four x = {load_vec(out + i), load_vec(out + i), load_vec(out + half + i), load_vec(out + half + i)};
        if (root == 4) {
            x.b = load_vec(out + quarter + i);
            x.d = load_vec(out + half + quarter + i);
            inverse_pair(&x.a, &x.b, first, f);
            inverse_pair(&x.c, &x.d, second, f);
            put(out + quarter + i, times(add(x.b, x.d, f), even, f), f);
            put(out + half + quarter + i, times(subtract(x.b, x.d, f), odd, f), f);
        }
        put(out + i, times(add(x.a, x.c, f), even, f), f);
        put(out + half + i, times(subtract(x.a, x.c, f), odd, f), f);
    }
}

/* ---- limb by limb ---- */

static void add_limb(uint64_t q, size_t n, const uint64_t *x, const uint64_t *y, uint64_t *out) {
    for (size_t i = 0; i < n; i++) {
        uint64_t z = x[i] + y[i] - q;
        out[i] = z + (q & -(z >> 63));
    }
}

static void subtract_limb(uint64_t q, size_t n, const uint64_t *x, const uint64_t *y, uint64_t *out) {
    for (size_t i = 0; i < n; i++) {
        uint64_t z = x[i] - y[i];
        out[i] = z + (q & -(z >> 63));
    }
}

static void centred(const struct modulus *m, size_t n, const uint64_t *x, uint64_t other, uint64_t *out) {
    uint64_t half = other / 2;
    if (half < m->q)
        for (size_t i = 0; i < n; i++) out[i] = x[i] + ((m->q - other) & -((half - x[i]) >> 63));
    else
        for (size_t i = 0; i < n; i++) {
            uint64_t rest = times_mod(x[i] > half ? other - x[i] : x[i], 1, m);
            out[i] = x[i] > half && rest ? m->q - rest : rest;
        }
}

/* Of any n: what is left over is done by the plain formula. */
static void multiply(const struct modulus *m, size_t n, const uint64_t *x, const uint64_t *y, uint64_t *out) {
    struct field f = field_of(m);
    size_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        sum_put(out + i, sum_plus(sum_of(NULL), read(x + i), read(y + i), m, f), m, f);
    for (; i < n; i++) out[i] = times_mod(x[i], y[i], m);
}

static void scale(const struct modulus *m, size_t n, const uint64_t *x, uint64_t w, uint64_t *out) {
    struct field f = field_of(m);
    struct known by = known(factor_of(w, m));
    for (size_t i = 0; i < n; i += LANES) put(out + i, times(take(x + i), by, f), f);
}

static void subtract_scale(const struct modulus *m, size_t n, const uint64_t *x, const uint64_t *y, uint64_t w,
                           uint64_t *out) {
    struct field f = field_of(m);
    struct known by = known(factor_of(w, m));
    for (size_t i = 0; i < n; i += LANES) put(out + i, times(subtract(take(x + i), take(y + i), f), by, f), f);
}

static void convert(const struct modulus *m, size_t n, size_t count, const uint64_t *const *y, const uint64_t *w,
                    uint64_t *out) {
    struct field f = field_of(m);
    struct known by[MOST_SOURCES][PIECES];
    for (size_t s = 0; s < count; s++)
        for (int k = 0; k < PIECES; k++)
            by[s][k] = known(factor_of(k ? times_mod(w[s], ((uint64_t)1 << 30) % m->q, m) : w[s], m));
    for (size_t i = 0; i < n; i += LANES) {
        vec total = times(piece(y[0] + i, 0), by[0][0], f);
        for (size_t s = 0; s < count; s++)
            for (int k = !s; k < PIECES; k++) total = add(total, times(piece(y[s] + i, k), by[s][k], f), f);
        put(out + i, total, f);
    }
}

/* ---- sums of products ---- */

static void products(const struct modulus *m, size_t n, size_t count, const uint64_t *const *x, size_t x_step,
                     const uint64_t *const *y, size_t y_step, size_t at, int onto, uint64_t *const *t) {
    struct field f = field_of(m);
    for (size_t i = 0; i < n; i += SUM_LANES) {
        sum t0 = sum_of(onto ? t[0] + i : NULL), t1 = sum_of(onto ? t[1] + i : NULL),
            t2 = sum_of(onto ? t[2] + i : NULL);
        for (size_t k = 0; k < count; k++) {
            if (k && k % (SUM_MOST / 2) == 0) { /* t1 has two products of each pair */
                t0 = sum_folded(t0, m, f);
                t1 = sum_folded(t1, m, f);
                t2 = sum_folded(t2, m, f);
            }
            const uint64_t *a = x[k] + at + i, *b = y[k] + at + i;
            operand a0 = read(a), a1 = read(a + x_step), b0 = read(b), b1 = read(b + y_step);
            t0 = sum_plus(t0, a0, b0, m, f);
            t1 = sum_plus(sum_plus(t1, a0, b1, m, f), a1, b0, m, f);
            t2 = sum_plus(t2, a1, b1, m, f);
        }
        sum_put(t[0] + i, t0, m, f);
        sum_put(t[1] + i, t1, m, f);
        sum_put(t[2] + i, t2, m, f);
    }
}

static inline __attribute__((always_inline)) void inner_of(const struct modulus *m, size_t n, size_t count,
                                                           const uint64_t *x, size_t x_step, const uint64_t *b,
                                                           const uint64_t *a, size_t key_step, uint64_t *out0,
                                                           uint64_t *out1) {
    struct field f = field_of(m);
    for (size_t i = 0; i < n; i += SUM_LANES) {
        sum s0 = sum_of(NULL), s1 = sum_of(NULL);
        for (size_t k = 0; k < count; k++) {
            if (k && k % SUM_MOST == 0) s0 = sum_folded(s0, m, f), s1 = sum_folded(s1, m, f);
            operand digit = read(x + k * x_step + i);
            s0 = sum_plus(s0, digit, read(b + k * key_step + i), m, f);
            s1 = sum_plus(s1, digit, read(a + k * key_step + i), m, f);
        }
        sum_put(out0 + i, s0, m, f);
        sum_put(out1 + i, s1, m, f);
    }
}

/* The loop over the digits is unrolled where their number is known: there are one, two or three. */
static void inner(const struct modulus *m, size_t n, size_t count, const uint64_t *x, size_t x_step, const uint64_t *b,
                  const uint64_t *a, size_t key_step, uint64_t *out0, uint64_t *out1) {
    switch (count) {
        case 1: inner_of(m, n, 1, x, x_step, b, a, key_step, out0, out1); break;
        case 2: inner_of(m, n, 2, x, x_step, b, a, key_step, out0, out1); break;
        case 3: inner_of(m, n, 3, x, x_step, b, a, key_step, out0, out1); break;
        default: inner_of(m, n, count, x, x_step, b, a, key_step, out0, out1);
    }
}

/* The table of the set, under the name that the includer gives. */
#define KERNELS(name)                   \
    const struct kernels name = {       \
        .limit = LIMIT,                 \
        .lanes = LANES,                 \
        .words = WORDS,                 \
        .factor = factor_of,            \
        .forward = forward,             \
        .inverse = inverse,             \
        .add = add_limb,                \
        .subtract = subtract_limb,      \
        .multiply = multiply,           \
        .scale = scale,                 \
        .subtract_scale = subtract_scale,\
        .centred = centred,             \
        .convert = convert,             \
        .products = products,           \
        .inner = inner,                 \
    }
