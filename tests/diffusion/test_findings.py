"""What a comparison of diffusion transformers says of its numbers."""

import pytest

from crisp_attention.diffusion.findings import findings, lines, table
from tests.diffusion import made

SEEDS = {
    "dense": [0.100, 0.110, 0.120],
    "SLA 90 %": [0.102, 0.1122, 0.1224],
    "sparse only 90 %": [0.1122, 0.1235, 0.1346],
    "plain sum 90 %": [0.1021, 0.1120, 0.1225],
    "linear only": [0.09, 0.101, 0.110],
}


def test_losses_are_compared_seed_by_seed_and_only_told_apart_where_the_interval_says_so() -> None:
    said = [line.replace("\N{NO-BREAK SPACE}", " ") for line in findings(made.runs(SEEDS))]
    assert said[0].startswith(
        "Dense attention has a denoising loss of 0.1100 on held-out images after 50 steps"
    )
    assert said[0].endswith("Relative to it: SLA 90 % +2.0 % [+2.0 to +2.0]. The table has the others.")
    assert said[1].startswith("sparse only 90 %: the loss is 10.0 % [9.9 to 10.1] above that of SLA 90 %")
    assert said[2].startswith("plain sum 90 %: the loss is not told apart from that of SLA 90 % (+0.0 % [-")
    assert "linear only: the loss is 10.6 % [" in said[3]
    assert said[3].endswith("below that of SLA 90 %.")
    assert len(said) == 4


@pytest.mark.parametrize(("seeds", "few"), [(1, "One seed"), (2, "Two seeds")])
def test_few_seeds_show_nothing_and_it_says_so(seeds: int, few: str) -> None:
    said = findings(made.runs({label: losses[:seeds] for label, losses in SEEDS.items()}))
    assert said[-1].startswith(f"{few}: how much models trained with other seeds differ is not known")
    assert "[" not in "".join(said)


def test_what_has_no_sparsity_is_compared_with_the_sparsest_sla() -> None:
    finals = {
        "dense": [1.0],
        "SLA 80 %": [1.1],
        "SLA 95 %": [1.5],
        "sparse only 80 %": [2.2],
        "linear only": [3.0],
    }
    found = {line.label: line for line in lines(made.runs(finals, (0.8, 0.95)))}
    assert found["linear only"].from_sla == [pytest.approx(1.0)]
    assert found["linear only"].sla == "SLA 95 %"
    assert found["sparse only 80 %"].from_sla == [pytest.approx(1.0)]
    assert found["SLA 80 %"].from_sla is None
    assert found["SLA 95 %"].from_dense == [pytest.approx(0.5)]


def test_another_loss_or_training_has_a_line_and_a_comparison_of_its_own() -> None:
    finals = {
        "dense": [1.0],
        "SLA 90 %": [1.1],
        "SLA 90 %, projection alone": [1.32],
        "SLA 90 %, distillation": [1.05],
        "sparse only 90 %, distillation": [1.26],
    }
    found = {line.label: line for line in lines(made.runs(finals))}
    assert found["SLA 90 %, projection alone"].from_sla == [pytest.approx(0.2)]
    assert found["sparse only 90 %, distillation"].from_sla == [pytest.approx(0.2)]
    assert found["SLA 90 %, distillation"].from_sla is None


def test_the_table_has_a_row_for_each_run_and_the_loss_at_every_step() -> None:
    found = table(made.runs(SEEDS))
    assert len(found) == 15
    assert found["loss_at_50"].tolist() == [loss for losses in SEEDS.values() for loss in losses]
    assert found["loss_at_0"][0] == 0.2
