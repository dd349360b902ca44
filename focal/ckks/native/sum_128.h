/* Sums of products of residues below 2^60, one at a time in 128 bits: the processor's own 64-bit product is hard to
 * beat here. */
#pragma once
#include "kernels.h"

#define SUM_LANES 1
typedef uint64_t operand;
typedef u128 sum;

static inline operand read(const uint64_t *p) {
    return *p;
}

static inline sum sum_of(const uint64_t *p) {
    return p ? *p : 0;
}

static inline sum sum_plus(sum s, operand x, operand y, const struct modulus *m, struct field f) {
    (void)m, (void)f;
    return s + (u128)x * y;
}

/* Eight products, and a residue, are below 8 q^2 < 2^3 2^bits 2^60: Barrett's reduction takes them. */
static inline sum sum_folded(sum s, const struct modulus *m, struct field f) {
    (void)f;
    return reduce_128(s, m);
}

static inline void sum_put(uint64_t *p, sum s, const struct modulus *m, struct field f) {
    (void)f;
    *p = reduce_128(s, m);
}
