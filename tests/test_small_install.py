"""What a plain `pip install crisp-attention` can do: make, run, measure, explain, save and load a model."""

import subprocess
import sys

import pytest

EXTRAS = [
    "accelerate",
    "datasets",
    "matplotlib",
    "optuna",
    "pandas",
    "peft",
    "rich",
    "scipy",
    "sklearn",
    "tyro",
]
PROGRAM = f"""
import sys
for library in {EXTRAS}:
    sys.modules[library] = None  # as if it were not installed
import torch
from transformers import BertConfig, BertModel
import crisp_attention as crisp

folder = sys.argv[1]
batch = dict(input_ids=torch.arange(1, 17)[None])
model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                             intermediate_size=16)).eval()
crisp.sparsify(model, crisp.TopK(sparsity=0.75))
with crisp.measuring(model) as measured, torch.no_grad():
    expected = model(**batch).last_hidden_state  # by the reference, which says what it kept
assert measured.summary()["sparsity"] == 0.75
profile = crisp.profile(model, [batch])
for each, long in ((measured, False), (profile, False), (crisp.explain(model), True)):
    text, html = repr(each), each._repr_html_()
    assert "layer" in text and len(text) < 1000 and "tensor(" not in text, text
    assert html.startswith(("<table>", "<pre>")), html
for table in (measured.table, profile.table, profile.curves):
    try:
        table()
    except ModuleNotFoundError as error:
        assert str(error) == 'this needs pandas, which is not installed: pip install "crisp-attention[runs]"', error
    else:
        raise AssertionError
model.save_pretrained(folder)
with torch.no_grad():
    torch.testing.assert_close(crisp.load(folder)(**batch).last_hidden_state, expected)
states = torch.randn(3, 1, 2, 16, 8)
assert crisp.attention(*states, crisp.TopK(0.5)).shape == (1, 2, 16, 8)
"""


@pytest.mark.slow
def test_without_any_extra_models_are_made_measured_saved_and_loaded(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
