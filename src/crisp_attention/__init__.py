"""Structured sparse attention for transformers' models and any other that calls torch's attention.

import crisp_attention as crisp
crisp.sparsify(model, crisp.TopK(sparsity=0.8))
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from crisp_attention.errors import CheckpointError as CheckpointError
    from crisp_attention.functional import attention as attention
    from crisp_attention.insight.distillation import distill as distill
    from crisp_attention.insight.fitting import Fit as Fit
    from crisp_attention.insight.fitting import fit as fit
    from crisp_attention.insight.measuring import Measurement as Measurement
    from crisp_attention.insight.measuring import measuring as measuring
    from crisp_attention.insight.operations import OperationCount as OperationCount
    from crisp_attention.insight.operations import Operations as Operations
    from crisp_attention.insight.operations import counting as counting
    from crisp_attention.insight.profile.profile import Profile as Profile
    from crisp_attention.insight.profile.profile import profile as profile
    from crisp_attention.methods.branches import Branch as Branch
    from crisp_attention.methods.branches import Linear as Linear
    from crisp_attention.methods.budgets import Budgets as Budgets
    from crisp_attention.methods.budgets import budgets as budgets
    from crisp_attention.methods.heads import PerHead as PerHead
    from crisp_attention.methods.layouts import LSH as LSH
    from crisp_attention.methods.layouts import BigBird as BigBird
    from crisp_attention.methods.layouts import BlockTopK as BlockTopK
    from crisp_attention.methods.layouts import Full as Full
    from crisp_attention.methods.layouts import Layout as Layout
    from crisp_attention.methods.layouts import RandomPairs as RandomPairs
    from crisp_attention.methods.layouts import Routing as Routing
    from crisp_attention.methods.layouts import Sparsefinder as Sparsefinder
    from crisp_attention.methods.layouts import Strided as Strided
    from crisp_attention.methods.layouts import Window as Window
    from crisp_attention.methods.method import Method as Method
    from crisp_attention.methods.rules import Dense as Dense
    from crisp_attention.methods.rules import Entmax as Entmax
    from crisp_attention.methods.rules import NofM as NofM
    from crisp_attention.methods.rules import RandomK as RandomK
    from crisp_attention.methods.rules import Rule as Rule
    from crisp_attention.methods.rules import Threshold as Threshold
    from crisp_attention.methods.rules import TopK as TopK
    from crisp_attention.methods.rules import TopKTopP as TopKTopP
    from crisp_attention.methods.rules import TopP as TopP
    from crisp_attention.methods.sparse_linear import SparseLinear as SparseLinear
    from crisp_attention.methods.spec import parse as parse
    from crisp_attention.models.apply import densify as densify
    from crisp_attention.models.apply import sparsify as sparsify
    from crisp_attention.models.diffusers.pipelines import load_pipeline as load_pipeline
    from crisp_attention.models.explain import explain as explain
    from crisp_attention.models.notice import SparseCheckpointLoadedDense as SparseCheckpointLoadedDense
    from crisp_attention.models.persistence import load as load
    from crisp_attention.models.persistence import restore as restore
    from crisp_attention.models.sdpa.listing import attention_modules as attention_modules
    from crisp_attention.models.sdpa.saving import load_into as load_into
    from crisp_attention.models.sdpa.saving import save as save
    from crisp_attention.models.sparse_model import is_sparse as is_sparse
    from crisp_attention.models.sparse_model import set_sparsity as set_sparsity
    from crisp_attention.pruning.compressed import compress as compress
    from crisp_attention.runs.callback import SparsityCallback as SparsityCallback
    from crisp_attention.runs.finetune import Run as Run
    from crisp_attention.runs.finetune import finetune as finetune
    from crisp_attention.runs.pruning.prune import prune as prune
    from crisp_attention.runs.pruning.pruned import PrunedModel as PrunedModel
    from crisp_attention.runs.pruning.treatment import Pruning as Pruning
    from crisp_attention.runs.spec import Data as Data
    from crisp_attention.runs.spec import Recipe as Recipe
    from crisp_attention.runs.treatment import ModelTreatment as ModelTreatment
    from crisp_attention.schedule import Schedule as Schedule
    from crisp_attention.studies.study import Study as Study
    from crisp_attention.studies.sweep.sweep import sweep as sweep

# Where each public name lives; imported when first used, so that `crisp --help` does not load torch.
_HOME = {
    "BigBird": "methods.layouts",
    "BlockTopK": "methods.layouts",
    "Branch": "methods.branches",
    "Budgets": "methods.budgets",
    "CheckpointError": "errors",
    "Data": "runs.spec",
    "Dense": "methods.rules",
    "Entmax": "methods.rules",
    "Fit": "insight.fitting",
    "Full": "methods.layouts",
    "LSH": "methods.layouts",
    "Layout": "methods.layouts",
    "Linear": "methods.branches",
    "Measurement": "insight.measuring",
    "Method": "methods.method",
    "NofM": "methods.rules",
    "ModelTreatment": "runs.treatment",
    "PerHead": "methods.heads",
    "Profile": "insight.profile.profile",
    "PrunedModel": "runs.pruning.pruned",
    "Pruning": "runs.pruning.treatment",
    "RandomK": "methods.rules",
    "RandomPairs": "methods.layouts",
    "Recipe": "runs.spec",
    "Routing": "methods.layouts",
    "Rule": "methods.rules",
    "Run": "runs.finetune",
    "Schedule": "schedule",
    "Sparsefinder": "methods.layouts",
    "SparseLinear": "methods.sparse_linear",
    "SparseCheckpointLoadedDense": "models.notice",
    "SparsityCallback": "runs.callback",
    "Strided": "methods.layouts",
    "Study": "studies.study",
    "Threshold": "methods.rules",
    "TopK": "methods.rules",
    "TopKTopP": "methods.rules",
    "TopP": "methods.rules",
    "Window": "methods.layouts",
    "attention": "functional",
    "attention_modules": "models.sdpa.listing",
    "budgets": "methods.budgets",
    "compress": "pruning.compressed",
    "densify": "models.apply",
    "distill": "insight.distillation",
    "explain": "models.explain",
    "finetune": "runs.finetune",
    "is_sparse": "models.sparse_model",
    "fit": "insight.fitting",
    "load": "models.persistence",
    "load_into": "models.sdpa.saving",
    "load_pipeline": "models.diffusers.pipelines",
    "measuring": "insight.measuring",
    "OperationCount": "insight.operations",
    "Operations": "insight.operations",
    "counting": "insight.operations",
    "parse": "methods.spec",
    "prune": "runs.pruning.prune",
    "profile": "insight.profile.profile",
    "restore": "models.persistence",
    "save": "models.sdpa.saving",
    "set_sparsity": "models.sparse_model",
    "sparsify": "models.apply",
    "sweep": "studies.sweep.sweep",
}
__all__ = sorted(_HOME)

_HOST = "crisp_attention.models.transformers"
register_post_import_hook(f"{_HOST}.config_notice:install", "transformers.configuration_utils")
register_post_import_hook(f"{_HOST}.adapter_configs:install", "peft.config")
register_post_import_hook(f"{_HOST}.adapter_configs:install_loading", "peft.peft_model")
register_post_import_hook("crisp_attention.pruning.saved:install", "transformers.quantizers.auto")
register_post_import_hook(
    "crisp_attention.models.diffusers.notice:install", "diffusers.models.modeling_utils"
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("crisp-attention")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
