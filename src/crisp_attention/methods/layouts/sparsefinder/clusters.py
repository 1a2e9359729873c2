"""Finding the centres of clusters by k-means, for every head of a layer."""

import numpy as np
import torch
from torch import Tensor

from crisp_attention.extras import needs


def check_enough(units: int, unit: str, clusters: int) -> None:
    """Raise ValueError unless a sample of so many units, such as "tokens", is as large as the number of clusters."""
    if units < clusters:
        raise ValueError(
            f"a sample of {units} {unit} is too small for {clusters} clusters; give crisp.fit more examples or "
            "choose fewer clusters"
        )


def centers(points: Tensor, clusters: int, runs: int, seed: int) -> Tensor:
    """Centres of points (n, H, r) of each head, (H, runs, clusters, r), on the CPU; the first run is k-means++."""
    cluster = needs("sklearn.cluster", extra="runs")
    heads = points.shape[1]
    seeds = np.random.SeedSequence(seed).generate_state(heads * runs)
    found = [
        cluster.KMeans(
            clusters, init="random" if run else "k-means++", n_init=1, random_state=int(own) % 2**31
        ).fit(points[:, head]).cluster_centers_
        for (head, run), own in zip(np.ndindex(heads, runs), seeds, strict=True)
    ]  # fmt: skip
    return torch.as_tensor(np.stack(found), dtype=torch.float32).unflatten(0, (heads, runs))
