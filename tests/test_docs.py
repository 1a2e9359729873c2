"""What README and docs show is true: commands parse, Python runs, tables come out of what is committed."""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from benchmarks import (
    diffusion_tables,
    pruning_bench_table,
    pruning_tables,
    sparsefinder_tables,
    study_tables,
)
from crisp_attention.bench.gpu import command as gpu
from crisp_attention.cli import main as cli
from crisp_attention.studies.folder import StudyFolder

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:crisp|python|torchrun|make) [^`\n]+)`")
BLOCKS = [(page.name, kind, text) for page in PAGES for kind, text in FENCE.findall(page.read_text())]
PROGRAMS = ("crisp", "python", "torchrun", "make")


def commands() -> list[str]:
    """Every command in a code block or between single backquotes, on one line, without its comment."""
    found = []
    for _, kind, text in BLOCKS:
        if kind == "":
            found += re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    for page in PAGES:
        found += INLINE.findall(FENCE.sub("", page.read_text()))
    known = (line.split("  #")[0].strip() for line in found)
    return sorted({line for line in known if line.split(" ")[0] in PROGRAMS})


@pytest.mark.parametrize("command", commands())
def test_the_command_exists(command):
    program, *words = shlex.split(command)
    if "crisp_attention" in words:  # torchrun … -m crisp_attention …
        program, words = "crisp", words[words.index("crisp_attention") + 1 :]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
    elif words[:2] == ["-m", "crisp_attention.bench"]:
        assert gpu.parser().parse_args(words[2:])
    elif program == "python":
        script = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
        assert (ROOT / script).is_file()
        flags = {word for word in words if word.startswith("--")}
        text = (ROOT / script).read_text()
        assert all(flag in text or flag[2:].replace("-", "_") in text for flag in flags)
    elif program == "crisp" and len(words) > 1 and "…" not in words and "--help" not in words:
        cli.parse(words)
    elif program == "crisp":  # only named, or the page leaves the rest of the line to the reader
        assert {word for word in words if word.startswith("--")} <= flags_of(words[0]) | {"--help"}


def flags_of(subcommand: str) -> set[str]:
    options, *_ = cli.COMMANDS[subcommand]
    return {"--config", *(f"--{field.name.replace('_', '-')}" for field in fields(options))}


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What the Python of a page finds defined: a small model and what belongs to it."""
    ids = torch.randint(0, 32, (2, 8))
    q, k, v = (torch.randn(2, 2, 8, 4) for _ in range(3))
    return {
        "batch": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "dataloader": [{"input_ids": ids}],
        "tokenizer": SimpleNamespace(save_pretrained=lambda folder: None),
        "q": q,
        "k": k,
        "v": v,
    }


def small_model(*given, **named):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    }
    return BertForSequenceClassification(BertConfig(**sizes)).eval()


def trains(block: str) -> bool:
    return "crisp.finetune(" in block


@pytest.mark.slow
@pytest.mark.parametrize("block", [text for _, kind, text in BLOCKS if kind == "python" and trains(text)])
def test_python_that_trains_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    less = block
    for word, shorter in (("epochs=10", "epochs=1"), ("seeds=3", "seeds=1")):
        assert word in less
        less = less.replace(word, shorter, 1)
    exec(compile(less, "a page", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, names, monkeypatch, tmp_path):
    found = [text for name, kind, text in BLOCKS if name == page.name and kind == "python"]
    blocks = [block for block in found if not trains(block)]
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification, "from_pretrained", small_model
    )  # a hub id
    monkeypatch.chdir(tmp_path)
    defined = dict(names)
    for block in blocks:
        exec(compile(block, page.name, "exec"), defined)


def test_the_readme_s_python_says_what_it_uses():
    assert any(kind == "python" for name, kind, _ in BLOCKS if name == "README.md")


@pytest.mark.slow
@pytest.mark.parametrize("name", study_tables.NAMES)
def test_the_table_of_a_study_comes_out_of_its_committed_runs(name):
    assert StudyFolder.read(study_tables.STUDIES / name).missing() == []
    text = (ROOT / "docs" / "results.md").read_text()
    missing = [line for line in (*study_tables.table(name), *study_tables.control(name)) if line not in text]
    assert missing == []


@pytest.mark.parametrize("name", sparsefinder_tables.committed())
def test_the_tables_of_sparsefinder_come_out_of_what_is_committed(name):
    text = (ROOT / "docs" / "results.md").read_text()
    assert [line for line in sparsefinder_tables.table(name) if line not in text] == []


def test_the_tables_of_pruned_layers_come_out_of_what_is_committed():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert [line for line in pruning_bench_table.tables() if line not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", pruning_tables.committed())
def test_the_tables_of_pruning_come_out_of_what_is_committed(name):
    text = (ROOT / "docs" / "results.md").read_text()
    assert [line for line in pruning_tables.table(name) if line not in text] == []


def test_the_tables_of_the_diffusion_study_come_out_of_what_is_committed():
    text = (ROOT / "docs" / "results.md").read_text()
    assert [line for line in (*diffusion_tables.table(), *diffusion_tables.steps()) if line not in text] == []
