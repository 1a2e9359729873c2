"""The parts `memory` and `first-call`: fresh processes that measure one thing each."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.contender import CRISP, DENSE, Absent, UnavailableError, as_it_is_held, dense
from crisp_attention.bench.results import FirstCall, Memory
from crisp_attention.bench.roster import fitting

CACHES = ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def measure_memory(cases: list[Case], told: Callable[[str], None]) -> list[Memory]:
    """Peak memory of dense and sparse attention, forward and forward + backward; dense once for each shape."""
    found, known = [], dict[tuple[Shape, bool], dict[str, Any]]()
    for case in cases:
        for backward in (False, True):
            told(f"memory of {case.method.spec}, {case.shape.length:,} tokens")
            if (case.shape, backward) not in known:
                known[case.shape, backward] = _peak(DENSE, case, backward)
            answers = {DENSE: known[case.shape, backward], CRISP: _peak(CRISP, case, backward)}
            absent = [Absent(name, each["absent"]) for name, each in answers.items() if "absent" in each]
            peaks = {name: each["bytes"] for name, each in answers.items() if "absent" not in each}
            counter = next((each["counter"] for each in answers.values() if "absent" not in each), "")
            ratio = peaks[CRISP] / peaks[DENSE] if len(peaks) == 2 and peaks[DENSE] > 0 else None
            shape = asdict(case.shape)
            found.append(Memory(case.method.spec, shape, backward, peaks, ratio, counter, absent))
    return found


def measure_first_calls(cases: list[Case], told: Callable[[str], None]) -> list[FirstCall]:
    """First calls of each method with the compilers' caches on disk empty, then as that run left them."""
    found = []
    for case in cases:
        seconds, absent = {}, []
        with tempfile.TemporaryDirectory() as folder:
            for state in ("empty", "filled"):
                told(f"first calls of {case.method.name}, caches {state}")
                answer = _probe("first call", CRISP, case, True, dict.fromkeys(CACHES, folder))
                if "absent" in answer:
                    absent.append(Absent(state, answer["absent"]))
                else:
                    seconds[state] = answer
        found.append(FirstCall(case.method.spec, seconds, absent))
    return found


def _peak(name: str, case: Case, backward: bool) -> dict[str, Any]:
    try:
        fitting(dense() if name == DENSE else as_it_is_held(case.method, case.shape), case.shape)
    except UnavailableError as reason:
        return {"absent": str(reason)}
    return _probe("memory", name, case, backward)


def _probe(
    what: str, contender: str, case: Case, backward: bool, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    task = {
        "what": what,
        "contender": contender,
        "method": case.method.spec,
        "shape": asdict(case.shape),
        "backward": backward,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "crisp_attention.bench.probe"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"absent": f"its process ended with status {done.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
