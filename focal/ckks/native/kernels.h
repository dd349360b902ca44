/* The kernels of one kind of modulus on one kind of processor. Every set is kernels.inc.h compiled over another
 * arithmetic:
 *
 *     portable.c      arith_shoup.h        any q        64-bit products
 *     avx2_narrow.c   arith_double.h       q < 2^46     doubles and FMA
 *     avx2_wide.c     arith_montgomery.h   q < 2^60     32-bit products
 *     ifma_narrow.c   arith_ifma.h         q < 2^50     52-bit products
 *     ifma_wide.c     arith_ifma_wide.h    q < 2^60     64-bit products, quotients by 52-bit ones
 *
 * n is a multiple of 64 where nothing else is said.
 */
#pragma once
#include "modulus.h"

enum { MOST_SOURCES = 4 };

struct kernels {
    uint64_t limit; /* q is below */
    size_t lanes, words; /* of a vector; of a factor */
    /* The factor w < q of modulus m. */
    struct factor (*factor)(uint64_t w, const struct modulus *m);
    /* Both transforms; the inverse multiplies by w as well. In place or not. */
    void (*forward)(const struct focal_prime *p, const uint64_t *in, uint64_t *out);
    void (*inverse)(const struct focal_prime *p, uint64_t w, const uint64_t *in, uint64_t *out);
    /* x + y, x - y of any n, for q < 2^62; x y of any n */
    void (*add)(uint64_t q, size_t n, const uint64_t *x, const uint64_t *y, uint64_t *out);
    void (*subtract)(uint64_t q, size_t n, const uint64_t *x, const uint64_t *y, uint64_t *out);
    void (*multiply)(const struct modulus *m, size_t n, const uint64_t *x, const uint64_t *y, uint64_t *out);
    /* x w */
    void (*scale)(const struct modulus *m, size_t n, const uint64_t *x, uint64_t w, uint64_t *out);
    /* (x - y) w */
    void (*subtract_scale)(const struct modulus *m, size_t n, const uint64_t *x, const uint64_t *y, uint64_t w,
                           uint64_t *out);
    /* residues of another modulus as integers centred about zero, modulo m */
    void (*centred)(const struct modulus *m, size_t n, const uint64_t *x, uint64_t other, uint64_t *out);
    /* sum of y[s] w[s] over at most MOST_SOURCES limbs of *other* moduli below 2^60 */
    void (*convert)(const struct modulus *m, size_t n, size_t count, const uint64_t *const *y, const uint64_t *w,
                    uint64_t *out);
    /* (t[0], t[1], t[2]) [+]= sum of products of pairs: the limbs of x[k] are x[k] and x[k] + x_step */
    void (*products)(const struct modulus *m, size_t n, size_t count, const uint64_t *const *x, size_t x_step,
                     const uint64_t *const *y, size_t y_step, size_t at, int onto, uint64_t *const *t);
    /* out0 = sum of x[k x_step] b[k key_step], out1 the same with a */
    void (*inner)(const struct modulus *m, size_t n, size_t count, const uint64_t *x, size_t x_step, const uint64_t *b,
                  const uint64_t *a, size_t key_step, uint64_t *out0, uint64_t *out1);
};

extern const struct kernels portable, avx2_narrow, avx2_wide, ifma_narrow, ifma_wide;
