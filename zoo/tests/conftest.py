"""The main package's test helpers serve here too: `from pipelines import …`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))
