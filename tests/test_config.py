"""`--config FILE`, `--version` and what is said of a word that is nearly right."""

import json

import pytest

from crisp_attention.cli import main as cli

GIVEN = {
    "model": "m",
    "dataset": "d",
    "output": "o",
    "epochs": 2,
    "learning-rate": "3e-5",
    "layers": ["0", "2-3"],
    "ramp": [0, 0.25],
    "schedule": "cubic",
    "training": {"bf16": True, "weight_decay": 0.01},
    "overwrite": True,
    "resume": False,
    "revision": None,
}
YAML = """
model: m
dataset: d
output: o
epochs: 2
learning-rate: 3e-5
layers: ["0", 2-3]
ramp: [0, 0.25]
schedule: cubic
training:
  bf16: true
  weight_decay: 0.01
overwrite: true
resume: false
revision:
"""
WORDS = (
    "finetune --model m --dataset d --output o --epochs 2 --learning-rate 3e-5 --layers 0 2-3 --ramp 0 0.25 "
    "--schedule cubic --training bf16=true --training weight_decay=0.01 --overwrite"
)


@pytest.fixture
def written(tmp_path):
    def write(text, name="run.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_file_says_what_flags_say(written):
    expected = cli.parse(WORDS.split())
    for file in (written(YAML), written(json.dumps(GIVEN), "run.json")):
        assert cli.parse(["finetune", "--config", file]) == expected
        assert cli.parse(["finetune", f"--config={file}"]) == expected


def test_options_after_the_file_win_wherever_it_stands(written):
    file = written(YAML)
    for words in (["--config", file, "--epochs", "1"], ["--epochs", "1", "--config", file]):
        found = cli.parse(["finetune", *words, "--training", "bf16=false"])
        assert (found.epochs, found.learning_rate) == (1, 3e-5)
        assert found.training == ("bf16=true", "weight_decay=0.01", "bf16=false")  # the last one counts


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("sweep", "{model: m, dataset: d, output: o, method: ['topk,random'], seeds: 2, search: true}"),
        ("reproduce", "{output: o, training: ['bf16=true']}"),
        ("profile", "{model: m, dataset: d, sparsity: 0.5}"),
        ("view", "{model: m, text: hello, method: [topk, dense]}"),
        ("demo", "{seeds: 2}"),
        ("bench", "{output: o}"),
    ],
)
def test_every_command_has_it(written, command, text):
    found = cli.parse([command, "--config", written(text)])
    assert type(found) is cli.COMMANDS[command][0]
    assert "seeds" not in text or found.seeds == 2
    assert "[topk, dense]" not in text or found.method == ("topk", "dense")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{epoch: 1}", "crisp finetune has no option epoch; did you mean epochs?"),
        ("{max-lenght: 1}", "has no option max-lenght; did you mean max_length?"),
        ("[epochs]", "holds list; expected options, such as epochs: 3"),
        ("{epochs: ", "cannot read"),
        ("{overwrite: 1}", "overwrite must be true or false, got 1"),
        (
            "{label_column: no}",
            "label_column must not be true or false, got False; quote words such as yes and no",
        ),
    ],
)
def test_a_file_that_cannot_be_used(written, crisp_command, text, message):
    status, _, err = crisp_command("finetune", "--config", written(text))
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith("error: --config: ")
    assert message in line


def test_a_file_that_is_not_there(crisp_command):
    assert "cannot read no.yaml" in crisp_command("finetune", "--config", "no.yaml")[2]
    assert "config expects a YAML or JSON file" in crisp_command("finetune", "--config")[2]


def test_words_that_are_nearly_right(crisp_command):
    status, _, err = crisp_command("fintune", "--model", "m")
    assert (status, err) == (2, "error: there is no command fintune; did you mean finetune?\n")
    run = ["finetune", "--model", "m", "--dataset", "d", "--output", "o"]
    assert "unknown method 'topq'; did you mean topk or topp?" in crisp_command(*run, "--method", "topq")[2]
    assert "--epochs" in crisp_command(*run, "--epoch", "3")[2]


def test_the_version_is_printed(crisp_command):
    import crisp_attention

    assert crisp_command("--version") == (0, f"crisp {crisp_attention.__version__}\n", "")
