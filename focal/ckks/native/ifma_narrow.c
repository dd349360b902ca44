/* AVX-512 IFMA, primes below 2^50. */
#ifdef __x86_64__
#include "arith_ifma.h"
#include "kernels.inc.h"
KERNELS(ifma_narrow);
#endif
