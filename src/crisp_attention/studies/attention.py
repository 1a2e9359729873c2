"""Sparse attention as a treatment: what a configuration of a study does to the attention of its model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.methods.method import AnyMethod, Method, as_method
from crisp_attention.methods.rules import RandomK
from crisp_attention.runs.spec import RunSpec, method_from_dict
from crisp_attention.runs.treatment import Treatment
from crisp_attention.schedule import Schedule


@dataclass(frozen=True)
class Attention(Treatment):
    """A method, where it is used, and how its sparsity rises. `Method()` is dense attention, the baseline of a study.

    Examples
    --------
    >>> from crisp_attention.methods.rules import TopK
    >>> Attention(Method(rule=TopK(0.8))).label
    'topk 80 %'
    >>> Attention(Method(rule=TopK(0.8))).control().label
    'random 80 %'
    """

    method: LayerMethod
    layers: tuple[str, ...] = ()
    attention: str = "self"
    phase: str = "always"
    schedule: Schedule | None = None
    kind: ClassVar[str] = "attention"
    words: ClassVar[str] = "keys"
    control_words: ClassVar[str] = "random keys"
    question: ClassVar[str] = "Does sparse attention help here?"

    @property
    def spec(self) -> str:
        return self.method.spec

    @property
    def sparsity(self) -> float | None:
        return 0.0 if self.is_dense else self.method.sparsity

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def is_dense(self) -> bool:
        return self.method == Method()

    @property
    def is_control(self) -> bool:
        return isinstance(self.method, Method) and isinstance(self.method.rule, RandomK)

    def at(self, sparsity: float) -> "Attention":
        if sparsity == 0:
            return DENSE
        schedule = None if self.schedule is None else replace(self.schedule, final=sparsity)
        return replace(self, method=self.method.with_sparsity(sparsity), schedule=schedule)

    def control(self) -> "Attention | None":
        """Random keys, as many as the method keeps of what its layout shows."""
        method = self.method
        if self.is_control or isinstance(method, PerHead) or not method.sparsity:
            return None
        rule = RandomK(sparsity=method.sparsity, temperature=method.rule.temperature)
        shown = replace(method, rule=rule) if hasattr(method.rule, "sparsity") else Method(rule=rule)
        return replace(self, method=shown)

    def run(self, base: RunSpec) -> RunSpec:
        return replace(
            base,
            method=self.method,
            layers=self.layers,
            attention=self.attention,
            phase=self.phase,
            schedule=self.schedule,
        )

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "method": self.method.to_dict(),
            "layers": list(self.layers),
            "spec": self.spec,  # for readers of the file
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Attention":
        own = {name: value for name, value in data.items() if name != "spec"}
        schedule = own.get("schedule")
        return cls(
            **own
            | {
                "method": method_from_dict(data["method"]),
                "layers": tuple(own.get("layers", ())),
                "schedule": None if schedule is None else Schedule(**schedule),
            }
        )


DENSE = Attention(Method())


def as_treatment(given: "Treatment | AnyMethod | PerHead", **attention: Any) -> Treatment:
    """A treatment as it is; a method, a rule or a layout as `Attention` with these fields; dense without them."""
    if isinstance(given, Treatment):
        return given
    method = given if isinstance(given, PerHead) else as_method(given)
    return DENSE if method == Method() else Attention(method, **attention)
