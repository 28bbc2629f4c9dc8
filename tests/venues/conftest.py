"""Makes the helpers beside and above these tests importable, whatever part of them is run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
