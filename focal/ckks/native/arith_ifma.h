/* Residues of q < 2^50 as 64-bit words, products by AVX-512 IFMA: the low and the high 52 bits of a product of 52 bits.
 *
 * Shoup's product with 2^52 in the place of 2^64: w' = floor(2^52 w / q), k = floor(y w' / 2^52), y w - k q in [0, 2 q)
 * for y < 2^52. The butterflies and their ranges are Harvey's (2014): below 4 q forwards, below 2 q in the inverse.
 */
#pragma once
#include "lanes_512.h"
#include "kernels.h"

typedef lanes vec;

enum { WORDS = 2, PIECES = 2 };
#define LIMIT ((uint64_t)1 << 50)
#define LOW_52 (((uint64_t)1 << 52) - 1)

struct known {
    lanes w, w_;
};

struct field {
    lanes q, q2, minus_q; /* the last modulo 2^52 */
    struct known one, two_52;
};

static struct factor factor_of(uint64_t w, const struct modulus *m) {
    return (struct factor){{w, (uint64_t)(((u128)w << 52) / m->q)}};
}

static inline struct known known(struct factor w) {
    return (struct known){all(w.word[0]), all(w.word[1])};
}

static inline struct known known_at(const struct factors *w, size_t i) {
    return (struct known){all(w->word[0][i]), all(w->word[1][i])};
}

static inline struct known known_each(const struct factors *w, size_t i) {
    return (struct known){load(w->word[0] + i), load(w->word[1] + i)};
}

static inline struct field field_of(const struct modulus *m) {
    return (struct field){
        all(m->q),
        all(2 * m->q),
        all(((uint64_t)1 << 52) - m->q),
        known(factor_of(1, m)),
        known(factor_of(((uint64_t)1 << 52) % m->q, m)),
    };
}

static inline vec load_vec(const uint64_t *p) {
    return load(p);
}

static inline void store_vec(uint64_t *p, vec x) {
    store(p, x);
}

static inline vec take(const uint64_t *p) {
    return load(p);
}

static inline vec settle(vec x, struct field f) {
    (void)f;
    return x;
}

/* Of x < 4 q. */
static inline void put(uint64_t *p, vec x, struct field f) {
    store(p, once_less_lanes(once_less_lanes(x, f.q2), f.q));
}

static inline vec times(vec y, struct known w, struct field f) {
    lanes k = add_high_52(all(0), y, w.w_);
    return add_low_52(add_low_52(all(0), y, w.w), k, f.minus_q) & LOW_52;
}

static inline vec add(vec x, vec y, struct field f) {
    return once_less_lanes(x + y, f.q2);
}

static inline vec subtract(vec x, vec y, struct field f) {
    return x + f.q2 - y;
}

static inline void forward_pair(vec *u, vec *v, struct known w, struct field f) {
    vec r = times(*v, w, f), below = once_less_lanes(*u, f.q2);
    *u = below + r;
    *v = subtract(below, r, f);
}

static inline void inverse_pair(vec *u, vec *v, struct known w, struct field f) {
    vec d = subtract(*u, *v, f);
    *u = add(*u, *v, f);
    *v = times(d, w, f);
}

static inline void transpose_vec(vec v[LANES]) {
    transpose(v);
}

/* A word below 2^60 is two residues: its low 30 bits, and the rest, which belongs to the factor 2^30 w. */
static inline vec piece(const uint64_t *p, int which) {
    lanes x = load(p);
    return which ? x >> 30 : x & ((1 << 30) - 1);
}

/* Sums of products as low + 2^52 high. Of eight products and a residue, high stays below 2^52. */
#define SUM_LANES LANES
typedef lanes operand;
typedef struct {
    lanes low, high;
} sum;

static inline operand read(const uint64_t *p) {
    return load(p);
}

static inline sum sum_of(const uint64_t *p) {
    return (sum){p ? load(p) : all(0), all(0)};
}

static inline sum sum_plus(sum s, operand x, operand y, const struct modulus *m, struct field f) {
    (void)m, (void)f;
    return (sum){add_low_52(s.low, x, y), add_high_52(s.high, x, y)};
}

static inline vec sum_reduced(sum s, struct field f) {
    return times(s.low & LOW_52, f.one, f) + times(s.high + (s.low >> 52), f.two_52, f);
}

static inline sum sum_folded(sum s, const struct modulus *m, struct field f) {
    (void)m;
    return (sum){sum_reduced(s, f), all(0)};
}

static inline void sum_put(uint64_t *p, sum s, const struct modulus *m, struct field f) {
    (void)m;
    put(p, sum_reduced(s, f), f);
}
