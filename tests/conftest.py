"""Real data and models for the tests; where they are missing a test skips, except in CI, where it fails."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def folder_or_skip(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        reason = f"no folder {folder}; set {variable} to where it is"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return folder_or_skip("CRISP_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def models_folder() -> Path:
    return folder_or_skip("CRISP_MODELS", SHARED / "models")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
