"""What `crisp view` can be asked for. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from crisp_attention.flags import Text


@dataclass(frozen=True)
class ViewOptions:
    """Show the attention of a text as one HTML file: which pairs each method keeps, and their weights.

    The model runs once per method, made sparse with it. The page needs no network.

    For example:
      crisp view --model builtin:minilm --text "The cat sat on the mat because it was tired."
    """

    model: str
    """The folder of a run of `crisp finetune` or of a model, a hub id or `builtin:minilm`. Text models only."""

    text: str
    """The text to look at; longer ones are cut to 128 tokens."""

    text_pair: Text = None
    """The second text, for models that read two."""

    layer: int = 0
    """The attention layer at which the page opens, counted from 0."""

    head: int = 0
    """The head at which the page opens, counted from 0."""

    method: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="SPEC", help_behavior_hint="")]] = ()
    """A method, such as topk:sparsity=0.8 or window:width=9+topk:sparsity=0.5; repeat it for several methods.
    Default: one or two of every kind, from top-k to random keys. A sparse model's own method is always shown first."""

    output: Path = Path("view.html")
    """The file to write; an existing one is replaced."""
