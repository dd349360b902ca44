/* Polynomials modulo q_0 q_1 ...: limb by limb, and what moves between primes (rescaling, hybrid key switching).
 *
 * The approximate base conversion of Halevi, Polyakov and Shoup (2019) takes x modulo D = d_0 d_1 ... to a prime t:
 *
 *     sum of [x (D / d_i)^-1 mod d_i] (D / d_i)  modulo t        = x + e D with a small e >= 0
 *
 * (D / d_i)^-1 is multiplied in by the inverse transform that comes before, whose last step multiplies by 1 / n anyway.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* Where a base conversion starts: primes first ... first + count - 1. */
struct base {
    size_t first, count;
    uint64_t hat_inverse[MOST_SOURCES]; /* (D / d_i)^-1 modulo d_i */
    uint64_t (*hat)[MOST_SOURCES];      /* hat[t][i] = D / d_i modulo prime t */
    uint64_t *inverse;                  /* D^-1 modulo prime t; not for those of the base */
};

struct focal_ring {
    size_t n, limbs, special, digit;
    const focal_prime **primes;
    struct base *digits; /* digits[first + count - 1] of count primes, first a multiple of `digit` */
    struct base *single; /* one for every limb: the last one when it is dropped */
    struct base whole;   /* P */
};

static size_t all_primes(const focal_ring *ring) {
    return ring->limbs + ring->special;
}

/* The prime of limb l of an extended polynomial. */
static size_t prime_at(const focal_ring *ring, size_t limbs, size_t l) {
    return l < limbs ? l : ring->limbs + l - limbs;
}

static const struct kernels *kernels_at(const focal_ring *ring, size_t i, const struct modulus **m) {
    *m = &ring->primes[i]->m;
    return (*m)->kernels;
}

static int base_make(const focal_ring *ring, size_t first, size_t count, struct base *base) {
    size_t all = all_primes(ring);
    base->first = first, base->count = count;
    base->hat = calloc(all, sizeof *base->hat);
    base->inverse = calloc(all, sizeof *base->inverse);
    if (!base->hat || !base->inverse) return 0;
    for (size_t t = 0; t < all; t++) {
        const struct modulus *m = &ring->primes[t]->m;
        uint64_t whole = 1;
        for (size_t i = 0; i < count; i++) {
            whole = times_mod(whole, ring->primes[first + i]->m.q % m->q, m);
            base->hat[t][i] = 1;
            for (size_t j = 0; j < count; j++)
                if (i != j) base->hat[t][i] = times_mod(base->hat[t][i], ring->primes[first + j]->m.q % m->q, m);
        }
        if (t >= first && t < first + count)
            base->hat_inverse[t - first] = inverse_mod(base->hat[t][t - first], m);
        else
            base->inverse[t] = inverse_mod(whole, m);
    }
    return 1;
}

static void base_free(struct base *base) {
    free(base->hat);
    free(base->inverse);
}

focal_ring *focal_ring_new(const focal_prime *const *primes, size_t limbs, size_t special, size_t digit) {
    if (!limbs || !special || special > MOST_SOURCES || !digit || digit > MOST_SOURCES) return NULL;
    focal_ring *ring = calloc(1, sizeof *ring);
    if (!ring) return NULL;
    ring->n = primes[0]->n, ring->limbs = limbs, ring->special = special, ring->digit = digit;
    ring->primes = calloc(limbs + special, sizeof *ring->primes);
    ring->digits = calloc(limbs, sizeof *ring->digits);
    ring->single = calloc(limbs, sizeof *ring->single);
    int made = ring->primes && ring->digits && ring->single;
    if (made) memcpy(ring->primes, primes, (limbs + special) * sizeof *primes);
    for (size_t l = 0; l < limbs && made; l++)
        made = base_make(ring, l / digit * digit, l % digit + 1, ring->digits + l) &&
               base_make(ring, l, 1, ring->single + l);
    if (!made || !base_make(ring, limbs, special, &ring->whole)) {
        focal_ring_free(ring);
        return NULL;
    }
    return ring;
}

void focal_ring_free(focal_ring *ring) {
    if (!ring) return;
    for (size_t l = 0; l < ring->limbs; l++) {
        if (ring->digits) base_free(ring->digits + l);
        if (ring->single) base_free(ring->single + l);
    }
    base_free(&ring->whole);
    free(ring->digits);
    free(ring->single);
    free(ring->primes);
    free(ring);
}

size_t focal_digits(const focal_ring *ring, size_t limbs) {
    return (limbs + ring->digit - 1) / ring->digit;
}

/* ---- limb by limb ---- */

void focal_ring_add(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *y, uint64_t *out) {
    const struct modulus *m;
    for (size_t l = 0, at = 0; l < limbs; l++, at += ring->n)
        kernels_at(ring, l, &m)->add(m->q, ring->n, x + at, y + at, out + at);
}

void focal_ring_subtract(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *y, uint64_t *out) {
    const struct modulus *m;
    for (size_t l = 0, at = 0; l < limbs; l++, at += ring->n)
        kernels_at(ring, l, &m)->subtract(m->q, ring->n, x + at, y + at, out + at);
}

void focal_ring_multiply(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *y, uint64_t *out) {
    const struct modulus *m;
    for (size_t l = 0, at = 0; l < limbs; l++, at += ring->n)
        kernels_at(ring, l, &m)->multiply(m, ring->n, x + at, y + at, out + at);
}

void focal_ring_scale(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *factors, uint64_t *out) {
    const struct modulus *m;
    for (size_t l = 0, at = 0; l < limbs; l++, at += ring->n)
        kernels_at(ring, l, &m)->scale(m, ring->n, x + at, factors[l], out + at);
}

void focal_products(const focal_ring *ring, size_t limbs, size_t count, const uint64_t *const *x, size_t x_limbs,
                    const uint64_t *const *y, size_t y_limbs, int onto, uint64_t *t) {
    const struct modulus *m;
    size_t n = ring->n;
    for (size_t l = 0; l < limbs; l++) {
        uint64_t *parts[] = {t + l * n, t + (limbs + l) * n, t + (2 * limbs + l) * n};
        kernels_at(ring, l, &m)->products(m, n, count, x, x_limbs * n, y, y_limbs * n, l * n, onto, parts);
    }
}

/* ---- between primes ---- */

size_t focal_scratch(const focal_ring *ring) {
    size_t to_switch = ring->limbs + focal_digits(ring, ring->limbs), to_divide = FOCAL_ELEMENTS * ring->special + 1;
    return (to_switch > to_divide ? to_switch : to_divide) * ring->n;
}

/* The base's limbs of x, in evaluation form, as the coefficients that `convert` takes: limb i into y + i n. */
static void leave(const focal_ring *ring, const struct base *base, const uint64_t *x, uint64_t *y) {
    for (size_t i = 0; i < base->count; i++) {
        const focal_prime *p = ring->primes[base->first + i];
        p->m.kernels->inverse(p, base->hat_inverse[i], x + i * ring->n, y + i * ring->n);
    }
}

/* ... and prime t's evaluation form from them. */
static void arrive(const focal_ring *ring, const struct base *base, const uint64_t *y, size_t t, uint64_t *out) {
    const focal_prime *p = ring->primes[t];
    const uint64_t *sources[MOST_SOURCES];
    for (size_t i = 0; i < base->count; i++) sources[i] = y + i * ring->n;
    p->m.kernels->convert(&p->m, ring->n, base->count, sources, base->hat[t], out);
    p->m.kernels->forward(p, out, out);
}

/* Coefficients modulo prime `from`, centred about zero, as prime t's evaluation form. */
static void arrive_centred(const focal_ring *ring, size_t from, const uint64_t *coefficients, size_t t, uint64_t *out) {
    const focal_prime *p = ring->primes[t];
    p->m.kernels->centred(&p->m, ring->n, coefficients, ring->primes[from]->m.q, out);
    p->m.kernels->forward(p, out, out);
}

/* The digit that begins with limb `first`. */
static const struct base *digit_at(const focal_ring *ring, size_t limbs, size_t first) {
    size_t last = first + ring->digit < limbs ? first + ring->digit : limbs;
    return ring->digits + last - 1;
}

/* Limb l of a digit extended to all primes: modulo its own ones nothing changes. x: all limbs; y: from `leave`. */
static void extend(const focal_ring *ring, const struct base *base, size_t limbs, const uint64_t *x, const uint64_t *y,
                   size_t l, uint64_t *out) {
    if (l >= base->first && l < base->first + base->count)
        memcpy(out, x + l * ring->n, ring->n * sizeof *x);
    else
        arrive(ring, base, y, prime_at(ring, limbs, l), out);
}

void focal_mod_up(const focal_ring *ring, size_t limbs, const uint64_t *x, uint64_t *scratch, uint64_t *digits) {
    size_t n = ring->n;
    for (size_t first = 0; first < limbs; first += ring->digit) {
        const struct base *base = digit_at(ring, limbs, first);
        leave(ring, base, x + first * n, scratch);
        for (size_t l = 0; l < limbs + ring->special; l++, digits += n)
            extend(ring, base, limbs, x, scratch, l, digits);
    }
}

/* Limb l of the inner product, from the same limb of every digit, `step` words apart. */
static void inner_at(const focal_ring *ring, size_t limbs, size_t l, const uint64_t *digits, size_t step,
                     const uint64_t *b, const uint64_t *a, uint64_t *out) {
    size_t n = ring->n, t = prime_at(ring, limbs, l);
    const struct modulus *m;
    uint64_t *out0 = out + l * n, *out1 = out0 + (limbs + ring->special) * n;
    const struct kernels *kernels = kernels_at(ring, t, &m);
    size_t count = focal_digits(ring, limbs), key_step = all_primes(ring) * n;
    kernels->inner(m, n, count, digits, step, b + t * n, a + t * n, key_step, out0, out1);
}

void focal_inner(const focal_ring *ring, size_t limbs, const uint64_t *digits, const uint64_t *b, const uint64_t *a,
                 uint64_t *out) {
    size_t extended = limbs + ring->special;
    for (size_t l = 0; l < extended; l++) inner_at(ring, limbs, l, digits + l * ring->n, extended * ring->n, b, a, out);
}

/* Prime by prime: the digits' limbs and one prime's tables are still in the cache when they are used again. */
void focal_switch(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *b, const uint64_t *a,
                  uint64_t *scratch, uint64_t *out) {
    size_t n = ring->n;
    uint64_t *y = scratch, *row = scratch + limbs * n;
    for (size_t first = 0; first < limbs; first += ring->digit)
        leave(ring, digit_at(ring, limbs, first), x + first * n, y + first * n);
    for (size_t l = 0; l < limbs + ring->special; l++) {
        for (size_t first = 0, d = 0; first < limbs; first += ring->digit, d++)
            extend(ring, digit_at(ring, limbs, first), limbs, x, y + first * n, l, row + d * n);
        inner_at(ring, limbs, l, row, n, b, a, out);
    }
}

/* (x - [x mod D]) / D for the base D, whose limbs stand at x + at n, of several polynomials with `step` limbs each. [x
 * mod D] of one prime is centred about zero. Prime by prime, as in focal_switch. */
static void divide(const focal_ring *ring, const struct base *base, size_t elements, size_t limbs, size_t step,
                   const uint64_t *x, size_t at, uint64_t *scratch, uint64_t *out) {
    size_t n = ring->n, part = base->count * n;
    uint64_t *y = scratch, *rest = scratch + elements * part;
    for (size_t e = 0; e < elements; e++) leave(ring, base, x + (e * step + at) * n, y + e * part);
    for (size_t l = 0; l < limbs; l++)
        for (size_t e = 0; e < elements; e++) {
            const struct modulus *m = &ring->primes[l]->m;
            if (base == &ring->whole)
                arrive(ring, base, y + e * part, l, rest);
            else
                arrive_centred(ring, base->first, y + e * part, l, rest);
            m->kernels->subtract_scale(m, n, x + (e * step + l) * n, rest, base->inverse[l], out + (e * limbs + l) * n);
        }
}

void focal_mod_down(const focal_ring *ring, size_t elements, size_t limbs, const uint64_t *x, uint64_t *scratch,
                    uint64_t *out) {
    divide(ring, &ring->whole, elements, limbs, limbs + ring->special, x, limbs, scratch, out);
}

void focal_rescale(const focal_ring *ring, size_t elements, size_t limbs, const uint64_t *x, uint64_t *scratch,
                   uint64_t *out) {
    divide(ring, ring->single + limbs - 1, elements, limbs - 1, limbs, x, limbs - 1, scratch, out);
}

void focal_lift(const focal_ring *ring, size_t limbs, const uint64_t *x, uint64_t *scratch, uint64_t *out) {
    memcpy(out, x, ring->n * sizeof *x);
    focal_inverse(ring->primes[0], x, scratch);
    for (size_t l = 1; l < limbs; l++) arrive_centred(ring, 0, scratch, l, out + l * ring->n);
}
