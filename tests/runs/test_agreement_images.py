"""Where an image model, its processor and the images disagree."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import BertConfig, CLIPImageProcessor, ViTForImageClassification

from crisp_attention import CheckpointError
from crisp_attention.errors import OptionError
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.task import Classification, Task
from tests.runs import small
from tests.runs.small import BODY


def pictures(*sizes, mode="RGB") -> Task:
    made = [Image.new(mode, size, 10 * (i + 1)) for i, size in enumerate(sizes)]
    rows = {"image": made, "labels": [i % 2 for i in range(len(made))], "index": range(len(made))}
    return Task({"train": Dataset.from_dict(rows)}, (), "image", Classification(("a", "b")), ())


def batch_of(source, task):
    return source.collate(list(source.encode(task.splits["train"])))


def said(source, words):
    return any(words in note for note in source.notes)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize(("channels", "noted"), [(1, True), (3, False), (4, True)])
def test_images_have_the_channels_of_the_model(tmp_path, mode, channels, noted):
    task = pictures((8, 8), (20, 10), mode=mode)
    source = load_source(small.vit(tmp_path, channels), task, None)
    batch = batch_of(source, task)
    assert batch["pixel_values"].shape == (2, channels, 8, 8)
    assert source.model(**batch).logits.shape == (2, 2)
    assert said(source, f"image_mean of 3 channels is used for the model's {channels}") == noted
    # of one grey, 10 of 255, whatever the mode: its mean is 0.5 and its deviation too
    if mode == "L":
        assert batch["pixel_values"][0, 0, 0, 0].item() == pytest.approx(10 / 127.5 - 1, abs=1e-6)


def test_means_that_differ_cannot_be_those_of_another_number_of_channels(tmp_path):
    folder = small.vit(tmp_path, 1, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.3])
    with pytest.raises(
        OptionError, match="cannot read images of 1 channels: ValueError: mean must have 1 elements"
    ):
        load_source(folder, pictures((8, 8)), None)


def test_a_processor_that_makes_three_channels_of_all_images(tmp_path):
    folder = small.vit(tmp_path, 1)
    CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size=8, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    task = pictures((8, 8), (9, 20))
    source = load_source(folder, task, None)
    assert said(source, "not converted to RGB by the processor, as the model reads 1 channels")
    assert batch_of(source, task)["pixel_values"].shape == (2, 1, 8, 8)


def test_a_processor_of_another_size(tmp_path):
    folder = small.vit(tmp_path, size={"height": 16, "width": 16})
    with pytest.raises(OptionError, match=r"16 x 16 with 3 channels: ValueError: .*\(8\*8\)"):
        load_source(folder, pictures((8, 8)), None)


def test_a_processor_that_leaves_the_size_needs_images_of_one(tmp_path):
    folder = small.vit(tmp_path, do_resize=False)
    same = pictures((8, 8), (8, 8))
    assert batch_of(load_source(folder, same, None), same)["pixel_values"].shape == (2, 3, 8, 8)
    with pytest.raises(OptionError, match="expected 8 x 8, as in row 0 of train, found 9 x 8 in row 2"):
        load_source(folder, pictures((8, 8), (8, 8), (9, 8)), None)


def test_pixels_that_are_not_scaled_are_said(tmp_path):
    source = load_source(small.vit(tmp_path, do_rescale=False), pictures((8, 8)), None)
    assert said(source, "pixel values are 0 to 255 before normalisation (do_rescale is off)")


@pytest.mark.parametrize(("factor", "white"), [(1.0, "255"), (1 / 127.5, "2"), (1 / 65_535, "0.00389")])
def test_pixels_of_another_scale_are_said(tmp_path, factor, white):
    source = load_source(small.vit(tmp_path, rescale_factor=factor), pictures((8, 8)), None)
    assert said(source, f"images: pixel values are 0 to {white} before normalisation")
    assert not said(load_source(small.vit(tmp_path), pictures((8, 8)), None), "pixel values are")


def test_a_processor_that_divides_by_zero(tmp_path):
    folder = small.vit(tmp_path, image_std=[0.5, 0, 0.5])
    with pytest.raises(OptionError, match="not finite; expected an image_std without zeros"):
        load_source(folder, pictures((8, 8)), None)


def test_half_weights_and_fields_as_for_texts(tmp_path):
    folder = small.vit(tmp_path)
    model = ViTForImageClassification.from_pretrained(folder).half()
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(folder)
    task = pictures((8, 8), (8, 8))
    source = load_source(folder, task, None)
    assert source.model.dtype == torch.float32
    batch = batch_of(source, task)
    output = source.model(**batch)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, batch["labels"]))


def test_models_and_processors_of_another_kind(tmp_path):
    text = small.saved(tmp_path / "text", BertConfig(**BODY))
    with pytest.raises(
        CheckpointError, match="is a model of type bert, which classifies text; the data set holds images"
    ):
        load_source(text, pictures((8, 8)), None)
    folder = small.vit(tmp_path / "vit")
    for content in ("[]", "{", '{"image_processor_type": "Nothing"}'):
        (tmp_path / "vit" / "preprocessor_config.json").write_text(content)
        with pytest.raises(CheckpointError, match="cannot load an image processor from"):
            load_source(folder, pictures((8, 8)), None)
