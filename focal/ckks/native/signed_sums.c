/* Sums with random signs, for the range check of uploads (focal/custody/projections.py).
 *
 * Every row adds up all integers, each with a sign of its own. Eight integers have 256 such sums, which are written down
 * once; a row then reads its own with a byte of public bits as the place: one addition where eight would be (Arlazarov,
 * Dinic, Kronrod and Faradzev 1970). What is read depends on the public bits alone. Two such tables and the sums of all
 * rows fit the first cache.
 */
#include <string.h>

#include "kernels.h"

enum { EIGHT = 8, SIGNS = 1 << EIGHT };

/* One integer, as words that are added up each for itself. */
typedef uint64_t wide __attribute__((vector_size(8 * FOCAL_LANES)));

/* table[b] = the sum of eight integers, the k-th one's sign minus where bit k of b is 0. */
static inline __attribute__((always_inline)) void all_signs(const int64_t *x, wide *table) {
    wide each[EIGHT];
    memcpy(each, x, sizeof each);
    table[0] = (wide){0};
    for (size_t k = 0; k < EIGHT; k++) table[0] -= each[k];
    for (size_t k = 0; k < EIGHT; k++)
        for (size_t i = 0; i < (size_t)1 << k; i++) table[((size_t)1 << k) + i] = table[i] + 2 * each[k];
}

static inline __attribute__((always_inline)) void add_up(const uint8_t *bits, const int64_t *x, size_t n,
                                                         int64_t *sums) {
    wide first[SIGNS], second[SIGNS], rows[FOCAL_ROWS];
    memset(rows, 0, sizeof rows);
    for (size_t i = 0; i < n; i += 2 * EIGHT, x += 2 * EIGHT * FOCAL_LANES, bits += 2 * FOCAL_ROWS) {
        all_signs(x, first);
        all_signs(x + EIGHT * FOCAL_LANES, second);
        for (size_t j = 0; j < FOCAL_ROWS; j++) rows[j] += first[bits[j]] + second[bits[FOCAL_ROWS + j]];
    }
    memcpy(sums, rows, sizeof rows);
}

static void portable_sums(const uint8_t *bits, const int64_t *x, size_t n, int64_t *sums) {
    add_up(bits, x, n, sums);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static void avx2_sums(const uint8_t *bits, const int64_t *x, size_t n, int64_t *sums) {
    add_up(bits, x, n, sums);
}
#else
#define avx2_sums portable_sums
#endif

void focal_signed_sums(int variant, const uint8_t *bits, const int64_t *x, size_t n, int64_t *sums) {
    (variant == FOCAL_PORTABLE ? portable_sums : avx2_sums)(bits, x, n, sums);
}
