/* AVX-512, primes below 2^60. */
#ifdef __x86_64__
#include "lanes_512.h"
#include "arith_ifma_wide.h"
#include "kernels.inc.h"
KERNELS(ifma_wide);
#endif
