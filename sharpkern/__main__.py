"""`python -m sharpkern`."""

import sys

from sharpkern.cli import main

sys.exit(main())
