/* Residues of q < 2^46 as doubles, products by fused multiply-add (as in FLINT's fft_small).
 *
 * A double holds integers up to 2^53 exactly. y w needs more, so it is kept as high + low, both exact, and q times the
 * rounded quotient goes off the high part in one fused step:
 *
 *     high = y w rounded        low = y w - high        k = high / q rounded        r = (high - k q) + low
 *
 * high - k q is a multiple of high's last place and, like r, small, so nothing is rounded. For |y| < 2^4 q < 2^50
 * and w < q the three roundings put k off by at most 3 2^50 2^-53 before it is rounded itself: |r| < (1/2 + 3/8) q. A
 * residue of a forward transform grows by that much in each of at most 16 stages, from q to 15 q: no reduction until
 * the end. The inverse adds before it multiplies; there the sums are reduced every other stage.
 */
#pragma once
#include "lanes_avx2.h"
#include "kernels.h"

typedef __m256d vec;

enum { WORDS = 1, PIECES = 2 };
#define LIMIT ((uint64_t)1 << 46)

struct field {
    vec q, reciprocal;
    lanes integer;
};

struct known {
    vec w;
};

static inline struct field field_of(const struct modulus *m) {
    return (struct field){_mm256_set1_pd((double)m->q), _mm256_set1_pd(m->reciprocal), all(m->q)};
}

static struct factor factor_of(uint64_t w, const struct modulus *m) {
    (void)m;
    union {
        double real;
        uint64_t word;
    } bits = {(double)w};
    return (struct factor){{bits.word, 0}};
}

static inline struct known known(struct factor w) {
    return (struct known){(vec)all(w.word[0])};
}

static inline struct known known_at(const struct factors *w, size_t i) {
    return (struct known){(vec)all(w->word[0][i])};
}

static inline struct known known_each(const struct factors *w, size_t i) {
    return (struct known){(vec)load(w->word[0] + i)};
}

static inline vec load_vec(const uint64_t *p) {
    return (vec)load(p);
}

static inline void store_vec(uint64_t *p, vec x) {
    store(p, (lanes)x);
}

/* Words below 2^52 are the last digits of a double between 2^52 and 2^53. */
static inline vec real(lanes x) {
    const vec base = _mm256_set1_pd(0x1p52);
    return (vec)(x | (lanes)base) - base;
}

static inline vec take(const uint64_t *p) {
    return real(load(p));
}

static inline vec settle(vec x, struct field f) {
    vec k = _mm256_round_pd(x * f.reciprocal, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_fnmadd_pd(k, f.q, x);
}

static inline void put(uint64_t *p, vec x, struct field f) {
    const vec base = _mm256_set1_pd(0x1.8p52); /* half as much again: negative ones have the same leading digits */
    lanes i = (lanes)(settle(x, f) + base) - (lanes)base;
    store(p, i + (f.integer & (lanes)((__m256i)i < 0)));
}

static inline vec product(vec x, vec y, struct field f) {
    vec high = x * y;
    vec k = _mm256_round_pd(high * f.reciprocal, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_fnmadd_pd(k, f.q, high) + _mm256_fmsub_pd(x, y, high);
}

static inline vec times(vec y, struct known w, struct field f) {
    return product(y, w.w, f);
}

static inline vec add(vec x, vec y, struct field f) {
    (void)f;
    return x + y;
}

static inline vec subtract(vec x, vec y, struct field f) {
    (void)f;
    return x - y;
}

static inline void forward_pair(vec *u, vec *v, struct known w, struct field f) {
    vec r = times(*v, w, f);
    *v = *u - r;
    *u = *u + r;
}

static inline void inverse_pair(vec *u, vec *v, struct known w, struct field f) {
    vec d = *u - *v;
    *u = *u + *v;
    *v = times(d, w, f);
}

static inline void transpose_vec(vec v[LANES]) {
    lanes words[LANES];
    for (int i = 0; i < LANES; i++) words[i] = (lanes)v[i];
    transpose(words);
    for (int i = 0; i < LANES; i++) v[i] = (vec)words[i];
}

/* A word below 2^60 is two residues: its low 30 bits, and the rest, which belongs to the factor 2^30 w. */
static inline vec piece(const uint64_t *p, int which) {
    lanes x = load(p);
    return real(which ? x >> 30 : x & ((1 << 30) - 1));
}

/* Sums of products: each is reduced at once, and a few of them stay far below 2^53. */
#define SUM_LANES LANES
typedef vec operand, sum;

static inline operand read(const uint64_t *p) {
    return take(p);
}

static inline sum sum_of(const uint64_t *p) {
    return p ? take(p) : _mm256_setzero_pd();
}

static inline sum sum_plus(sum s, operand x, operand y, const struct modulus *m, struct field f) {
    (void)m;
    return s + product(x, y, f);
}

static inline sum sum_folded(sum s, const struct modulus *m, struct field f) {
    (void)m;
    return settle(s, f);
}

static inline void sum_put(uint64_t *p, sum s, const struct modulus *m, struct field f) {
    (void)m;
    put(p, s, f);
}
