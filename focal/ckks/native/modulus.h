/* Numbers modulo one q: constants, one scalar product after another, and the tables of one prime's transform. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "native.h"

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for GCC or Clang on little-endian machines"
#endif
#ifdef __FAST_MATH__
#error "the quotients in doubles need IEEE arithmetic: compile without -ffast-math"
#endif

typedef unsigned __int128 u128;

struct kernels;

struct modulus {
    uint64_t q;
    int bits;            /* 2^(bits - 1) <= q < 2^bits */
    uint64_t barrett;    /* floor(2^(bits + 63) / q), at most 2^64 - 1 */
    uint64_t inverse_32; /* q^-1 modulo 2^32; of odd q */
    double reciprocal;   /* 1 / q */
    const struct kernels *kernels;
};

enum { MOST_WORDS = 4 };

/* A known factor w with what makes products by it cheap: words that mean what the modulus's kernels want. */
struct factor {
    uint64_t word[MOST_WORDS];
};

/* Factors as arrays, one per word; NULL for words that the kernels do not have. */
struct factors {
    uint64_t *word[MOST_WORDS];
};

struct focal_prime {
    struct modulus m;
    size_t n;
    /* Powers of the root and of its inverse in bit-reversed order, as in Longa and Naehrig 2016. Entry 1 belongs to the
     * first butterflies' one block, entries 2 and 3 to the next two: block b's halves are blocks 2 b and 2 b + 1. */
    struct factors forward, inverse;
    /* The same for the last (the inverse's first) stages, in the order in which they are used (kernels.inc.h). */
    struct factors forward_leaf, inverse_leaf;
    /* Entry 1 of `inverse`, and 1 / n, as residues: for inverse transforms that multiply as well. */
    uint64_t root_inverse_1, n_inverse;
};

struct modulus modulus_of(int variant, uint64_t q);

static inline uint64_t once_less(uint64_t x, uint64_t q) {
    return x >= q ? x - q : x;
}

/* x mod q for x < 2^(bits + 63) (Barrett 1986): the quotient is short by at most 2. */
static inline uint64_t reduce_128(u128 x, const struct modulus *m) {
    uint64_t top = (uint64_t)(x >> 64) << 1 << (64 - m->bits) | (uint64_t)x >> (m->bits - 1); /* x / 2^(bits - 1) */
    uint64_t quotient = (uint64_t)((u128)top * m->barrett >> 64);
    uint64_t rest = (uint64_t)x - quotient * m->q;
    return once_less(once_less(rest, 2 * m->q), m->q);
}

static inline uint64_t times_mod(uint64_t x, uint64_t y, const struct modulus *m) {
    return reduce_128((u128)x * y, m);
}

uint64_t power_mod(uint64_t x, uint64_t e, const struct modulus *m);
uint64_t inverse_mod(uint64_t x, const struct modulus *m); /* of a prime q */

/* Shoup's product by a constant w < q with w' = floor(2^64 w / q): in [0, 2 q) for any y (Harvey 2014, algorithm 2). */
static inline uint64_t shoup_word(uint64_t w, uint64_t q) {
    return (uint64_t)(((u128)w << 64) / q);
}

static inline uint64_t shoup(uint64_t y, uint64_t w, uint64_t w_, uint64_t q) {
    return y * w - (uint64_t)((u128)y * w_ >> 64) * q;
}
