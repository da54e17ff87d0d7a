"""`python -m optfs`."""

import sys

from optfs.program import main

sys.exit(main())
