"""``python -m focal.ckks.native``: compile the kernels in place."""

import sys

from focal.ckks.native.build import main

sys.exit(main())
