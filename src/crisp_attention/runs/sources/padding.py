"""How texts are padded, so that what a model says of one never depends on those beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from crisp_attention.errors import OptionError
from crisp_attention.runs.sources.agreement import check_known

EXTRA = 3  # tokens of padding beyond the longest text of a batch
TOLERANCE = 1e-4  # of the largest logit, in float32
Example = dict[str, list[int]]


def choose_pad_token(
    path: str | Path, model: PreTrainedModel, tokenizer: Any, *, skips_padding: bool
) -> list[str]:
    """Give the tokenizer a padding token and the model its number; returns what is said to the user.

    The tokenizer's own is taken, else the model's, else the end token. A model that `skips_padding` when it counts
    positions keeps the number that it has: with another one its positions would be others. Raises OptionError
    if there is no token to pad with, or the model has no embedding for it.
    """
    config, notes = model.config, []
    of_model = getattr(config.get_text_config(), "pad_token_id", None)
    if tokenizer.pad_token_id is None:
        if isinstance(of_model, int) and 0 <= of_model < len(tokenizer):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(of_model)
            owner = "the model's"
        elif tokenizer.eos_token_id is not None:
            tokenizer.pad_token = tokenizer.eos_token
            owner = "its end token"
        else:
            raise OptionError(f"the tokenizer of {path} has neither a padding nor an end token to pad with")
        notes.append(f"padding: the tokenizer has no token for it; {owner}, {tokenizer.pad_token}, is used")
    elif of_model not in (None, tokenizer.pad_token_id):
        stays = (
            "the model, by whose number for it positions are counted, has"
            if skips_padding
            else "the model had"
        )
        notes.append(
            f"padding: the tokenizer's {tokenizer.pad_token} ({tokenizer.pad_token_id}) is used; {stays} {of_model}"
        )
    check_known([tokenizer.pad_token_id], model, tokenizer)
    if not skips_padding:
        for part in (config, config.get_text_config()):  # a classifier reads it in the one or in the other
            part.pad_token_id = tokenizer.pad_token_id
    return notes


def choose_padding(
    tokenizer: Any,
    examples: Sequence[Example],
    logits: Callable[[Sequence[Example], int | None], Tensor],
    limit: int,
) -> tuple[int | None, list[str]]:
    """Set the side on which the tokenizer pads; returns the length to pad to, None for a batch's longest text.

    `logits` are the model's for examples padded to a length. The tokenizer's own side is kept if examples
    give the same logits alone and together, else the other one is taken if they do there. A model whose results
    depend on padding on either side gets all texts padded to one length, `limit`.
    """
    given = tokenizer.padding_side
    width = min(max(len(each["input_ids"]) for each in examples) + EXTRA, limit)
    for side in (given, "left" if given == "right" else "right"):
        tokenizer.padding_side = side
        alone = torch.cat([logits([each], None) for each in examples])
        bound = TOLERANCE * float(alone.nan_to_num().abs().max())
        if torch.allclose(logits(examples, width), alone, rtol=0, atol=bound, equal_nan=True):
            note = f"padding: on the {side}, as on the {given}, the tokenizer's side, it changes this model's results"
            return None, [note] * (side != given)
    tokenizer.padding_side = given
    return limit, [
        f"padding: every text to {limit} tokens, because this model's results depend on how far a text is padded"
    ]
