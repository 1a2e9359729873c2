"""The numbers by which diffusion models are compared, against their definitions."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from crisp_attention.diffusion.digits import Classifier, Digits
from crisp_attention.diffusion.scores import frechet_distance, quality


def test_the_frechet_distance_is_that_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(200, 5, generator=generator) @ torch.randn(5, 5, generator=generator) + 1
    other = torch.randn(150, 5, generator=generator)
    first, second = (np.cov(each.double().numpy().T) for each in (one, other))
    means = one.double().mean(0) - other.double().mean(0)
    expected = float(means.square().sum()) + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_features_that_do_not_vary_have_a_distance_too() -> None:
    assert frechet_distance(torch.zeros(9, 4), torch.ones(9, 4)) == pytest.approx(4)


def test_the_classifier_recognises_held_out_digits_and_nothing_else() -> None:
    digits = Digits.read()
    assert (len(digits.train), len(digits.held_out)) == (1297, 500)
    state = torch.get_rng_state()
    classifier = Classifier.trained(digits, 400)
    assert torch.get_rng_state().equal(state)
    good = quality(classifier, digits.held_out, digits.classes, digits)
    assert good.accuracy > 0.93
    assert good.frechet == pytest.approx(0, abs=1e-6)
    noise = torch.rand(digits.held_out.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bad = quality(classifier, noise, digits.classes, digits)
    assert bad.accuracy < 0.3
    assert bad.frechet > 5
