/* Residues of q < 2^60 one at a time, with 64-bit products: anywhere. Shoup's product, Harvey's ranges (2014). */
#pragma once
#include "kernels.h"

#define LANES 1
typedef uint64_t vec;

enum { WORDS = 2, PIECES = 1 };
#define LIMIT ((uint64_t)1 << 60)

struct field {
    uint64_t q;
};

struct known {
    uint64_t w, w_;
};

static inline struct field field_of(const struct modulus *m) {
    return (struct field){m->q};
}

static struct factor factor_of(uint64_t w, const struct modulus *m) {
    return (struct factor){{w, shoup_word(w, m->q)}};
}

static inline struct known known(struct factor w) {
    return (struct known){w.word[0], w.word[1]};
}

static inline struct known known_at(const struct factors *w, size_t i) {
    return (struct known){w->word[0][i], w->word[1][i]};
}

static inline struct known known_each(const struct factors *w, size_t i) {
    return known_at(w, i);
}

static inline vec load_vec(const uint64_t *p) {
    return *p;
}

static inline void store_vec(uint64_t *p, vec x) {
    *p = x;
}

static inline vec take(const uint64_t *p) {
    return *p;
}

static inline vec settle(vec x, struct field f) {
    (void)f;
    return x;
}

/* Of x < 4 q. */
static inline void put(uint64_t *p, vec x, struct field f) {
    *p = once_less(once_less(x, 2 * f.q), f.q);
}

static inline vec times(vec y, struct known w, struct field f) {
    return shoup(y, w.w, w.w_, f.q);
}

static inline vec add(vec x, vec y, struct field f) {
    return once_less(x + y, 2 * f.q);
}

static inline vec subtract(vec x, vec y, struct field f) {
    return x + 2 * f.q - y;
}

/* Below 4 q, in and out. */
static inline void forward_pair(vec *u, vec *v, struct known w, struct field f) {
    vec r = times(*v, w, f), below = once_less(*u, 2 * f.q);
    *u = below + r;
    *v = subtract(below, r, f);
}

/* Below 2 q, in and out. */
static inline void inverse_pair(vec *u, vec *v, struct known w, struct field f) {
    vec d = subtract(*u, *v, f);
    *u = add(*u, *v, f);
    *v = times(d, w, f);
}

static inline void transpose_vec(vec v[LANES]) {
    (void)v;
}

static inline vec piece(const uint64_t *p, int which) {
    (void)which;
    return *p;
}

#include "sum_128.h"
