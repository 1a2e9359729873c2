"""The contract table: one row puts a method through every contract test."""

from dataclasses import dataclass

from crisp_attention import Dense, Method, RandomK, TopK, Window
from crisp_attention.methods import AnyMethod


@dataclass(frozen=True)
class Row:
    """A method, and the same method with nothing dropped, which must be the model's own attention."""

    method: AnyMethod
    dense: AnyMethod
    cross: bool = True  # works without positions, so in cross-attention too


ROWS = {
    "dense": Row(Dense(), dense=Dense()),
    "topk": Row(TopK(0.6), dense=TopK(0.0)),
    "random": Row(RandomK(0.6), dense=RandomK(0.0), cross=False),
    "window": Row(Window(3, global_tokens=1), dense=Window(999), cross=False),
    "window+topk": Row(Method(Window(5), TopK(0.5)), dense=Method(Window(999), TopK(0.0)), cross=False),
}
