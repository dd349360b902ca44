/* AVX2 and FMA, primes below 2^46. */
#ifdef __x86_64__
#include "arith_double.h"
#include "kernels.inc.h"
KERNELS(avx2_narrow);
#endif
