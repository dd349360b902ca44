/* Four 64-bit words of an AVX2 register. Sums, shifts and masks are GCC's vector operators; here is what they lack. */
#pragma once
#pragma GCC target("avx2,fma")
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define LANES 4
typedef uint64_t lanes __attribute__((vector_size(32)));

static inline lanes load(const uint64_t *p) {
    return (lanes)_mm256_loadu_si256((const __m256i *)p);
}

static inline void store(uint64_t *p, lanes x) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)x);
}

static inline lanes all(uint64_t x) {
    return (lanes)_mm256_set1_epi64x((long long)x);
}

/* The product of the low halves. */
static inline lanes times_32(lanes x, lanes y) {
    return (lanes)_mm256_mul_epu32((__m256i)x, (__m256i)y);
}

/* x modulo m, for x < 2 m and m < 2^62: where x - m is negative, x is taken. */
static inline lanes once_less_lanes(lanes x, lanes m) {
    lanes less = x - m;
    return (lanes)_mm256_blendv_pd((__m256d)less, (__m256d)x, (__m256d)less);
}

static inline void transpose(lanes v[LANES]) {
    lanes low01 = (lanes)_mm256_unpacklo_epi64((__m256i)v[0], (__m256i)v[1]);
    lanes high01 = (lanes)_mm256_unpackhi_epi64((__m256i)v[0], (__m256i)v[1]);
    lanes low23 = (lanes)_mm256_unpacklo_epi64((__m256i)v[2], (__m256i)v[3]);
    lanes high23 = (lanes)_mm256_unpackhi_epi64((__m256i)v[2], (__m256i)v[3]);
    v[0] = (lanes)_mm256_permute2x128_si256((__m256i)low01, (__m256i)low23, 0x20);
    v[1] = (lanes)_mm256_permute2x128_si256((__m256i)high01, (__m256i)high23, 0x20);
    v[2] = (lanes)_mm256_permute2x128_si256((__m256i)low01, (__m256i)low23, 0x31);
    v[3] = (lanes)_mm256_permute2x128_si256((__m256i)high01, (__m256i)high23, 0x31);
}
