"""Blocks of which each group of inputs has few weights, such as 2:4, held as these weights and where they are.

A block of B inputs and B outputs, with n of each `of` inputs for an output, is n · B / of lines of B weights. Line k
holds for every output weight k % n of group k // n. Where it is in its group is a number of 2 to 4 bits, as many of
which as fit are in an int32 for every output.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

GROUPS = (4, 8, 16)
MOST = 4  # weights of a group: each is compared with every place in it
GAIN = 0.75  # of the bytes of whole blocks: what saves less stays whole


def packed(blocks: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """Blocks (R, K, inputs, outputs) as weights (R, K, lines, outputs), their places (R, K, words, outputs) and `of`.

    The groups are those that take the fewest bytes; None where none saves a quarter.
    """
    size = blocks.shape[3]
    best, least = None, GAIN * size
    for of in GROUPS:
        if size % of or not blocks.numel():
            continue
        kept = max(int((blocks != 0).unflatten(2, (-1, of)).sum(dim=3).max()), 1)
        lines = size // of * kept
        if kept <= MOST and (cost := lines + words(lines, of)) < least:
            best, least = (kept, of), cost
    if best is None:
        return None
    kept, of = best
    groups = blocks.unflatten(2, (-1, of))
    place = (groups != 0).int().argsort(dim=3, descending=True, stable=True)[:, :, :, :kept]
    weights, lines = groups.gather(3, place).flatten(2, 3), place.flatten(2, 3)
    fit = 32 // bits(of)
    count = words(lines.shape[2], of)
    lines = pad(lines, (0, 0, 0, count * fit - lines.shape[2])).unflatten(2, (count, fit))
    shifts = torch.arange(fit, device=blocks.device)[:, None] * bits(of)
    whole = (lines << shifts).sum(dim=3)
    signed = torch.where(whole >= 2**31, whole - 2**32, whole)
    return weights.contiguous(), signed.int().contiguous(), of


def unpacked(weights: Tensor, places: Tensor, of: int) -> Tensor:
    """What was packed, with gradients for the weights."""
    rows, columns, lines, size = weights.shape
    fit, mask = 32 // bits(of), 2 ** bits(of) - 1
    shifts = torch.arange(fit, device=places.device, dtype=torch.int32)[:, None] * bits(of)
    place = (places[:, :, :, None] >> shifts & mask).flatten(2, 3)[:, :, :lines]
    kept = lines * of // size
    grouped = (each.unflatten(2, (-1, kept)) for each in (place.long(), weights))
    return weights.new_zeros(rows, columns, size // of, of, size).scatter(3, *grouped).flatten(2, 3)


def bits(of: int) -> int:
    """Of a place in a group of so many."""
    return (of - 1).bit_length()


def words(lines: int, of: int) -> int:
    """The int32 for the places of so many weights of an output."""
    return -(-lines // (32 // bits(of)))
