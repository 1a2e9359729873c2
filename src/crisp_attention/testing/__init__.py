"""What any rule, layout, method or kernel must keep, as pytest classes to derive from. Needs pytest.

from crisp_attention.testing import RuleContract

class TestMine(RuleContract):
    rule = Mine(0.5)
"""

from crisp_attention.testing.kernels import KernelContract
from crisp_attention.testing.methods import LayoutContract, MethodContract, RuleContract

__all__ = ["KernelContract", "LayoutContract", "MethodContract", "RuleContract"]
