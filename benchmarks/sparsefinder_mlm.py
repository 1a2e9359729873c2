"""Sparsefinder on a masked language model: the study of docs/results.md on running text.

    python benchmarks/sparsefinder_mlm.py --text ../shared/data/wikitext-2 --output runs/sparsefinder-mlm

MiniLM gets a masked-language-model head and entmax-1.5, is trained on texts of 256 tokens laid end to end, and then
studied as by `crisp sparsefinder study`, its loss on validation texts in place of accuracy. The trained model stays
in OUTPUT-model, so that a second start goes on from there.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForMaskedLM, AutoTokenizer, get_linear_schedule_with_warmup

import crisp_attention as crisp
from crisp_attention.models.borrowing import borrowed
from crisp_attention.runs.sources import minilm_folder
from crisp_attention.sparsefinder.findings import findings
from crisp_attention.sparsefinder.page import check_study, write_study
from crisp_attention.sparsefinder.quality import Quality
from crisp_attention.sparsefinder.settings import settings
from crisp_attention.sparsefinder.study import study

MASKED, WARM_UP = 0.15, 0.1
IGNORED = -100
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """Train with entmax, then study how well its pairs are predicted."""

    text: Path
    """A folder with train.txt and validation.txt."""
    output: Path
    """Folder for the study."""
    steps: int = 250
    """Of training."""
    batch_size: int = 8
    """Texts in a batch."""
    length: int = 256
    """Tokens in a text."""
    learning_rate: float = 2e-4
    """Of AdamW, warmed up over a tenth of the steps, then falling to 0."""
    fitted: int = 64
    """Texts to fit to, of those that it was trained on."""
    scored: int = 16
    """Texts to score on."""
    evaluated: int = 64
    """Texts to evaluate the model on."""
    seeds: int = 3
    """Of fitting."""
    rank: int = 4
    """Of the projections."""
    quick: bool = False
    """Few settings."""


def texts(file: Path, tokenizer, length: int, count: int) -> Tensor:
    """At most `count` texts (n, L) of the file, each between the tokens that begin and end one."""
    words = file.read_text(encoding="utf-8")[: 12 * length * count]
    ids = torch.tensor(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])
    inner = length - 2
    ids = ids[: len(ids) // inner * inner].view(-1, inner)[:count]
    first, last = (
        ids.new_full((len(ids), 1), each) for each in (tokenizer.cls_token_id, tokenizer.sep_token_id)
    )
    return torch.cat([first, ids, last], dim=1)


def masked(ids: Tensor, tokenizer, random: torch.Generator) -> Batch:
    """A batch of which every seventh token or so is hidden, 8 of 10 by the mask, one by another token."""
    draw, what = (torch.rand(ids.shape, generator=random) for _ in range(2))
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
    hidden = (draw < MASKED) & ~special
    other = torch.randint(len(tokenizer), ids.shape, generator=random)
    shown = torch.where(hidden & (what < 0.8), tokenizer.mask_token_id, ids)
    shown = torch.where(hidden & (what >= 0.9), other, shown)
    return {"input_ids": shown, "labels": ids.masked_fill(~hidden, IGNORED)}


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of the hidden tokens; the head computes nothing for the others."""
    hidden = batch["labels"] != IGNORED
    states = model.bert(input_ids=batch["input_ids"]).last_hidden_state[hidden]
    return nn.functional.cross_entropy(model.cls(states), batch["labels"][hidden])


def train(model: nn.Module, ids: Tensor, tokenizer, options: Options) -> None:
    random = torch.Generator().manual_seed(0)
    adam = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(adam, int(WARM_UP * options.steps), options.steps)
    model.train()
    for step in (bar := tqdm(range(options.steps), desc="training")):
        chosen = torch.randint(len(ids), (options.batch_size,), generator=random)
        loss = loss_of(model, masked(ids[chosen], tokenizer, random))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        adam.zero_grad()
        if step % 10 == 0:
            bar.set_postfix_str(f"loss {float(loss.detach()):.3f}")
    model.eval()


def main(options: Options) -> None:
    """Train unless that is done, study, write and print."""
    check_study(options.output)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    kept = options.output.with_name(f"{options.output.name}-model")
    torch.manual_seed(0)
    if (kept / "config.json").is_file():
        model = crisp.load(kept)
    else:
        model = AutoModelForMaskedLM.from_pretrained(minilm_folder())
        crisp.sparsify(model, crisp.Entmax(1.5))
        wanted = options.steps * options.batch_size
        train(model, texts(options.text / "train.txt", tokenizer, options.length, wanted), tokenizer, options)
        model.config.trained_steps = options.steps
        model.save_pretrained(kept)
    count, size = options.fitted, options.batch_size
    fitted = texts(options.text / "train.txt", tokenizer, options.length, count).split(size)
    held_out = texts(
        options.text / "validation.txt", tokenizer, options.length, max(options.scored, options.evaluated)
    )
    random = torch.Generator().manual_seed(1)
    judged = [masked(each, tokenizer, random) for each in held_out[: options.evaluated].split(size)]

    def loss(model: nn.Module) -> float:
        total = places = 0.0
        with borrowed(model, evaluate=True):
            for batch in judged:
                masks = int((batch["labels"] != IGNORED).sum())
                total, places = total + masks * float(loss_of(model, batch)), places + masks
        return total / places

    found = study(
        model,
        [{"input_ids": each} for each in fitted],
        [{"input_ids": each} for each in held_out[: options.scored].split(size)],
        settings(options.rank, quick=options.quick),
        quality=Quality("masked-LM loss", loss, higher_is_better=False),
        seeds=options.seeds,
    )
    facts = {
        "model": f"MiniLM, masked language model, entmax-1.5, {model.config.trained_steps} steps",
        "data set": str(options.text.name),
        "fitted to": f"{sum(map(len, fitted)):,} texts of {options.length} tokens",
        "scored on": f"{min(options.scored, len(held_out)):,} texts",
        "seeds": str(options.seeds),
    }
    write_study(found, options.output, facts)
    print(*findings(found), sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
