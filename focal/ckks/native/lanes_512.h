/* Eight 64-bit words of an AVX-512 register. Sums, shifts and masks are GCC's vector operators; here is what they lack.
 *
 * With FOCAL_EMULATE_IFMA the four instructions are loops, and the same kernels run on any processor: for tests.
 */
#pragma once
#ifndef FOCAL_EMULATE_IFMA
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512ifma")
#include <immintrin.h>
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
typedef uint64_t lanes __attribute__((vector_size(64)));

static inline lanes load(const uint64_t *p) {
    lanes x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void store(uint64_t *p, lanes x) {
    memcpy(p, &x, sizeof x);
}

static inline lanes all(uint64_t x) {
    return x - (lanes){0};
}

#ifdef FOCAL_EMULATE_IFMA

static inline lanes times_32(lanes x, lanes y) {
    return (x & 0xffffffff) * (y & 0xffffffff);
}

#define MASK_52 (((uint64_t)1 << 52) - 1)

static inline unsigned __int128 product_52(uint64_t x, uint64_t y) {
    return (unsigned __int128)(x & MASK_52) * (y & MASK_52);
}

static inline lanes add_low_52(lanes sum, lanes x, lanes y) {
    for (int i = 0; i < LANES; i++) sum[i] += (uint64_t)product_52(x[i], y[i]) & MASK_52;
    return sum;
}

static inline lanes add_high_52(lanes sum, lanes x, lanes y) {
    for (int i = 0; i < LANES; i++) sum[i] += (uint64_t)(product_52(x[i], y[i]) >> 52);
    return sum;
}

static inline lanes least(lanes x, lanes y) {
    lanes smaller = (lanes)(x < y);
    return (x & smaller) | (y & ~smaller);
}

#else

/* The product of the low halves. */
static inline lanes times_32(lanes x, lanes y) {
    return (lanes)_mm512_mul_epu32((__m512i)x, (__m512i)y);
}

/* sum + the low, or the high, 52 bits of the product of the low 52 bits. */
static inline lanes add_low_52(lanes sum, lanes x, lanes y) {
    return (lanes)_mm512_madd52lo_epu64((__m512i)sum, (__m512i)x, (__m512i)y);
}

static inline lanes add_high_52(lanes sum, lanes x, lanes y) {
    return (lanes)_mm512_madd52hi_epu64((__m512i)sum, (__m512i)x, (__m512i)y);
}

static inline lanes least(lanes x, lanes y) {
    return (lanes)_mm512_min_epu64((__m512i)x, (__m512i)y);
}

#endif

/* x modulo m, for x < 2 m: below m the difference wraps around, and is huge. */
static inline lanes once_less_lanes(lanes x, lanes m) {
    return least(x, x - m);
}

/* Of eight rows: pairs of words change places, then pairs of twos, then halves. */
static inline void transpose(lanes v[LANES]) {
    static const struct {
        int distance;
        lanes low, high;
    } steps[] = {
        {1, {0, 8, 2, 10, 4, 12, 6, 14}, {1, 9, 3, 11, 5, 13, 7, 15}},
        {2, {0, 1, 8, 9, 4, 5, 12, 13}, {2, 3, 10, 11, 6, 7, 14, 15}},
        {4, {0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}},
    };
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < LANES; i++)
            if (!(i & steps[s].distance)) {
                lanes a = v[i], b = v[i + steps[s].distance];
                v[i] = __builtin_shuffle(a, b, steps[s].low);
                v[i + steps[s].distance] = __builtin_shuffle(a, b, steps[s].high);
            }
}
