"""`crisp demo diffusion`, as a user types it."""

import json

import pytest

from crisp_attention.diffusion.findings import findings
from crisp_attention.diffusion.options import DiffusionOptions
from crisp_attention.diffusion.page import write_report
from crisp_attention.diffusion.study import run_diffusion
from crisp_attention.errors import OptionError
from tests.diffusion import made

QUICK = ("demo", "diffusion", "--quick")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0"], "--seeds must be a whole number of at least 1, got 0"),
        (["--sparsity", "0.9,1"], "--sparsity: expected numbers in (0, 1), got 0.9, 1"),
        (
            ["--sparsity", "0.99", "--block-size", "0"],
            "--block-size must be a whole number of at least 1, got 0",
        ),
        (["--loss", "mse"], "--loss must be one of diffusion, distillation, got 'mse'"),
        (["--train", "all", "heads"], "--train must be one of all, projection, got 'heads'"),
        (["--samples", "5"], "--samples must be a whole number of at least 20, got 5"),
        (["--sparsity", "0.05"], "--sparsity: "),
        (
            ["--block-size", "64"],
            "--block-size 64: SLA 90 % keeps all blocks of 64 tokens; expected smaller blocks",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(crisp_command, flags, message, tmp_path) -> None:
    code, _, errors = crisp_command(*QUICK, "--output", str(tmp_path / "new"), *flags)
    assert code == 2
    assert f"error: {message}" in errors
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_things_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(
        OptionError, match=r"holds files that do not belong to such a comparison \(thesis\.tex\)"
    ):
        run_diffusion(DiffusionOptions(output=tmp_path))


def test_the_page_shows_every_variant(tmp_path) -> None:
    finals = {"dense": [0.1] * 3, "SLA 90 %": [0.11, 0.12, 0.13], "linear only": [0.2, 0.21, 0.2]}
    runs = made.runs(finals)
    write_report(runs, tmp_path, DiffusionOptions(output=tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert all(f'<th scope="row">{label}</th>' in page for label in finals)
    assert all(line.split(":")[0] in page for line in findings(runs))
    assert "95 % t-intervals over seeds" in page
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 10
    assert {each.name for each in (tmp_path / "figures").iterdir()} == {
        "digits.svg",
        "steps.svg",
        "losses.svg",
    }


def test_a_quick_run_says_that_it_is_one(tmp_path) -> None:
    runs = made.runs({"dense": [0.1] * 3, "SLA 90 %": [0.11, 0.12, 0.13]})
    write_report(runs, tmp_path, DiffusionOptions(output=tmp_path, quick=True))
    assert "A quick run, which shows that everything works" in (tmp_path / "report.html").read_text()
    assert not any("quick" in each for each in findings(runs))


@pytest.mark.slow
def test_a_comparison_is_continued_where_it_stopped(crisp_command, tmp_path) -> None:
    output = tmp_path / "new"
    code, said, errors = crisp_command(*QUICK, "--output", str(output))
    assert code == 0, errors
    assert "linear only, seed 0 (5 of 5 runs): step 4 of 4" in errors
    assert "One seed: how much models trained with other seeds differ is not known" in said
    files = sorted((output / "runs").iterdir())
    assert len(files) == 5
    whole = {file.name: json.loads(file.read_text()) for file in files}
    assert whole["sla-90-seed-0.json"]["softmax_share"] == 0.125
    assert whole["linear-only-seed-0.json"]["linear_share"] == 1.0
    files[1].unlink()
    code, _, errors = crisp_command(*QUICK, "--output", str(output))
    assert code == 0, errors
    assert "(1 of 1 runs)" in errors
    again = json.loads(files[1].read_text())
    assert again | {"seconds": 0} == whole[files[1].name] | {"seconds": 0}
    code, _, errors = crisp_command("demo", "diffusion", "--output", str(output))
    assert code == 2
    assert f"--steps is 250, but {output} was made with 4; choose another folder" in errors.replace("\n", " ")
    files[0].write_text("{")
    code, _, errors = crisp_command(*QUICK, "--output", str(output))
    assert code == 2
    assert "is damaged" in errors
