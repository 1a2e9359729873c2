"""Pruning as a value: how it is written, read, named and refused."""

import subprocess
import sys

import pytest

from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.runs.treatment import treatment_from_dict

WRITTEN = [
    ("prune:sparsity=0.75", Pruning(sparsity=0.75), "pruned 75 %"),
    (
        "prune:sparsity=0.75:gradients=all",
        Pruning(sparsity=0.75, gradients="all"),
        "pruned 75 %, gradients of all classes",
    ),
    (
        "prune:sparsity=0.75:pattern=1:4:block_size=0:saliency=signed",
        Pruning(sparsity=0.75, pattern="1:4", block_size=0, saliency="signed"),
        "pruned 75 %, signed Taylor, 1:4",
    ),
    (
        "prune:attention=0.5:feed_forward=0.9:pattern=none",
        Pruning(attention=0.5, feed_forward=0.9, pattern="none"),
        "pruned attention 50 % and feed-forward 90 %, blocks of 32",
    ),
    (
        "prune:sparsity=0.6:score_kept=true:ste=sr-ste:skip=a.*|b",
        Pruning(sparsity=0.6, score_kept=True, ste="sr-ste", skip=("a.*", "b")),
        "pruned 60 %, score_kept=true, ste=sr-ste, skip=a.*|b",
    ),
]


@pytest.mark.parametrize(("spec", "treatment", "label"), WRITTEN)
def test_it_is_what_its_spec_says(spec: str, treatment: Pruning, label: str) -> None:
    assert Pruning.parse(spec) == treatment
    assert (Pruning.parse(treatment.spec), treatment.label) == (treatment, label)
    assert treatment_from_dict(treatment.to_dict()) == treatment
    assert ":sparsity=" not in treatment.series


def test_several_sparsities_have_a_label_in_common() -> None:
    given = Pruning(sparsity=0.75, gradients="random", pattern="none", block_size=8)
    assert (
        given.series_label == given.at(0.5).series_label == "pruned, gradients of random classes, blocks of 8"
    )
    by_kind = Pruning(attention=0.5, feed_forward=0.9)
    assert by_kind.series_label == by_kind.label


def test_a_file_is_read_before_anything_has_imported_pruning() -> None:
    program = (
        "from crisp_attention.runs.treatment import treatment_from_dict as read\n"
        "print(read({'kind': 'pruning', 'sparsity': 0.5}).spec)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "prune:sparsity=0.5\n"


def test_a_sparsity_is_for_those_that_have_none_of_their_own() -> None:
    assert Pruning.parse("prune", sparsity=0.7) == Pruning(sparsity=0.7)
    assert Pruning.parse("prune:sparsity=0.5", sparsity=0.7).sparsity == 0.5
    assert Pruning.parse("prune:attention=0.5", sparsity=0.7).target == {"attention": 0.5}
    with pytest.raises(ValueError, match="a sparsity for each kind of layer"):
        Pruning(attention=0.5).at(0.7)


def test_the_control_takes_gradients_of_other_classes() -> None:
    control = Pruning(sparsity=0.7).control()
    assert control is not None
    assert control.is_control
    assert control.sparsity == 0.7
    assert control.control() is None
    assert Pruning(sparsity=0.7, saliency="magnitude").control() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prun", "there is no treatment 'prun'; expected 'prune'"),
        ("prune:colour=red:sparsity=0.5", "prune has no option 'colour'"),
        ("prune", "expected sparsity, or a share for attention"),
        ("prune:sparsity=1", r"sparsity must be in \[0, 1\), got 1"),
        ("prune:sparsity=half", "sparsity expects a number, got 'half'"),
        ("prune:sparsity=0.5:steps=0", "steps must be a whole number of at least 1, got 0"),
        ("prune:sparsity=0.5:block_size=12", "block_size must be one of 8, 16, 32, 64"),
        ("prune:sparsity=0.5:pattern=4:2", "pattern must be N:M"),
        ("prune:sparsity=0.5:gradients=some", "gradients must be one of classes, all, random"),
        ("prune:sparsity=0.5:score_kept=yes", "score_kept must be one of true, false"),
        (
            "prune:sparsity=0.5:gradients=random:saliency=magnitude",
            "gradients random has no meaning with saliency 'magnitude', which looks at no example",
        ),
        (
            "prune:sparsity=0.5:gradients=all:saliency=magnitude",
            "gradients all has no meaning with saliency 'magnitude', which looks at no example",
        ),
        (
            "prune:sparsity=0.5:examples=3:saliency=magnitude",
            "examples 3 has no meaning with saliency 'magnitude', which looks at no example",
        ),
        (
            "prune:sparsity=0.5:block_size=0:normalised=mean",
            "normalised mean has no meaning with block_size 0, as no block is scored",
        ),
        (
            "prune:sparsity=0.5:block_size=0:score_kept=true",
            "score_kept true has no meaning with block_size 0",
        ),
        (
            "prune:sparsity=0.5:pattern=none:score_kept=true",
            "score_kept true has no meaning with pattern 'none', which keeps whole blocks",
        ),
        ("prune:sparsity=0.5:steps=1:shape=cubic", "shape cubic has no meaning with a single share of zeros"),
        ("prune:sparsity=0.5:block_size=0:shape=cubic", "shape cubic has no meaning with a single share"),
    ],
)
def test_what_it_cannot_be_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruning.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": (2, 4)}, r"pattern must be text such as '2:4', or 'none', got \(2, 4\)"),
        ({"pattern": 24}, "pattern must be text such as '2:4', or 'none', got 24"),
        ({"block_size": 8.0}, "block_size must be a whole number of at least 0, got 8.0"),
        ({"skip": "*.layer.0.*"}, r"skip must be a sequence of patterns .*, got '\*\.layer\.0\.\*'"),
        ({"skip": [3]}, r"skip must be a sequence of patterns .*, got \[3\]"),
        ({"score_kept": "no"}, "score_kept must be True or False, got 'no'"),
    ],
)
def test_values_of_another_kind_are_refused(options, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Pruning(sparsity=0.5, **options)
