"""The methods of a run, all about equally sparse but for sparse-linear attention, with 5 % of its blocks critical."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from statistics import NormalDist

import torch

from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import crisp
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method, as_method
from crisp_attention.methods.rules import Entmax, NofM, Threshold, TopK, TopP
from crisp_attention.methods.spec import parse

DEFAULT = ("topk", "block_topk", "entmax", "topp", "threshold", "nofm", "sparse_linear")
NORMAL = NormalDist()
QUERIES = 128  # that the achieved sparsity is measured on


def named(word: str, sparsity: float, length: int) -> Method:
    """The method that `word` says: a bare name at this sparsity of `length` keys, or a spec as it is.

    Inputs are normal, so scores are too, with variance one: from that follow the mass of top-p
    and the threshold. Entmax's sparsity follows from them. Raises ValueError for a method that does not exist.
    """
    method = as_method(_AT[word](sparsity, length)) if word in _AT else parse(word)
    if method.is_fitted:
        raise ValueError("it is fitted to a model, which this does not have")
    return method


@cache
def achieved_sparsity(method: Method, shape: Shape) -> float:
    """Share of pairs without weight: 128 queries of one head over all keys, as our reference weighs them."""
    one = Shape(1, 1, shape.length, shape.width)
    query, key, _ = one.inputs()
    values = torch.eye(shape.length).expand(1, 1, -1, -1)  # so that the output is the weights
    weights = crisp(replace(method, branch=None), "reference").attend(query[:, :, -QUERIES:], key, values)
    return float((weights == 0).double().mean())


def _topp(sparsity: float, length: int) -> TopP:
    # of exp(z) under a normal density, the share above t is the density's share above t - 1
    return TopP(1 - NORMAL.cdf(NORMAL.inv_cdf(sparsity) - 1) if sparsity else 1.0)


def _threshold(sparsity: float, length: int) -> Threshold:
    if not sparsity:
        return Threshold(0.0)
    largest = NORMAL.inv_cdf(0.5 ** (1 / length))
    return Threshold(min(1.0, math.exp(NORMAL.inv_cdf(sparsity) - largest)))


def _nofm(sparsity: float, length: int) -> NofM:
    share = Fraction(1 - sparsity).limit_denominator(16)
    return NofM(max(1, share.numerator), share.denominator if share else 16)


_AT: dict[str, Callable[[float, int], TopK | BlockTopK | Entmax | TopP | Threshold | NofM]] = {
    "topk": lambda sparsity, length: TopK(sparsity),
    "block_topk": lambda sparsity, length: BlockTopK(sparsity),
    "entmax": lambda sparsity, length: Entmax(1.5),
    "topp": _topp,
    "threshold": _threshold,
    "nofm": _nofm,
}
