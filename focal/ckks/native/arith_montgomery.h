/* Residues of q < 2^60 as words, products by a known factor out of 32-bit products, which every vector unit has.
 *
 * y < 2^62 is cut at bit 31, y = y1 2^31 + y0, and each piece has a factor of its own, both known:
 *
 *     a = 2^32 w mod q     b = 2^63 w mod q     T = y0 a + y1 b = 2^32 y w  modulo q,  T < 2^32 q
 *
 * One 32-bit step of Montgomery's reduction (1985) takes the 2^32 off again: with k = T / q modulo 2^32, T - k q ends
 * in 32 zeros, and
 *
 *     r = (T - k q) / 2^32 = y w  modulo q,   -q < r < q
 *
 * T is held as low + 2^32 high, low = y0 a_0 + y1 b_0 < 2^64. The low halves of low and of k q_0 are equal, so no carry
 * is lost: seven products of 32 bits, and two words a factor. (Shoup's way takes nine, as the 64-bit quotient and two
 * low products are made from pieces.)
 */
#pragma once
#include "kernels.h"

typedef lanes vec;

enum { WORDS = 2, PIECES = 1 };
#define LIMIT ((uint64_t)1 << 60)

struct field {
    lanes q, q_high, q2, inverse;
};

struct known {
    lanes a, a_high, b, b_high;
};

static inline struct field field_of(const struct modulus *m) {
    return (struct field){all(m->q), all(m->q >> 32), all(2 * m->q), all(m->inverse_32)};
}

static struct factor factor_of(uint64_t w, const struct modulus *m) {
    uint64_t a = (uint64_t)(((u128)w << 32) % m->q);
    return (struct factor){{a, (uint64_t)(((u128)a << 31) % m->q)}};
}

static inline struct known known_from(lanes a, lanes b) {
    return (struct known){a, a >> 32, b, b >> 32};
}

static inline struct known known(struct factor w) {
    return known_from(all(w.word[0]), all(w.word[1]));
}

static inline struct known known_at(const struct factors *w, size_t i) {
    return known_from(all(w->word[0][i]), all(w->word[1][i]));
}

static inline struct known known_each(const struct factors *w, size_t i) {
    return known_from(load(w->word[0] + i), load(w->word[1] + i));
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

/* Between -q and q. */
static inline vec signed_times(vec y, struct known w, struct field f) {
    lanes y0 = y & 0x7fffffff, y1 = y >> 31;
    lanes low = times_32(y0, w.a) + times_32(y1, w.b);
    lanes high = times_32(y0, w.a_high) + times_32(y1, w.b_high);
    lanes k = times_32(low, f.inverse);
    return high + (low >> 32) - times_32(k, f.q_high) - (times_32(k, f.q) >> 32);
}

static inline vec times(vec y, struct known w, struct field f) {
    return signed_times(y, w, f) + f.q;
}

static inline vec add(vec x, vec y, struct field f) {
    return once_less_lanes(x + y, f.q2);
}

static inline vec subtract(vec x, vec y, struct field f) {
    return x + f.q2 - y;
}

/* Below 4 q, in and out. */
static inline void forward_pair(vec *u, vec *v, struct known w, struct field f) {
    vec r = signed_times(*v, w, f), middle = once_less_lanes(*u, f.q2) + f.q;
    *u = middle + r;
    *v = middle - r;
}

/* Below 2 q, in and out. */
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

#include "sum_128.h"
