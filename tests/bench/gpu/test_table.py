"""The tables of a run, and the section of the page that holds them."""

import pytest

from benchmarks import gpu_bench_table
from crisp_attention.bench.gpu import attention, table
from crisp_attention.bench.gpu.cells import BOTH, DENSE, FORWARD
from crisp_attention.bench.gpu.measured import Row
from crisp_attention.bench.rounds import compared
from tests.bench.gpu.test_parts import MACHINE


def made(direction: str, ours: float, **more) -> dict:
    timed = compared({DENSE[0]: [1e-3] * 3, DENSE[1]: [2e-3] * 3, "top-k": [ours * 1e-3] * 3}, DENSE[0])
    more = {"yardstick": DENSE[0], "timed": timed, "peak_bytes": {"top-k": 3 << 20}} | more
    return Row(attention.BFLOAT16, "4,096", direction, "bfloat16", **more).plain()


def results(*rows, problem=None) -> dict:
    parts = [{"name": "attention", "problem": problem, "seconds": 1, "rows": [*rows]}]
    return {"machine": MACHINE, "quick": False, "parts": parts}


def test_before_a_run_every_row_is_there_and_nothing_is_measured() -> None:
    lines = table.markdown(None)
    groups = dict.fromkeys(each.group for each in table.planned())
    assert len(groups) == 11
    assert sum(line.startswith("| fastest dense, ms") for line in lines) == 11
    assert not any(
        character.isdigit()
        for line in lines
        if "not measured" in line
        for character in line.partition("| not")[2]
    )


def test_ratios_times_memory_and_reasons() -> None:
    absent = [{"name": "entmax 1.5", "reason": "needs about 137 GiB"}]
    failed = [{"name": "top-p", "reason": "RuntimeError: wrong"}]
    rows = (
        made(FORWARD, 0.5, absent=absent, kernels={"top-k": ["reference"]}),
        made(BOTH, 12.3, failed=failed),
    )
    text = "\n".join(table.markdown(results(*rows, problem="1 failed: top-p")))
    assert "a GPU, driver 1, CUDA 13, Python 3.12, torch 1" in text
    assert "Not installed, and so not compared: optuna." in text
    assert "**Failed parts**: attention (1 failed: top-p)." in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| top-k | not measured | 0.50 / 12 | not measured | not measured | – |" in lines
    assert (
        "| dense, cuDNN | not measured | 2.00 / 2.00 | not measured | not measured | not measured |" in lines
    )
    assert (
        "| fastest dense, ms | not measured | 1 (flash) / 1 (flash) | not measured | not measured | not measured |"
        in lines
    )
    assert "| top-p | not measured | – / failed | – | not measured | – |" in lines
    assert "| top-k | – | 3 / 3 | – | – | – |" in lines
    assert "- entmax 1.5: needs about 137 GiB (at 4,096 forward)" in text
    assert "- **failed**: top-p: RuntimeError: wrong (at 4,096 forward + backward)" in text
    assert "- top-k: computed by the reference, for want of a kernel (at 4,096 forward)" in text
    assert "Decoder" not in text


def test_the_tests_are_counted() -> None:
    row = {"tests": {"passed": 3, "failed": 1}, "failed": [{"name": "test_one", "reason": "no"}]}
    text = "\n".join(table.markdown(results(row)))
    assert "Tests on the GPU: 3 passed, 1 failed." in text
    assert "- **failed**: test_one: no" in text


@pytest.mark.parametrize("page", ["# Page\n\ntext\n", "# Page\n\n## On a GPU\nold\n\n## Next\n\nmore\n"])
def test_the_section_takes_the_place_of_the_one_before(page) -> None:
    written = gpu_bench_table.written(page)
    assert written.count(gpu_bench_table.TITLE) == 1
    assert "\nold" not in written
    assert written.endswith("\n## Next\n\nmore\n") == ("Next" in page)
    assert gpu_bench_table.written(written) == written


def test_the_page_has_the_section_as_it_is_made() -> None:
    page = gpu_bench_table.PAGE.read_text(encoding="utf-8")
    assert gpu_bench_table.written(page) == page
