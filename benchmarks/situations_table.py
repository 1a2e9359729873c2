"""The table of situations in docs/performance.md, from what `crisp bench --parts decoders generation padded rows` left.

python -m benchmarks.situations_table
"""

from pathlib import Path

KEPT = Path(__file__).parents[1] / "docs" / "studies" / "bench" / "situations.json"
