"""Feature maps of rows, and their gradients, which the features themselves say."""

import triton
import triton.language as tl

SOFTMAX = tl.constexpr(0)
ELU = tl.constexpr(1)
RELU = tl.constexpr(2)


@triton.jit
def features(states, MAP: tl.constexpr):
    """φ of each row, in float32."""
    states = states.to(tl.float32)
    if MAP == SOFTMAX:
        raised = tl.exp(states - tl.max(states, 1)[:, None])
        return raised / tl.sum(raised, 1)[:, None]
    if MAP == ELU:
        return tl.where(states > 0.0, states + 1.0, tl.exp(tl.minimum(states, 0.0)))
    return tl.where(states < 0.0, 0.0, states)


@triton.jit
def through_features(grads, phi, MAP: tl.constexpr):
    """Gradients of states from those of their features."""
    if MAP == SOFTMAX:
        return phi * (grads - tl.sum(phi * grads, 1)[:, None])
    if MAP == ELU:
        return grads * tl.where(phi > 1.0, 1.0, phi)
    return tl.where(phi > 0.0, grads, 0.0)
