"""Sentences of four classes, and a model that tells them apart or is random."""

import json
import random
from pathlib import Path

from transformers import BertConfig

from tests.runs import small

TOPICS = {"good": "good", "bad": "bad", "film": "film", "plot": "plot"}
BODY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def data(folder: Path, train: int = 48, other: int = 16) -> str:
    """Each class has one word of its own."""
    drawn = random.Random(0)
    folder.mkdir(exist_ok=True)
    for split, count in (("train", train), ("validation", other), ("test", other)):
        rows = []
        for row in range(count):
            topic = list(TOPICS)[row % 4]
            words = drawn.choices(("the", "is", "a", "very", "and", "it", "was"), k=drawn.randint(1, 6))
            words.insert(drawn.randrange(len(words)), TOPICS[topic])
            rows.append({"text": " ".join(words), "label": topic})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def model(folder: Path, **changes) -> str:
    """A random BERT of one layer, whose weights divide into blocks of 8."""
    config = BertConfig(
        **BODY | changes, vocab_size=len(small.WORDS), max_position_embeddings=32, num_labels=4
    )
    return small.saved(folder, config)
