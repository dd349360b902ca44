/* CKKS on limbs: the calls that Python makes. cffi reads this file too (build.py): it holds declarations only.
 *
 * A limb is n residues of one prime as uint64_t, below the prime. Polynomials are in OpenFHE's evaluation order in and
 * out: entry j is the value at root^(2 rev(j) + 1). A polynomial of L limbs is L limbs one after the other; its k-th
 * limb is modulo the k-th prime. No call keeps a pointer, none has state beyond its arguments, and none touches Python:
 * all run without the GIL, in any number of threads.
 */

/* ---- the library ---- */

/* The digest of all source files (build.py). */
const char *focal_made_from(void);
/* Kernels that this processor runs, best last, as a mask of 1 << FOCAL_...; a test build emulates the last. */
enum { FOCAL_PORTABLE = 0, FOCAL_AVX2 = 1, FOCAL_IFMA = 2 };
int focal_variants(void);

/* Memory for `count` words, aligned as vectors want it; NULL when there is none. `free` gives it back. */
uint64_t *focal_words_new(size_t count);
void focal_words_free(uint64_t *words);

/* ---- limbs modulo any q < 2^61 ---- */

void focal_add(int variant, const uint64_t *x, const uint64_t *y, uint64_t q, size_t n, uint64_t *out);
void focal_subtract(int variant, const uint64_t *x, const uint64_t *y, uint64_t q, size_t n, uint64_t *out);
void focal_multiply(int variant, const uint64_t *x, const uint64_t *y, uint64_t q, size_t n, uint64_t *out);
/* offset + sum of words[i] 2^(bits i), modulo q; any words. */
void focal_residues(const uint64_t *const *words, size_t count, int bits, uint64_t offset, uint64_t q, size_t n,
                    uint64_t *out);

/* ---- bytes: a residue is its `width` (1 to 8) low bytes, least first ---- */

void focal_pack(const uint64_t *limb, size_t n, size_t width, uint8_t *bytes);
/* 1 when every residue is below q; 0 otherwise, and `limb` then holds whatever was read. */
int focal_unpack(const uint8_t *bytes, size_t n, size_t width, uint64_t q, uint64_t *limb);

/* ---- sums with random signs, of integers in FOCAL_LANES words, word by word modulo 2^64 ---- */

enum { FOCAL_ROWS = 256, FOCAL_LANES = 4 };
/* sums[j] = the sum of all x[i], with a minus where bit i mod 8 of bits[FOCAL_ROWS (i / 8) + j] is 0. x has n integers,
 * n a multiple of 16, and sums FOCAL_ROWS. */
void focal_signed_sums(int variant, const uint8_t *bits, const int64_t *x, size_t n, int64_t *sums);

/* ---- one prime: q = 1 modulo 2 n, below 2^60, with a primitive 2 n-th root of unity ---- */

typedef struct focal_prime focal_prime;

/* NULL when memory is short or the arguments are not as said (n: a power of two from 256 to 2^16). */
focal_prime *focal_prime_new(int variant, uint64_t q, uint64_t root, size_t n);
void focal_prime_free(focal_prime *prime);
/* `in` and `out` may be the same. */
void focal_forward(const focal_prime *prime, const uint64_t *in, uint64_t *out);
/* Of coefficients between -q and q. */
void focal_forward_signed(const focal_prime *prime, const int64_t *in, uint64_t *out);
void focal_inverse(const focal_prime *prime, const uint64_t *in, uint64_t *out);

/* ---- the primes of a scheme: q_0 ... q_(limbs - 1), then those of P ---- */

typedef struct focal_ring focal_ring;

/* `digit` limbs make one digit of hybrid key switching (at most 4, as many as P has primes at most).
 * The primes must outlive the ring. */
focal_ring *focal_ring_new(const focal_prime *const *primes, size_t limbs, size_t special, size_t digit);
void focal_ring_free(focal_ring *ring);
/* How many digits a polynomial of `limbs` limbs has. */
size_t focal_digits(const focal_ring *ring, size_t limbs);

/* Of polynomials with `limbs` limbs; `out` may be x or y. */
void focal_ring_add(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *y, uint64_t *out);
void focal_ring_subtract(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *y, uint64_t *out);
void focal_ring_multiply(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *y, uint64_t *out);
/* By one residue per limb. */
void focal_ring_scale(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *factors, uint64_t *out);
/* out[l][i] = x[l][places[i]]: an automorphism, of `limbs` limbs. Not in place. */
void focal_permute(size_t n, size_t limbs, const uint64_t *x, const uint32_t *places, uint64_t *out);
/* (t0, t1, t2) [+]= sum of (x0, x1)(y0, y1) over `count` pairs: t0 = x0 y0, t1 = x0 y1 + x1 y0, t2 = x1 y1. x[k] and
 * y[k] are two polynomials with x_limbs and y_limbs limbs, of which the first `limbs` are read. `onto`: t's old value
 * is added. */
void focal_products(const focal_ring *ring, size_t limbs, size_t count, const uint64_t *const *x, size_t x_limbs,
                    const uint64_t *const *y, size_t y_limbs, int onto, uint64_t *t);

/* Polynomials that one call divides, at most. */
enum { FOCAL_ELEMENTS = 3 };
/* Words of `scratch` that the calls below write over. */
size_t focal_scratch(const focal_ring *ring);
/* The last limb is dropped and the rest divided by its prime, rounded, of each polynomial: OpenFHE's
 * DropLastElementAndScale. */
void focal_rescale(const focal_ring *ring, size_t elements, size_t limbs, const uint64_t *x, uint64_t *scratch,
                   uint64_t *out);
/* Limb 0 as it is, and the other limbs of the same polynomial, whose coefficients are smaller than q_0 / 2. */
void focal_lift(const focal_ring *ring, size_t limbs, const uint64_t *x, uint64_t *scratch, uint64_t *out);

/* Hybrid key switching in pieces (Han and Ki 2020). Extended polynomials have limbs + special limbs, P's last. */
/* Digits of x, each an extended polynomial: digits[d][limbs + special][n]. */
void focal_mod_up(const focal_ring *ring, size_t limbs, const uint64_t *x, uint64_t *scratch, uint64_t *digits);
/* (out0, out1) = sum of digits[d] (b[d], a[d]), out0 and out1 extended polynomials one after the other. b and a have
 * one polynomial of all the ring's primes per digit; for a shorter digit set the limbs between are passed over. */
void focal_inner(const focal_ring *ring, size_t limbs, const uint64_t *digits, const uint64_t *b, const uint64_t *a,
                 uint64_t *out);
/* Both at once, for one key. */
void focal_switch(const focal_ring *ring, size_t limbs, const uint64_t *x, const uint64_t *b, const uint64_t *a,
                  uint64_t *scratch, uint64_t *out);
/* x / P by OpenFHE's approximate base conversion, of extended polynomials. */
void focal_mod_down(const focal_ring *ring, size_t elements, size_t limbs, const uint64_t *x, uint64_t *scratch,
                    uint64_t *out);
