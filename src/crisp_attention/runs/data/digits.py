"""The one data set that comes with the package's own dependencies: scikit-learn's handwritten digits."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TRAIN_ROWS = 300


def read_digits() -> dict[str, Dataset]:
    """The 1,797 digits as 8x8 grayscale images: a fixed stratified 300 for training, 1,497 for testing."""
    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(labels)), train_size=TRAIN_ROWS, random_state=0, stratify=labels
    )
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return {
        split: Dataset.from_dict(
            {"image": [PILImage.fromarray(pixels[row]) for row in rows], "label": labels[rows]}, features
        )
        for split, rows in (("train", train), ("test", test))
    }
