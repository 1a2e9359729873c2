"""What `crisp view` says when it cannot make a page."""

import pytest
from transformers import (
    AutoTokenizer,
    BartConfig,
    CLIPConfig,
    CLIPModel,
    DebertaV2Config,
    DebertaV2Model,
    ViTConfig,
    ViTModel,
)

from tests.studies.viewing import WORDS


@pytest.fixture(scope="module")
def here(bert, tmp_path_factory):
    """A folder of models that cannot be shown."""
    here = tmp_path_factory.mktemp("here")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTModel(ViTConfig(image_size=8, patch_size=4, **size))
    vit.save_pretrained(here / "vit")
    vit.save_pretrained(here / "both")
    DebertaV2Model(DebertaV2Config(vocab_size=len(WORDS), **size)).save_pretrained(here / "deberta")
    BartConfig(vocab_size=16).save_pretrained(here / "bart")
    text = {**size, "vocab_size": len(WORDS)}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vit.config.to_dict())).save_pretrained(here / "clip")
    for name in ("both", "deberta", "clip"):
        AutoTokenizer.from_pretrained(bert).save_pretrained(here / name)
    return here


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ([], {"text": "  "}, "--text is empty"),
        (["--text-pair", ""], {}, "--text-pair is empty"),
        ([], {"text": "cat \udcff"}, "--text is not valid UTF-8"),
        (["--layer", "3"], {}, "--layer must be in 0 to 2, got 3"),
        (["--layer", "-1"], {}, "--layer must be in 0 to 2, got -1"),
        (["--head", "2"], {}, "--head must be in 0 to 1, got 2"),
        (["--method", "magic:x=1"], {}, "--method magic:x=1: unknown method 'magic'"),
        (["--method", "topk:sparsity"], {}, "--method topk:sparsity: "),
        (["--method", "topk:sparsity=2"], {}, "sparsity must be in [0, 1), got 2"),
        (
            [],
            {"model": "builtin:vit"},
            "unknown model 'builtin:vit'; the built-in text model is builtin:minilm",
        ),
        ([], {"model": "{here}/none"}, "no such folder"),
        ([], {"model": "no/such-model"}, "cannot read a model configuration from no/such-model"),
        ([], {"model": "{here}"}, "is not a model: expected config.json and model.safetensors"),
        ([], {"model": "{here}/vit"}, "cannot load a tokenizer from"),
        ([], {"model": "{here}/bart"}, "crisp view shows encoders and decoders; "),
        ([], {"model": "{here}/deberta"}, "does not compute its attention through transformers' attention"),
        ([], {"model": "{here}/both"}, "ViTModel reads no text"),
        ([], {"model": "{here}/clip"}, "CLIPModel cannot read a text as its tokenizer encodes it: "),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(view, here, flags, changes, message):
    changes = {name: value.format(here=here) for name, value in changes.items()}
    status, out, err, output = view(*flags, **changes)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not output.exists()


def test_an_output_that_is_a_folder(view, tmp_path):
    (tmp_path / "view.html").mkdir()
    status, _, err, output = view()
    assert (status, err) == (2, f"error: --output {output} is a folder; expected a file\n")
