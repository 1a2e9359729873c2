"""The contract of every rule, layout, method and kernel, as pytest classes to derive from. Needs pytest.

from crisp_attention.testing import RuleContract

class TestMine(RuleContract):
    rule = Mine(0.5)
"""

from crisp_attention.testing.kernels import KernelContract
from crisp_attention.testing.methods import LayoutContract, MethodContract, RuleContract

__all__ = ["KernelContract", "LayoutContract", "MethodContract", "RuleContract"]
