"""The table of situations in docs/performance.md, from what `crisp bench --parts decoders generation padded rows` left.

python -m benchmarks.situations_table
"""

import json
from pathlib import Path
from typing import Any

from crisp_attention.bench.bars import SITUATED

KEPT = Path(__file__).parents[1] / "docs" / "studies" / "bench" / "situations.json"
