/* Residues of q < 2^60 as 64-bit words, products by a known factor with AVX-512 IFMA.
 *
 * y < 2^63 is cut at bit 31, y = y1 2^31 + y0, and each piece has a factor of its own, both known:
 *
 *     a = w     b = 2^31 w mod q     T = y0 a + y1 b = y w  modulo q
 *
 * The quotient T / q has 33 bits, which IFMA's high halves give: with a' = floor(2^52 a / q), b' = floor(2^52 b / q)
 *
 *     k = 1 + floor(y0 a' / 2^52) + floor(y1 b' / 2^52)     T / q - k  between -1 and 1 + 2^-18
 *
 * and of r = T - k q the low 64 bits are enough: three 64-bit products, two of 52 bits. r may pass q by 2^-18 q, so
 * ranges are wider than Harvey's (2014), by a q in the butterflies: below 6 q forwards, 2 q in the inverse. Both grow
 * by that 2^-18 a stage, the inverse's sums by twice what they had; 7 q and 3 q are never reached.
 */
#pragma once
#include "lanes_512.h"
#include "kernels.h"

typedef lanes vec;

enum { WORDS = 4, PIECES = 1 };
#define LIMIT ((uint64_t)1 << 60)

struct known {
    lanes a, b, a_, b_;
};

struct field {
    lanes q, q2, q3, q4;
    struct known one, two_30, two_60;
};

static struct factor factor_of(uint64_t w, const struct modulus *m) {
    uint64_t b = (uint64_t)(((u128)w << 31) % m->q);
    return (struct factor){{w, b, (uint64_t)(((u128)w << 52) / m->q), (uint64_t)(((u128)b << 52) / m->q)}};
}

static inline struct known known(struct factor w) {
    return (struct known){all(w.word[0]), all(w.word[1]), all(w.word[2]), all(w.word[3])};
}

static inline struct field field_of(const struct modulus *m) {
    return (struct field){
        all(m->q),
        all(2 * m->q),
        all(3 * m->q),
        all(4 * m->q),
        known(factor_of(1, m)),
        known(factor_of((uint64_t)1 << 30, m)),
        known(factor_of(((uint64_t)1 << 60) % m->q, m)),
    };
}

static inline struct known known_at(const struct factors *w, size_t i) {
    return (struct known){all(w->word[0][i]), all(w->word[1][i]), all(w->word[2][i]), all(w->word[3][i])};
}

static inline struct known known_each(const struct factors *w, size_t i) {
    return (struct known){load(w->word[0] + i), load(w->word[1] + i), load(w->word[2] + i), load(w->word[3] + i)};
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

/* Of x < 8 q. */
static inline void put(uint64_t *p, vec x, struct field f) {
    store(p, once_less_lanes(once_less_lanes(once_less_lanes(x, f.q4), f.q2), f.q));
}

/* Between -q and q + 2^-18 q, of any word y. */
static inline vec signed_times(vec y, struct known w, struct field f) {
    lanes y0 = y & 0x7fffffff, y1 = y >> 31;
    lanes k = add_high_52(add_high_52(all(1), y0, w.a_), y1, w.b_);
    return y0 * w.a + y1 * w.b - k * f.q;
}

static inline vec times(vec y, struct known w, struct field f) {
    return signed_times(y, w, f) + f.q;
}

static inline vec add(vec x, vec y, struct field f) {
    return once_less_lanes(x + y, f.q2);
}

static inline vec subtract(vec x, vec y, struct field f) {
    return x + f.q3 - y;
}

static inline void forward_pair(vec *u, vec *v, struct known w, struct field f) {
    vec r = signed_times(*v, w, f), middle = once_less_lanes(*u, f.q3) + f.q2;
    *u = middle + r;
    *v = middle - r;
}

static inline void inverse_pair(vec *u, vec *v, struct known w, struct field f) {
    vec d = subtract(*u, *v, f);
    *u = add(*u, *v, f);
    *v = times(d, w, f);
}

static inline void transpose_vec(vec v[LANES]) {
    transpose(v);
}

static inline vec piece(const uint64_t *p, int which) {
    (void)which;
    return load(p);
}

/* Sums of products of two halves of 30 bits, as low + 2^30 middle + 2^60 high. Of eight products each fits its word:
 * (2^30 - 1)^2 2^4 < 2^64. */
#define SUM_LANES LANES
typedef struct {
    lanes low, high;
} operand;
typedef struct {
    lanes low, middle, high;
} sum;

static inline operand read(const uint64_t *p) {
    return (operand){load(p) & ((1 << 30) - 1), load(p) >> 30};
}

static inline sum sum_of(const uint64_t *p) {
    return (sum){p ? load(p) : all(0), all(0), all(0)};
}

static inline sum sum_plus(sum s, operand x, operand y, const struct modulus *m, struct field f) {
    (void)m, (void)f;
    return (sum){
        s.low + times_32(x.low, y.low),
        s.middle + times_32(x.low, y.high) + times_32(x.high, y.low),
        s.high + times_32(x.high, y.high),
    };
}

/* Below 6 q and a little. */
static inline vec sum_reduced(sum s, struct field f) {
    return times(s.low, f.one, f) + times(s.middle, f.two_30, f) + times(s.high, f.two_60, f);
}

static inline sum sum_folded(sum s, const struct modulus *m, struct field f) {
    (void)m;
    return (sum){sum_reduced(s, f), all(0), all(0)};
}

static inline void sum_put(uint64_t *p, sum s, const struct modulus *m, struct field f) {
    (void)m;
    put(p, sum_reduced(s, f), f);
}
