"""The command `crisp`, and the processes of its runs, without the pictures of runs: drawing takes longer than they do.

`python -m tests.studies.quick sweep …`; where it is imported, as a server of runs does, the same holds.
"""

from crisp_attention.runs import evaluation
from crisp_attention.studies.sweep import pool

evaluation.draw_learning = lambda history, metric, path: path.touch()
evaluation.draw_heads = lambda table, path: path.touch()

if __name__ == "__main__":
    from crisp_attention.__main__ import main

    pool.PRELOADED = [*pool.PRELOADED, "tests.studies.quick"]
    main()
