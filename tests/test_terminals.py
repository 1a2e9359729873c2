"""What commands print arrives on every terminal: few characters, few columns, a reader that leaves."""

import io
import os
import re
import subprocess
import sys

import pytest

from crisp_attention import Profile
from crisp_attention.cli import main as cli
from crisp_attention.cli import methods
from crisp_attention.studies.report import writing
from tests.studies.studies import make_study

pytestmark = pytest.mark.usefixtures("own_cache")
ENCODINGS = ("ascii", "cp1252", "utf-8")
NUMBER = re.compile(r"[-+]?\d+\.\d+")


@pytest.fixture
def on_terminal(monkeypatch):
    """Runs the command in this process: exit status, and the bytes of its standard output and error as text."""

    def run(encoding, columns, *words):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        with monkeypatch.context() as patch:
            for name, value in (("argv", ["crisp", *map(str, words)]), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, value)
            patch.setenv("COLUMNS", str(columns))
            patch.setenv("NO_COLOR", "1")
            try:
                cli.main()
                status = 0
            except SystemExit as end:
                status = end.code
        err.flush()
        return status, out.buffer.getvalue().decode(encoding), err.buffer.getvalue().decode(encoding)

    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    accuracies = {"dense": 0.85, "topk:sparsity=0.8": 0.87, "random:sparsity=0.8": 0.70}
    return make_study(tmp_path_factory.mktemp("study") / "étude", accuracies, seeds=3).path


# --- characters


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("columns", [40, 200])
def test_the_methods_are_listed_on_every_terminal(on_terminal, encoding, columns):
    status, out, err = on_terminal(encoding, columns, "methods")
    assert (status, err) == (0, "")
    for words in ("block_topk", "sparsity=0.8", "dilation=1"):
        assert words in out
    assert ("α" if encoding == "utf-8" else "alpha-") in out
    assert "…" not in out  # nothing is cut off


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_is_shown_on_every_terminal(on_terminal, command):
    status, out, err = on_terminal("ascii", 60, *command.split(), "--help")
    assert (status, err) == (0, "")
    assert f"usage: crisp {command}" in out


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_wrong_word_is_shown_on_every_terminal(on_terminal, encoding):
    status, out, err = on_terminal(encoding, 60, "finetune", "--séquence", "−1")
    assert (status, out) == (2, "")
    assert "unrecognized" in err.lower()


@pytest.mark.parametrize(("encoding", "name"), [("ascii", "nop?"), ("cp1252", "nopé"), ("utf-8", "nopé")])
def test_what_cannot_be_encoded_is_replaced(on_terminal, encoding, name):
    flags = ("--model", "m", "--dataset", "d", "--output", "o", "--method", "nopé")
    status, _, err = on_terminal(encoding, 60, "finetune", *flags)
    assert status == 2
    assert err.startswith(f"error: --method {name}: unknown method '{name}'; the methods are dense, topk,")


def test_numbers_keep_their_signs_and_digits_on_a_narrow_ascii_terminal(
    on_terminal, study, tmp_path, monkeypatch
):
    for pictures in ("main_pictures", "curve_pictures", "head_pictures", "layer_pictures"):
        monkeypatch.setattr(writing, pictures, lambda analysis: [])
    shown = {}
    for encoding, columns in (("utf-8", 80), ("ascii", 40)):
        output = tmp_path / encoding
        status, out, err = on_terminal(encoding, columns, "report", study, "--output", output)
        assert status == 0
        assert err == "intervals over 3 seeds are wide: use 5 or more\n"
        assert (output / "report.html").read_text(encoding="utf-8").count("±") > 0
        shown[encoding] = NUMBER.findall(out.replace("−", "-").replace("±", "+/-").split("the report is")[0])
    assert shown["ascii"] == shown["utf-8"]
    assert sum(number.startswith("-") for number in shown["ascii"]) > 1


@pytest.mark.slow
def test_a_run_a_profile_and_a_view_end_on_a_narrow_ascii_terminal(
    on_terminal, bert, reviews, tmp_path, monkeypatch
):
    monkeypatch.setattr(Profile, "plot", lambda profile, path, budgets: path.touch())
    run, profile, view = tmp_path / "läuft", tmp_path / "profil", tmp_path / "вид.html"
    words = ("finetune", "--model", bert, "--dataset", reviews, "--output", run, "--epochs", "1")
    status, out, err = on_terminal("ascii", 40, *words, "--schedule", "cubic", "--training", "use_cpu=true")
    assert status == 0, err
    assert "everything is in" in out
    assert "l?uft" in out
    assert re.search(r"\| validation \| +16 \| +\d+\.\d% \|( +-?\d\.\d{3} \|){2} \d\.\d{4} \|", out)
    status, out, err = on_terminal(
        "ascii", 40, "profile", "--model", bert, "--dataset", reviews, "--output", profile
    )
    assert status == 0, err
    assert len(re.findall(r"^\| [012] +\|.*%", out, flags=re.MULTILINE)) == 3
    status, out, err = on_terminal(
        "ascii", 40, "view", "--model", bert, "--text", "the film", "--output", view
    )
    assert status == 0, err
    assert "???.html: 4 tokens, 3 layers" in out
    assert "the film – attention of" in view.read_text(encoding="utf-8")


# --- readers that leave, disks that are full


@pytest.mark.parametrize("words", [("methods",), ("--help",), ("finetune", "--help")])
def test_a_reader_that_leaves_ends_the_command_without_a_word(monkeypatch, capfd, words):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["crisp", *words])
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("methods",), ("--help",)])
def test_output_that_cannot_be_written_is_an_error_in_one_line(monkeypatch, capfd, words):
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["crisp", *words])
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 1
    assert capfd.readouterr() == (
        "",
        "error: standard output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "--model", "m", "--dataset", "d", "--output"),
        ("sweep", "--model", "m", "--dataset", "d", "--output"),
        ("report", "study", "--output"),
        ("profile", "--model", "m", "--dataset", "d", "--output"),
        ("bench", "--output"),
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_the_system_does_not_take_is_an_error_in_one_line(on_terminal, words):
    status, out, err = on_terminal("utf-8", 80, *words, "n" * 300)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: .*n{300}.*: File name too long\n", err)


def test_a_folder_that_cannot_be_written_is_named_before_any_work(on_terminal, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # else nothing is closed to root
    for words in (("profile", "--model", "m", "--dataset", "d"), ("bench", "--quick")):
        status, out, err = on_terminal("utf-8", 80, *words, "--output", tmp_path / "new")
        assert (status, out) == (2, "")
        assert err == (f"error: --output {tmp_path}/new: {tmp_path} is not writable; choose another folder\n")


def test_an_error_that_is_not_of_the_terminal_is_not_hidden(monkeypatch, capsys):
    def broken(options, console):
        raise BrokenPipeError("of something else")

    monkeypatch.setattr(sys, "argv", ["crisp", "methods"])
    monkeypatch.setattr(methods, "run_methods", broken)
    with pytest.raises(BrokenPipeError, match="of something else"):
        cli.main()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_head_and_a_locale_without_characters():
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = f"{sys.executable} -m crisp_attention methods | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=True)
    assert re.fullmatch(r"\+-+\+\n", done.stdout)
    assert done.stderr == ""
