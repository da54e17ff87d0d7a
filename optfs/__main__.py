"""`python -m optfs`."""

import sys

from optfs.cli import main

sys.exit(main())
