/* What needs no table: sums and products modulo any q, integers to residues, residues to bytes and back. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

uint64_t *focal_words_new(size_t count) {
    return aligned_alloc(64, (count * sizeof(uint64_t) + 63) / 64 * 64);
}

void focal_words_free(uint64_t *words) {
    free(words);
}

void focal_add(int variant, const uint64_t *x, const uint64_t *y, uint64_t q, size_t n, uint64_t *out) {
    modulus_of(variant, q).kernels->add(q, n, x, y, out);
}

void focal_subtract(int variant, const uint64_t *x, const uint64_t *y, uint64_t q, size_t n, uint64_t *out) {
    modulus_of(variant, q).kernels->subtract(q, n, x, y, out);
}

void focal_multiply(int variant, const uint64_t *x, const uint64_t *y, uint64_t q, size_t n, uint64_t *out) {
    struct modulus m = modulus_of(variant, q);
    m.kernels->multiply(&m, n, x, y, out);
}

void focal_residues(const uint64_t *const *words, size_t count, int bits, uint64_t offset, uint64_t q, size_t n,
                    uint64_t *out) {
    struct modulus m = modulus_of(FOCAL_PORTABLE, q);
    for (size_t i = 0; i < n; i++) out[i] = offset % q;
    uint64_t place = 1 % q, step = ((uint64_t)1 << bits) % q;
    for (size_t k = 0; k < count; k++, place = times_mod(place, step, &m)) {
        uint64_t place_ = shoup_word(place, q);
        for (size_t i = 0; i < n; i++)
            out[i] = once_less(out[i] + once_less(shoup(words[k][i], place, place_, q), q), q);
    }
}

void focal_permute(size_t n, size_t limbs, const uint64_t *x, const uint32_t *places, uint64_t *out) {
    for (size_t l = 0; l < limbs; l++, x += n, out += n)
        for (size_t i = 0; i < n; i++) out[i] = x[places[i]];
}

/* Eight bytes at a time where they lie inside the whole; the next residue overwrites what is too much. */
void focal_pack(const uint64_t *limb, size_t n, size_t width, uint8_t *bytes) {
    size_t i = 0;
    for (; (n - i) * width >= 8; i++) memcpy(bytes + i * width, limb + i, 8);
    for (; i < n; i++) memcpy(bytes + i * width, limb + i, width);
}

int focal_unpack(const uint8_t *bytes, size_t n, size_t width, uint64_t q, uint64_t *limb) {
    uint64_t mask = UINT64_MAX >> (64 - 8 * width), largest = 0;
    size_t i = 0;
    for (; (n - i) * width >= 8; i++) {
        uint64_t word;
        memcpy(&word, bytes + i * width, 8);
        limb[i] = word & mask;
        largest = largest < limb[i] ? limb[i] : largest;
    }
    for (; i < n; i++) {
        limb[i] = 0;
        memcpy(limb + i, bytes + i * width, width);
        largest = largest < limb[i] ? limb[i] : largest;
    }
    return largest < q;
}
