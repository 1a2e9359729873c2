"""What the pictures of a comparison hold."""

from crisp_attention.diffusion.figures import draw_losses, draw_steps, looks_of
from tests.diffusion import made

FINALS = {
    "dense": [0.10],
    "SLA 80 %": [0.11],
    "SLA 95 %": [0.13],
    "sparse only 95 %": [0.14],
    "linear only": [0.12],
    "SLA 95 %, distillation": [0.15],
}
RUNS = made.runs(FINALS, (0.8, 0.95))


def test_every_sparsity_has_a_panel_and_what_has_none_is_in_all_of_them() -> None:
    figure = draw_steps(RUNS, looks_of(RUNS))
    ends = {axes.get_title(): sorted(line.get_ydata()[-1] for line in axes.lines) for axes in figure.axes}
    assert ends == {"sparsity 80 %": [0.10, 0.11, 0.12], "sparsity 95 %": [0.10, 0.12, 0.13, 0.14, 0.15]}


def test_an_attention_keeps_its_colour_and_dashes_tell_its_loss() -> None:
    figure = draw_steps(RUNS, looks_of(RUNS))
    sla = [line for axes in figure.axes for line in axes.lines if line.get_ydata()[-1] in (0.11, 0.13, 0.15)]
    assert len({line.get_color() for line in sla}) == 1
    assert sorted(line.get_linestyle() for line in sla) == ["-", "-", "--"]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["dense", "SLA", "sparse only", "linear only", "distillation"]


def test_losses_are_relative_to_dense_attention_a_row_for_each_other_variant() -> None:
    axes = draw_losses(RUNS, looks_of(RUNS)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(FINALS)[1:]
    assert round(axes.lines[0].get_xdata()[0], 6) == 10
