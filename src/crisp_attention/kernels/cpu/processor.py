"""The processor that kernels are compiled for."""

import os

from llvmlite import binding

# numba compiles for the host unless it is told otherwise
_TOLD = os.environ.get("NUMBA_CPU_FEATURES", "") if os.environ.get("NUMBA_CPU_NAME") else None
# such as "+avx2,-avx512f,…"
FEATURES: str = binding.get_host_cpu_features().flatten() if _TOLD is None else _TOLD
