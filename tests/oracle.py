"""What each method means, in float64 and plain loops. Shares no code with the package, only its method objects."""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from torch import Tensor


def count(n: int, sparsity: float, min_keep: int) -> int:
    """How many of `n` keys a row keeps; `sparsity` is read as the decimal fraction it is written as."""
    return min(n, max(min_keep, math.ceil((1 - Fraction(str(sparsity))) * n)))


def largest(row: np.ndarray, seen: Iterable[int], k: int) -> set[int]:
    """The keys with the largest scores; sorted() is stable, so the lower index wins among equals."""
    return set(sorted(sorted(seen), key=lambda j: -row[j])[:k])


def topk(row: np.ndarray, seen: set[int], sparsity: float, min_keep: int) -> set[int]:
    """The share of the keys that has the largest scores."""
    return largest(row, seen, count(len(seen), sparsity, min_keep))


def topp(row: np.ndarray, seen: set[int], mass: float) -> set[int]:
    """The fewest keys whose softmax weight reaches `mass`, the largest first."""
    if not seen:
        return set()
    top = max(row[j] for j in seen)
    total = math.fsum(math.exp(row[j] - top) for j in seen)
    for k in range(1, len(seen) + 1):
        chosen = largest(row, seen, k)
        if math.fsum(math.exp(row[j] - top) for j in chosen) / total >= mass - 1e-9:
            return chosen
    return set(seen)


def nofm(row: np.ndarray, seen: set[int], n: int, m: int) -> set[int]:
    """The `n` largest of every `m` neighbouring keys, of a shorter last group the same share."""
    places = sorted(seen)
    groups = [places[first : first + m] for first in range(0, len(places), m)]
    return {j for group in groups for j in largest(row, group, math.ceil(len(group) * n / m))}


def threshold(row: np.ndarray, seen: set[int], epsilon: float) -> set[int]:
    """The keys whose softmax weight is at least `epsilon` times the largest."""
    weight = {j: math.exp(row[j] - max(row[k] for k in seen)) for j in seen}
    return {j for j in seen if weight[j] >= epsilon}


def entmax(scores: list[float], alpha: float) -> list[float]:
    """The weights of α-entmax, α > 1, by halving an interval around the threshold 200 times."""
    z = [(alpha - 1) * x for x in scores]

    def weights(tau: float) -> list[float]:
        return [max(x - tau, 0.0) ** (1 / (alpha - 1)) for x in z]

    low, high = max(z) - 1, max(z)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(weights(middle)) >= 1 else (low, middle)
    return [x / math.fsum(weights(low)) for x in weights(low)]


def row_of(i: int, valid: np.ndarray) -> tuple[list[int], int]:
    """The valid keys of query `i`, and the 1-based position of its own among them."""
    queries, keys = valid.shape
    seen = [j for j in range(keys) if valid[i, j]]
    own = min(keys - queries + i, max(seen, default=0))
    return seen, sum(j <= own for j in seen)


def window(i: int, valid: np.ndarray, width: int, global_tokens: int, dilation: int) -> set[int]:
    """The keys that query `i` sees in a band; positions are 1-based and count the valid keys of the row."""
    seen, here = row_of(i, valid)
    band = [here + dilation * step for step in range(-(width // 2), width // 2 + 1)]
    near = {j for place, j in enumerate(seen, 1) if place in band or place <= global_tokens}
    return set(seen) if 1 <= here <= global_tokens else near


def around(i: int, valid: np.ndarray, width: int, ends: int) -> set[int]:
    """The keys that query `i` sees in a band, and as or of the first tokens and, unless causal, the last."""
    seen, here = row_of(i, valid)
    rows = [row_of(query, valid) for query in range(len(valid))]
    end = len(seen) - ends * any(own < len(keys) for keys, own in rows)
    if 1 <= here <= ends or here > end:
        return set(seen)
    return {
        j
        for place, j in enumerate(seen, 1)
        if place <= ends or place > end or (width and abs(place - here) <= width // 2)
    }


def strided(i: int, valid: np.ndarray, stride: int, local: int) -> set[int]:
    """The keys at every `stride`-th position from that of query `i`, and those less than `local` away."""
    seen, here = row_of(i, valid)
    away = {j: abs(place - here) for place, j in enumerate(seen, 1)}
    return {j for j in seen if away[j] % stride == 0 or away[j] < local}


def mixed(x: int) -> int:
    """A hash of 32 bits."""
    for _ in range(2):
        x = (x ^ x >> 16) * 0x45D9F3B % 2**32
    return x ^ x >> 16


def drawn(seed: int, *numbers: int) -> int:
    """A number below 2**32 that is drawn for these numbers, the first of them a head's."""
    value = mixed(seed % 2**32)
    for number in numbers:
        value = mixed(value + number)
    return value


def bigbird(i: int, valid: np.ndarray, head: int, layout) -> set[int]:
    """The keys that query `i` sees in a band, of global tokens and in the blocks with the largest draws."""
    (seen, here), size = row_of(i, valid), layout.block_size
    parts = [seen[first : first + size] for first in range(0, len(seen), size)]
    draws = [drawn(layout.seed, head, (here - 1) // size, b) >> 8 for b in range(len(parts))]
    chosen = largest(np.array(draws), range(len(parts)), layout.random_blocks)
    return window(i, valid, layout.width, layout.global_tokens, 1) | {j for b in chosen for j in parts[b]}


def random_pairs(i: int, valid: np.ndarray, head: int, layout) -> set[int]:
    """The own key of query `i`, and the keys with the largest draws."""
    seen, here = row_of(i, valid)
    draws = [drawn(layout.seed, head, here, place) >> 8 for place in range(1, len(seen) + 1)]
    first = [math.inf if place == here else draw for place, draw in enumerate(draws, 1)]
    return {
        seen[at] for at in largest(np.array(first), range(len(seen)), count(len(seen), layout.sparsity, 1))
    }


@cache
def rotations(layout, head: int, width: int) -> list[np.ndarray]:
    """A matrix of each round, (width, buckets / 2), of normal numbers."""

    def normal(row: int, column: int) -> float:
        u, v = ((drawn(layout.seed, head, column, at) + 1) / 2**32 for at in (row, width + row))
        return math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)

    half = layout.buckets // 2
    return [
        np.array([[normal(row, half * r + column) for column in range(half)] for row in range(width)])
        for r in range(layout.rounds)
    ]


def lsh(i: int, valid: np.ndarray, head: int, query: np.ndarray, keys: np.ndarray, layout) -> set[int]:
    """The own key of query `i`, and those that share a bucket with it; vectors are of unit length first."""
    seen, here = row_of(i, valid)

    def bucket(x: np.ndarray, matrix: np.ndarray) -> int:
        turned = x / (np.linalg.norm(x) or 1.0) @ matrix
        return int(np.argmax([*turned, *-turned]))

    own = {j for place, j in enumerate(seen, 1) if place == here}
    own |= around(i, valid, layout.window, layout.global_tokens)
    each = rotations(layout, head, len(query)) if layout.buckets > 1 else []
    return own | {j for j in seen if not each or any(bucket(query, m) == bucket(keys[j], m) for m in each)}


def ranked(i: int, valid: np.ndarray, products: np.ndarray, layout) -> tuple[list[set[int]], int]:
    """The blocks of the row of query `i`, the best first, and how many are kept; `products` are all of query · key."""
    queries, keys = valid.shape
    rows = [[j for j in range(keys) if valid[q, j]] for q in range(queries)]
    own = [min(keys - queries + q, max(row, default=0)) for q, row in enumerate(rows)]
    first = min(keys - queries, max(max(row, default=0) - q for q, row in enumerate(rows)))
    real = [q for q in range(queries) if rows[q] and (queries == 1 or valid[:, first + q].any())]
    size, seen = layout.block_size, rows[i]
    alike = [i]
    if i in real:
        run = [q for q in real if all(rows[r] == seen for r in range(min(q, i), max(q, i) + 1))]
        alike = [q for q in run if run.index(q) // size == run.index(i) // size]
    parts = [seen[first : first + size] for first in range(0, len(seen), size)]
    score = [np.mean([np.mean(products[q, part]) for q in alike]) for part in parts]
    here = (sum(j <= own[i] for j in seen) - 1) // size
    forced = {b for b in range(len(parts)) if b < layout.sink_blocks or abs(b - here) < layout.local_blocks}
    if not layout.local_blocks and all(max(row, default=0) <= own[q] for q, row in enumerate(rows)):
        forced |= {here} & set(range(len(parts)))
    order = sorted(range(len(parts)), key=lambda b: (b not in forced, -score[b], b))
    return [set(parts[b]) for b in order], max(count(len(parts), layout.sparsity, 1), len(forced))


def blocks(i: int, valid: np.ndarray, products: np.ndarray, layout) -> set[int]:
    """The keys in the blocks that query `i` sees."""
    order, kept = ranked(i, valid, products, layout)
    return set().union(*order[:kept])


def features(x: np.ndarray, branch, parameters) -> np.ndarray:
    """A feature map of vectors (n, D)."""
    if branch.feature_map == "hedgehog":
        x = x @ parameters["branch.features"].double().numpy().T
        x = np.concatenate([x, -x], axis=-1)
    if branch.feature_map == "elu":
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    return np.maximum(x, 0) if branch.feature_map == "relu" else np.array([softmax(list(each)) for each in x])


def branch(i, output, valid, query, key, value, head: int, layout, linear, parameters) -> np.ndarray:
    """What linear attention adds to the output of query `i`; the vectors are those of one head."""
    if linear.scope == "all":
        seen = set(np.flatnonzero(valid[i]))
    else:
        order, kept = ranked(i, valid, query @ key.T, layout)
        negligible = math.floor(Fraction(str(linear.negligible)) * len(order))
        seen = set().union(*order[kept : max(kept, len(order) - negligible)])
    places = sorted(seen)
    vector = features(query[i : i + 1], linear, parameters)[0]
    weights = features(key[places], linear, parameters) @ vector if seen else np.zeros(0)
    total = weights.sum()
    found = weights @ value[places] / total if total > 0 else np.zeros_like(output)
    if linear.combine == "alone":
        return found - output
    if total <= 0:
        return np.zeros_like(output)
    if linear.combine == "project":
        weight, bias = (parameters[f"branch.{name}"].double().numpy() for name in ("weight", "bias"))
        return weight @ found + bias
    if linear.combine == "alpha":
        alpha = min(1.0, max(0.0, parameters["branch.alpha"][head].item()))
        return (1 - alpha) * (found - output)
    return found


def visible(i: int, valid: np.ndarray, head: int, query: np.ndarray, key: np.ndarray, layout) -> set[int]:
    """The keys that query `i` sees under any layout, given the queries and the keys of a head."""
    if layout.name == "window":
        return window(i, valid, layout.width, layout.global_tokens, layout.dilation)
    if layout.name == "block_topk":
        return blocks(i, valid, query @ key.T, layout)
    if layout.name == "bigbird":
        return bigbird(i, valid, head, layout)
    if layout.name == "strided":
        return strided(i, valid, layout.stride, layout.local or layout.stride)
    if layout.name == "lsh":
        return lsh(i, valid, head, query[i], key, layout)
    if layout.name == "random_pairs":
        return random_pairs(i, valid, head, layout)
    assert layout.name == "full"
    return set(np.flatnonzero(valid[i]))


def kept(row: np.ndarray, seen: set[int], rule) -> set[int]:
    """The keys that a query keeps of those it sees, under any rule but random."""
    if rule.name == "topk" and rule.keep:
        return largest(row, seen, rule.keep)
    if rule.name == "topk":
        return topk(row, seen, rule.sparsity, rule.min_keep)
    if rule.name == "topp":
        return topp(row, seen, rule.mass)
    if rule.name == "topk_topp":
        few = largest(row, seen, rule.keep) if rule.keep else topk(row, seen, rule.sparsity, rule.min_keep)
        return few | topp(row, seen, rule.mass)
    if rule.name == "nofm":
        return nofm(row, seen, rule.n, rule.m)
    if rule.name == "threshold":
        return threshold(row, seen, rule.epsilon)
    assert rule.name in ("dense", "entmax")
    return seen


def softmax(scores: list[float]) -> list[float]:
    """The weights of softmax."""
    each = [math.exp(x - max(scores)) for x in scores]
    return [x / math.fsum(each) for x in each]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method,
    *,
    scale: float,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and weights in float64, one row at a time."""
    q, k, v = (t.detach().double().numpy() for t in (query, key, value))
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    shape = (batch, heads, queries, keys)
    allowed = np.broadcast_to(True if valid is None else valid.numpy(), shape)
    added = np.broadcast_to(0.0 if bias is None else bias.detach().double().numpy(), shape)
    output, weights = np.zeros((*shape[:3], v.shape[-1])), np.zeros(shape)
    for b, h, i in np.ndindex(batch, heads, queries):
        group = h // (heads // k.shape[1])
        products = q[b, h] @ k[b, group].T * scale * method.rule.temperature
        row = products[i]
        row = (row if softcap is None else softcap * np.tanh(row / softcap)) + added[b, h, i]
        seen = visible(
            i, allowed[b, h], h, q[b, h] * scale * method.rule.temperature, k[b, group], method.layout
        )
        keep = sorted(kept(row, seen, method.rule))
        others = [] if sinks is None else [sinks[h].item()]
        alpha = getattr(method.rule, "alpha", 1)
        if keep:
            logits = [*row[keep], *others]
            shares = softmax(logits) if alpha == 1 else entmax(logits, alpha)
            weights[b, h, i, keep] = shares[: len(keep)]
        output[b, h, i] = own = weights[b, h, i] @ v[b, group]
        if method.branch is not None:
            given = (allowed[b, h], q[b, h], k[b, group], v[b, group], h, method.layout, method.branch)
            output[b, h, i] += branch(i, own, *given, parameters or {})
    return torch.from_numpy(output), torch.from_numpy(weights)
