/* Constants of a modulus, tables of a prime, and which kernels it has. */
#include "modulus.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"

int focal_variants(void) {
    int found = 1 << FOCAL_PORTABLE;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found |= 1 << FOCAL_AVX2;
#ifdef FOCAL_EMULATE_IFMA
    found |= 1 << FOCAL_IFMA;
#else
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512ifma"))
        found |= 1 << FOCAL_IFMA;
#endif
#endif
    return found;
}

static const struct kernels *kernels_for(int variant, uint64_t q) {
    const struct kernels *choice[] = {&portable, &portable};
#ifdef __x86_64__
    if (variant == FOCAL_AVX2) choice[0] = &avx2_narrow, choice[1] = &avx2_wide;
    if (variant == FOCAL_IFMA) choice[0] = &ifma_narrow, choice[1] = &ifma_wide;
#else
    (void)variant;
#endif
    if (q < choice[0]->limit) return choice[0];
    return q < choice[1]->limit ? choice[1] : &portable;
}

struct modulus modulus_of(int variant, uint64_t q) {
    struct modulus m = {.q = q, .bits = 64 - __builtin_clzll(q), .reciprocal = 1 / (double)q};
    m.kernels = kernels_for(variant, q);
    u128 barrett = ((u128)1 << (m.bits + 63)) / q;
    m.barrett = barrett >> 64 ? UINT64_MAX : (uint64_t)barrett;
    uint64_t inverse = q; /* right in the last three bits, and in twice as many after each step (Newton) */
    for (int i = 0; i < 4; i++) inverse *= 2 - q * inverse;
    m.inverse_32 = inverse & UINT32_MAX;
    return m;
}

uint64_t power_mod(uint64_t x, uint64_t e, const struct modulus *m) {
    uint64_t power = 1;
    for (; e; e >>= 1, x = times_mod(x, x, m))
        if (e & 1) power = times_mod(power, x, m);
    return power;
}

uint64_t inverse_mod(uint64_t x, const struct modulus *m) {
    return power_mod(x, m->q - 2, m);
}

static int allocate(struct factors *table, size_t words, size_t count) {
    for (size_t k = 0; k < words; k++)
        if (!(table->word[k] = focal_words_new(count))) return 0;
    return 1;
}

static void put_factor(struct factors *table, size_t i, uint64_t w, const struct modulus *m) {
    struct factor all = m->kernels->factor(w, m);
    for (size_t k = 0; k < m->kernels->words; k++) table->word[k][i] = all.word[k];
}

static size_t reversed(size_t i, size_t n) {
    size_t out = 0;
    for (; n > 1; n /= 2, i /= 2) out = 2 * out + (i & 1);
    return out;
}

/* Powers of `root` into `table`; those of the last stages once more into `leaf`, in the order of use. */
static int fill(const struct focal_prime *p, uint64_t root, int upwards, struct factors *table, struct factors *leaf) {
    size_t lanes = p->m.kernels->lanes, words = p->m.kernels->words, n = p->n, at = 0;
    uint64_t *powers = malloc(n * sizeof *powers);
    if (!powers || !allocate(table, words, n) || !allocate(leaf, words, n)) {
        free(powers);
        return 0;
    }
    uint64_t power = 1;
    for (size_t i = 0; i < n; i++, power = times_mod(power, root, &p->m)) powers[reversed(i, n)] = power;
    for (size_t i = 0; i < n; i++) put_factor(table, i, powers[i], &p->m);
    for (size_t block = n / lanes; block < 2 * (n / lanes) && lanes > 1; block += lanes)
        for (size_t step = 2; step <= lanes; step *= 2) {
            size_t parts = upwards ? lanes / step : step / 2; /* blocks of this stage in a block of `lanes` words */
            for (size_t part = 0; part < parts; part++)
                for (size_t lane = 0; lane < lanes; lane++)
                    put_factor(leaf, at++, powers[(block + lane) * parts + part], &p->m);
        }
    free(powers);
    return 1;
}

focal_prime *focal_prime_new(int variant, uint64_t q, uint64_t root, size_t n) {
    if (n < 256 || n > 65536 || n & (n - 1) || q >> 60 || q % (2 * n) != 1 || root >= q) return NULL;
    focal_prime *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->m = modulus_of(variant, q);
    p->n = n;
    uint64_t back = inverse_mod(root, &p->m);
    if (power_mod(root, n, &p->m) != q - 1 || !fill(p, root, 0, &p->forward, &p->forward_leaf) ||
        !fill(p, back, 1, &p->inverse, &p->inverse_leaf)) {
        focal_prime_free(p);
        return NULL;
    }
    p->root_inverse_1 = power_mod(back, n / 2, &p->m);
    p->n_inverse = inverse_mod(n % q, &p->m);
    return p;
}

void focal_prime_free(focal_prime *p) {
    if (!p) return;
    struct factors *tables[] = {&p->forward, &p->inverse, &p->forward_leaf, &p->inverse_leaf};
    for (int t = 0; t < 4; t++)
        for (int k = 0; k < MOST_WORDS; k++) focal_words_free(tables[t]->word[k]);
    free(p);
}

void focal_forward(const focal_prime *p, const uint64_t *in, uint64_t *out) {
    p->m.kernels->forward(p, in, out);
}

void focal_forward_signed(const focal_prime *p, const int64_t *in, uint64_t *out) {
    for (size_t i = 0; i < p->n; i++) out[i] = (uint64_t)in[i] + (p->m.q & -((uint64_t)in[i] >> 63));
    p->m.kernels->forward(p, out, out);
}

void focal_inverse(const focal_prime *p, const uint64_t *in, uint64_t *out) {
    p->m.kernels->inverse(p, 1, in, out);
}
