"""`python -m marketprism`."""

import sys

from marketprism.cli import main

sys.exit(main())
