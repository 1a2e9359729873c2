"""The CPU kernels, compiled for processors with narrower vectors than this one's, pass the whole contract."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SSE2 = ["sse", "sse2"]
AVX2 = [*SSE2, "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "bmi", "bmi2", "f16c"]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors")
@pytest.mark.parametrize(("name", "features"), [("x86-64", SSE2), ("haswell", AVX2)])
def test_the_contract_holds_without_wide_vectors(tmp_path, name, features) -> None:
    chosen = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ",".join(f"+{each}" for each in features)}
    contract = Path(__file__).with_name("test_every_kernel.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", contract, "-k", "TestCpu"],
        cwd=contract.parents[2],
        env=os.environ | chosen | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert [*tmp_path.rglob("*.nbc")], "nothing was compiled for it"
