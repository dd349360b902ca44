/* AVX2, primes below 2^60. */
#ifdef __x86_64__
#include "lanes_avx2.h"
#include "arith_montgomery.h"
#include "kernels.inc.h"
KERNELS(avx2_wide);
#endif
