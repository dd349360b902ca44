/* Any processor. */
#include "arith_shoup.h"
#include "kernels.inc.h"
KERNELS(portable);
