"""`crisp view`: the page in a real browser shows what the model did, and text stays text."""

import json
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from rich.console import Console
from transformers import AlbertConfig, AlbertModel, AutoModel, AutoTokenizer

import crisp_attention as crisp
from crisp_attention import Method, RandomK, TopK, Window
from crisp_attention.methods.method import as_method
from crisp_attention.view import command, reading
from crisp_attention.view.capture import Layer, capture, layers_of
from crisp_attention.view.command import page_bytes, run_view
from crisp_attention.view.options import ViewOptions
from tests.models.tiny import settings_in
from tests.studies.viewing import FOUR, HOSTILE, TEXT, WORDS

# which kind of mark the picture has in each cell of a panel, by query and key
DRAWN = """(panel => {
  const frame = panel.querySelector('.frame'), count = TOKENS.length;
  const size = frame.getAttribute('width') / count;
  const paths = [...panel.querySelectorAll('path')];
  const kinds = (x, y) => paths.filter(p => p.isPointInFill(new DOMPoint(x, y))).map(p => p.classList[0]);
  return Array.from({length: count}, (_, query) => Array.from({length: count}, (_, key) =>
    kinds((key + 0.5) * size, (query + 0.5) * size).join(' ')));
})(document.querySelectorAll('.panel')[%d])"""


def batch(folder, text=TEXT):
    return AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", return_token_type_ids=False)


def attentions(model, inputs):
    """What the model itself returns as its attention weights, per layer (H, L, L)."""
    with torch.no_grad():
        found = model.eval()(**inputs, output_attentions=True).attentions
    return [each[0] for each in found]


def kept_in_picture(tab, panel):
    drawn = tab.evaluate(DRAWN % panel)
    assert {kind for row in drawn for kind in row} <= {"kept", "dropped", "blank"}
    return torch.tensor([[kind == "kept" for kind in row] for row in drawn])


def shown(tab, selector):
    return tab.evaluate(f"[...document.querySelectorAll('{selector}')].map(each => each.textContent)")


@pytest.fixture(scope="module")
def usual(bert, tmp_path_factory):
    """The page of `TEXT` with four methods, for tests that ask for nothing else."""
    output = tmp_path_factory.mktemp("usual") / "view.html"
    run_view(ViewOptions(str(bert), TEXT, method=FOUR, output=output), Console(quiet=True))
    return output


# --- the picture is what the model did


def test_the_pairs_in_the_picture_are_those_the_sparse_model_attends_to(usual, tab, bert):
    tab.open(usual, "layer=2&head=1")
    for panel, method in enumerate((TopK(0.5), TopK(0.8), RandomK(0.8), Window(5))):
        model = crisp.sparsify(AutoModel.from_pretrained(bert), method)
        expected = attentions(model, batch(bert))[2][1] > 0
        assert torch.equal(kept_in_picture(tab, panel), expected), method
    assert tab.requests == [tab.evaluate("location.href.split('#')[0]")]


def test_the_numbers_are_those_of_measuring(usual, tab, bert):
    model = crisp.sparsify(AutoModel.from_pretrained(bert).eval(), TopK(0.8))
    with crisp.measuring(model) as measured, torch.no_grad():
        model(**batch(bert))
    table = measured.table().set_index(["layer", "head"])
    tab.open(usual, "method=1")
    for layer, head in ((0, 0), (1, 1), (2, 0)):
        tab.evaluate(
            f"location.replace('#method=1&layer={layer}&head={head}'); new Promise(done => setTimeout(done))"
        )
        row = table.loc[layer, head]
        assert shown(tab, "dd") == [f"{100 * row['sparsity']:.1f} %", f"{100 * row['kept_mass']:.1f} %"]
        data = tab.evaluate(f"DATA.methods[1].layers[{layer}]")
        assert data["sparsity"][head] == row["sparsity"]
        assert data["kept_mass"][head] == row["kept_mass"]


def test_pointing_at_a_pair_says_its_dense_weight_in_every_panel(usual, tab, bert):
    dense = attentions(AutoModel.from_pretrained(bert, attn_implementation="eager"), batch(bert))[0][1]
    tab.open(usual, "head=1")
    left, top, width, height = tab.evaluate(
        "(box => [box.left, box.top, box.width, box.height])(document.querySelector('.frame').getBoundingClientRect())"
    )
    for query, key in ((0, 0), (3, 7), (9, 1)):
        tab.hover(left + width * (key + 0.5) / 10, top + height * (query + 0.5) / 10)
        words = TEXT.split()
        for panel, said in enumerate(shown(tab, ".readout")):
            pair, weight, fate = re.fullmatch(r"(.*): dense weight (.*) %, (kept|dropped)", said).groups()
            assert pair == f"“{words[query]}” → “{words[key]}”"
            assert float(weight) == pytest.approx(100 * dense[query, key].item(), abs=0.0065)
            assert fate == tab.evaluate(DRAWN % panel)[query][key]


def test_the_shade_is_the_dense_weight(usual, tab, bert):
    dense = attentions(AutoModel.from_pretrained(bert, attn_implementation="eager"), batch(bert))[0][0]
    tab.open(usual)
    strongest = tab.evaluate(
        "[...document.querySelector('.panel').querySelectorAll('path')].map(p => +p.getAttribute('fill-opacity'))"
    )
    assert max(strongest) == pytest.approx(0.18 + 0.82 * dense.max().sqrt().item(), abs=0.82 / 48 + 1e-3)


def test_a_decoder_shows_no_future(view, tab, models_folder):
    folder = models_folder / "stories260K"
    tab.open(view(model=folder, text="Once upon a time, there was a cat.")[3])
    for panel in range(4):
        drawn = tab.evaluate(DRAWN % panel)
        for query, row in enumerate(drawn):
            assert [kind == "blank" for kind in row] == [key > query for key in range(len(row))]
    tab.evaluate("document.querySelector('.scroller').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    said = tab.evaluate("document.getElementById('said').textContent")
    assert said == "topk:sparsity=0.5: “<s>” may not look at “Once”: not a valid pair"


def test_a_module_that_runs_again_and_again_counts_as_a_layer_each_time(view, tab, bert, tmp_path):
    config = AlbertConfig(
        vocab_size=len(WORDS),
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.6,
    )
    model = AlbertModel(config)
    model.save_pretrained(tmp_path / "albert")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "albert")
    tab.open(view("--layer", 3, model=tmp_path / "albert")[3])
    assert len(shown(tab, "#layer option")) == 4
    expected = attentions(crisp.sparsify(model, TopK(0.5)), batch(bert))
    assert torch.equal(kept_in_picture(tab, 0), expected[3][0] > 0)


def test_a_sparse_checkpoint_shows_its_own_method_first(view, tab, bert, tmp_path):
    folder = tmp_path / "run" / "model"
    model = crisp.sparsify(AutoModel.from_pretrained(bert), layers={"1-2": TopK(0.7)})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    output = view(model=tmp_path / "run")[3]
    tab.open(output, "layer=2&head=0")
    assert shown(tab, "h2")[:2] == ["topk:sparsity=0.7 this model’s own", "topk:sparsity=0.5"]
    assert torch.equal(kept_in_picture(tab, 0), attentions(model, batch(bert))[2][0] > 0)
    tab.open(output, "layer=0&head=0")
    assert shown(tab, "h2")[0] == "dense this model’s own"
    assert kept_in_picture(tab, 0).all()


def test_its_own_method_is_not_shown_twice(view, tab, bert, tmp_path):
    crisp.sparsify(AutoModel.from_pretrained(bert), TopK(0.8)).save_pretrained(tmp_path / "own")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "own")
    tab.open(view(model=tmp_path / "own")[3])
    titles = [
        "topk:sparsity=0.8 this model’s own",
        "topk:sparsity=0.5",
        "random:sparsity=0.8",
        "window:width=5",
    ]
    assert shown(tab, "h2") == titles


# --- the page


def test_text_stays_text(view, tab):
    text = " ".join(HOSTILE)
    tab.open(view(text=text)[3])
    assert shown(tab, "#sentence p") == [text]
    rows, columns = shown(tab, ".panel .rows text:not(.axis)"), shown(tab, ".panel .columns text")
    assert rows == columns == [_cut(word) for _ in range(4) for word in HOSTILE]
    assert tab.evaluate("TOKENS") == list(HOSTILE)
    tab.evaluate("document.querySelector('.scroller').focus()")
    tab.press("ArrowRight")
    assert HOSTILE[0] in shown(tab, ".readout")[0]
    assert tab.evaluate("typeof window.hit") == "undefined"
    assert shown(tab, "img, iframe, b b, script:not(#data)") == [shown(tab, "script:last-of-type")[0]]


def test_the_file_loads_and_runs_nothing_else(view):
    page = view(text=" ".join(HOSTILE))[3].read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"""(?:src|href)=["'][^#]|@import|url\((?!"#)""", page.split("<script")[0])
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1)
    assert data.isascii()
    assert not set(data) & set("<>&")
    assert json.loads(data)["texts"] == [" ".join(HOSTILE)]


def test_address_and_controls_lead_to_each_other(view, tab):
    tab.open(view("--layer", 1)[3], "layer=2&head=1&method=0")
    chosen = "['method', 'layer', 'head'].map(name => document.getElementById(name).value)"
    assert tab.evaluate(chosen) == ["0", "2", "1"]
    assert len(shown(tab, ".panel")) == 1
    first = tab.evaluate(DRAWN % 0)
    tab.evaluate("""new Promise(done => { addEventListener('hashchange', () => setTimeout(done));
        const head = document.getElementById('head'); head.value = '0'; head.dispatchEvent(new Event('change')) })""")
    assert tab.evaluate("location.hash") == "#method=0&layer=2&head=0"
    assert tab.evaluate(DRAWN % 0) != first
    tab.evaluate("location.replace('#layer=99&head=x&method=7'); new Promise(done => setTimeout(done))")
    assert tab.evaluate(chosen) == ["all", "1", "0"]
    assert len(shown(tab, ".panel")) == 4


@pytest.mark.parametrize(
    "text", [pytest.param(" ".join([TEXT] * 6), marks=pytest.mark.slow), "a" * 3000], ids=["long", "a word"]
)
def test_the_page_never_scrolls_sideways(view, tab, text):
    output = view(text=text, methods=FOUR[:2])[3]
    for width, scheme in ((400, "light"), (1400, "dark")):
        tab.resize(width, scheme=scheme)
        for method in ("all", 0):
            tab.open(output, f"method={method}")
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert tab.evaluate("innerWidth") == width
        ink, page = tab.evaluate(
            "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
        )
        assert (_light(ink), _light(page)) == ((True, False) if scheme == "dark" else (False, True))


def test_keys_move_from_pair_to_pair(usual, tab):
    tab.open(usual)
    assert "Point at a pair" in shown(tab, ".readout")[0]
    tab.evaluate("document.querySelectorAll('.scroller')[3].focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        tab.press(key)
    said = tab.evaluate("document.getElementById('said').textContent")
    assert said.startswith("window:width=5: “cat” → “the”: dense weight ")
    assert said.endswith("kept")
    assert shown(tab, ".pointed") == ["the", "cat"] * 4  # the column, the row
    tab.press("Escape")
    assert shown(tab, ".pointed") == []


def test_a_text_of_one_token(view, tab):
    status, out, _, output = view(text="cat")
    assert (status, out) == (0, f"{output}: 1 token, 3 layers, 4 methods, 0.0 MB\n")
    tab.open(output)
    assert [tab.evaluate(DRAWN % panel) for panel in range(4)] == [[["kept"]]] * 4


def test_a_long_text_is_cut_and_says_so(view, tab):
    status, _, err, output = view(text=" ".join(["cat"] * 1500), methods=FOUR[:1])
    assert status == 0
    assert err == "The text has 1,500 tokens; the first 128 are shown.\n"
    tab.open(output)
    assert shown(tab, "#notes li") == [err.strip()]
    assert tab.evaluate("TOKENS.length") == 128


def test_what_is_too_large_for_a_page_holds_one_layer(view, tab, monkeypatch):
    monkeypatch.setattr(command, "MAX_BYTES", 1000)
    _, _, err, output = view("--layer", 1)
    assert "the page holds only layer 1" in err
    tab.open(output)
    assert shown(tab, "#layer option") == ["1 · encoder.layer.1.attention.self"]


def test_the_size_of_a_page_is_foreseen(view):
    layers = [Layer(number, "", 2) for number in range(3)]
    small, large = (
        view(text=" ".join(["cat"] * length), methods=FOUR[:1])[3].stat().st_size for length in (20, 120)
    )
    foreseen = page_bytes(layers, 120, 1) - page_bytes(layers, 20, 1)
    assert large - small == pytest.approx(foreseen, rel=0.02)


@dataclass(frozen=True)
class Refusing(TopK):
    name: ClassVar[str] = "refusing"

    def select(self, rows, visible):
        raise ValueError("not here")


def test_the_methods_shown_by_default_all_fit_an_encoder(view, tab):
    status, _, err, output = view(methods=())
    assert (status, err) == (0, "")
    tab.open(output)
    assert shown(tab, "h2") == [as_method(method).spec for method in reading.DEFAULTS]


def test_a_method_that_does_not_fit_is_left_out_with_a_note(view, tab, monkeypatch):
    monkeypatch.setattr(reading, "DEFAULTS", (Refusing(0.5), TopK(0.5)))
    status, _, err, output = view(methods=())
    note = "Left out, as it does not fit this model: refusing:sparsity=0.5 (not here)."
    assert (status, err) == (0, note + "\n")
    tab.open(output)
    assert shown(tab, "#notes li") == [note]
    assert shown(tab, "h2") == ["topk:sparsity=0.5"]


# --- the parts


@pytest.mark.parametrize("own", [None, {"1": TopK(0.7)}])
def test_looking_leaves_the_model_as_it_was(bert, own):
    model = AutoModel.from_pretrained(bert)
    if own:
        crisp.sparsify(model, layers=own, phase="eval")
    before = [settings for _, settings in settings_in(model)], model.config.to_dict()
    inputs = dict(batch(bert))
    layers = layers_of(model, inputs)
    capture(model, inputs, Method(layout=Window(3), rule=TopK(0.5)), layers, layers)
    assert ([settings for _, settings in settings_in(model)], model.config.to_dict()) == before


def _cut(word):
    return word if len(word) <= 12 else word[:11] + "…"


def _light(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 128
