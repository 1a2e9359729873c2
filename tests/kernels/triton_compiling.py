"""Compiles the Triton kernels for GPUs that need not be there; prints the kernels' names and widths."""

import re
import subprocess
import tempfile
from typing import Any

import torch
from triton import compile as compiled
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crisp_attention.kernels.triton_blocks import operators as block_operators
from crisp_attention.kernels.triton_blocks import passes as block_passes
from crisp_attention.kernels.triton_blocks import shared_memory
from crisp_attention.kernels.triton_choices import passes as choice_passes
from crisp_attention.kernels.triton_choices import picking
from crisp_attention.kernels.triton_rows import WIDEST, operators, passes

FLOATS = {"cuts", "tops", "sums", "means"}
NUMBERS = {"scale", "number", "dropout", "dropout_scale"}
STATES = {"query", "key", "value", "given", "output", "d_query", "d_key", "d_value"}


def source(kernel: Any, constants: dict[str, Any], states: str) -> ASTSource:
    """The kernel with arguments as the operators pass them; pointers that it is not given are None."""
    given = {"count_of": "*i32", "candidates": "*fp32", "valid": "*u8", "seed": "*i64"}
    absent = {
        "count_of": constants.get("RULE") != passes.TOPK.value,
        "candidates": constants.get("RULE") != passes.TOPK.value,
        "valid": not constants["MASKED"],
        "seed": not constants.get("DROPOUT"),
    }
    constants = constants | {name: None for name, missing in absent.items() if missing}
    types: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("strides"):
            types[name] = ("i64", "i64", "i32", "i32")
        elif name in NUMBERS:
            types[name] = "fp32"
        else:
            known = given | dict.fromkeys(STATES, states) | dict.fromkeys(FLOATS, "*fp32") | {"lasts": "*i32"}
            types[name] = known.get(name, "i32")
    values = {(kernel.arg_names.index(n),): v for n, v in constants.items() if n in kernel.arg_names}
    return ASTSource(kernel, types, values, {})


def block_source(kernel: Any, constants: dict[str, Any], states: str) -> ASTSource:
    """A kernel over blocks, as the operators call it."""
    sums = "*bf16" if states == "*bf16" else "*fp32"
    whole = {"spans", "blocks", "counts", "seeing", "seeing_counts"}
    known = (
        dict.fromkeys(whole, "*i32") | {"picked": "*u8"} | dict.fromkeys(("sums", "chosen", "slopes"), sums)
    )
    known |= dict.fromkeys(STATES | {"linear", "given_linear"}, states)
    known |= dict.fromkeys(
        ("weights", "chosen_weights", "slope_weights", "tops", "weighed", "means"), "*fp32"
    )
    known |= {"seed": "*i64"} | dict.fromkeys(NUMBERS, "fp32")
    if not constants.get("DROPOUT"):
        constants = constants | {"seed": None}
    types: dict[str, Any] = {}
    # as in a model: addresses and strides are multiples of 16, which is what shared memory is read ahead for
    sixteens: dict[tuple[int, ...], Any] = {}
    for number, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("strides"):
            types[name] = ("i64", "i64", "i32", "constexpr")
            sixteens |= {(number, at): [["tt.divisibility", 16]] for at in range(3)}
        else:
            types[name] = known.get(name, "i32")
            if types[name].startswith("*"):
                sixteens[number,] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(n),): v for n, v in constants.items() if n in kernel.arg_names}
    values |= {(kernel.arg_names.index(n), 3): 1 for n in kernel.arg_names if n.endswith("strides")}
    return ASTSource(kernel, types, values, sixteens)


def compile_blocks() -> None:
    """The kernels over blocks: with a linear part and dropout, for wider heads without, bands, and single choices."""
    passes = ("attend", "query_gradients", "key_gradients")
    for capability, states, width, flags in (
        (90, "*bf16", 128, {"LINEAR": True, "DROPOUT": True, "SPANS": True}),
        (80, "*fp16", 64, {"LINEAR": True, "DROPOUT": True, "SPANS": True}),
        (80, "*bf16", 256, {"EVEN": True}),
        (90, "*fp32", 64, {}),
        (90, "*bf16", 128, {"BAND": True, "CAUSAL": True}),
        (80, "*bf16", 64, {"PICKED": True, "CAUSAL": True, "SPANS": True}),
    ):
        dtype = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32}[states]
        sizes = (
            dict.fromkeys(("EVEN", "SPANS", "CAUSAL", "BAND", "PICKED", "LINEAR", "DROPOUT"), False) | flags
        )
        sizes |= {"SIZE": 64, "WIDTH": width, "VALUE_WIDTH": width, "MAP": 0}
        linear = {"chosen", "chosen_weights", "linear", "weighed", "given_linear", "slopes", "slope_weights"}
        absent = {"spans": "SPANS", "picked": "PICKED"} | dict.fromkeys(linear, "LINEAR")
        sizes |= {name: None for name, flag in absent.items() if not sizes[flag]}
        if sizes["BAND"]:
            sizes |= dict.fromkeys(("blocks", "counts", "seeing", "seeing_counts"))
        for name in (*(("key_sums",) if sizes["LINEAR"] else ()), *passes):
            kernel = getattr(block_passes, name)
            found = compiled(
                block_source(kernel, sizes, states),
                target=GPUTarget("cuda", capability, 32),
                options=block_operators.options(dtype, 64, width),
            )
            bound = shared_memory(dtype, 64, width, width, sizes["LINEAR"])
            most = (227 if capability == 90 else 163) * 1024  # of an H100, of an A100
            assert found.metadata.shared <= bound <= most, (name, found.metadata.shared, bound)
            print(name, width)


def compile_rows() -> None:
    """The kernels over rows, with all that a call may ask for, and without."""
    for capability, states, every, width in (
        (90, "*bf16", True, 128),
        (80, "*fp16", False, 64),
        (80, "*fp32", True, 128),
        (80, "*bf16", False, WIDEST),
        (80, "*fp32", False, WIDEST),
    ):
        dtype = torch.float32 if states == "*fp32" else torch.bfloat16
        block = operators.block_size(dtype, width)
        flags = {"MASKED": every, "CAUSAL": every, "DROPOUT": every}
        kernels = [(passes.find_cuts, {"RULE": rule.value}) for rule in operators.RULES.values()]
        kernels += [(k, {}) for k in (passes.attend, passes.query_gradients, passes.key_gradients)]
        for kernel, more in kernels[(0 if width < WIDEST else 2) :]:
            sizes = {"BLOCK_M": block, "BLOCK_N": block, "WIDTH": width, "VALUE_WIDTH": width}
            found = compiled(
                source(kernel, sizes | flags | more, states),
                target=GPUTarget("cuda", capability, 32),
                options=operators.options(dtype, width),
            )
            assert found.metadata.shared <= 99 * 1024, kernel  # what every GPU since Ampere has
            print(kernel.fn.__name__, width)


def picking_source(kernel: Any, constants: dict[str, Any], states: str) -> ASTSource:
    """A kernel that picks blocks, as `picked` calls it for a model: lengths are anything, addresses multiples of 16."""
    pointers = {"key": states, "span": "*i64", "picks": "*u8"}
    pointers |= dict.fromkeys(("means", "products"), "*fp32") | dict.fromkeys(("broken", "shares"), "*i32")
    types: dict[str, Any] = pointers | {"scale": "fp32", "k_strides": ("i64", "i64", "i32", "i32")}
    types = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    aligned = {
        place[name]: [["tt.divisibility", 16]] for name in pointers if name in place and name not in constants
    }
    return ASTSource(kernel, types, {place[name]: value for name, value in constants.items()}, aligned)


def compile_choices() -> None:
    """The kernels that choose blocks for blocks, and list them."""
    for capability in (80, 90):
        for kernel, constants in (
            (choice_passes.mean_tokens, {"SIZE": 64, "STEP": 32, "WIDTH": 128}),
            (choice_passes.choose, {"SIZE": 64, "LENGTHS": True, "BLOCKS": 512}),
            (choice_passes.choose_rest, {"SIZE": 64, "LENGTHS": True, "BLOCKS": 512}),
            (choice_passes.list_seen, {"CHUNK": 128}),
        ):
            floats = dict.fromkeys(("means", "products", "ranked"), "*fp32") | {
                "states": "*bf16",
                "scale": "fp32",
            }
            whole = dict.fromkeys(("counts", "lengths"), "*i32") | dict.fromkeys(("seen", "rest"), "*u8")
            own = floats | whole | {"strides": ("i64", "i64", "i32", "i32")}
            if kernel is choice_passes.list_seen:
                own |= {"blocks": "*i32"}
            types = {n: "constexpr" if n in constants else own.get(n, "i32") for n in kernel.arg_names}
            values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
            found = compiled(ASTSource(kernel, types, values, {}), target=GPUTarget("cuda", capability, 32))
            assert local_memory(found) == 0, (kernel, capability)
            print(kernel.fn.__name__, 64)


def local_memory(found: Any) -> int:
    """Bytes a thread of a compiled kernel has beside its registers: what it spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        usage = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", told))


def compile_picking() -> None:
    """The kernels that pick blocks for single queries: of every dtype, and of short and long rows."""
    whole = {"SIZE": 64, "span": None, "SPANS": False}
    kernels: list[tuple[Any, str, int, dict[str, Any]]] = [
        (picking.mean_keys, states, width, sizes | picking.key_tile(64, width))
        for states, width, sizes in (
            ("*bf16", 128, {"SIZE": 64, "SPANS": True}),
            ("*fp16", 64, whole),
            ("*fp32", 256, whole),
        )
    ]
    kernels += [
        (picking.pick, "*fp32", blocks, sizes | {"CAUSAL": causal} | picking.product_tile(blocks))
        for blocks, causal, sizes in (
            (64, True, {"SIZE": 64, "SPANS": True}),
            (128, False, whole),
            (4096, True, whole),
        )
    ]
    for capability in (80, 90):
        for kernel, states, width, constants in kernels:
            given = {name: each for name, each in constants.items() if name != "num_warps"}
            found = compiled(
                picking_source(kernel, given, states),
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": constants["num_warps"]},
            )
            assert local_memory(found) == 0, (kernel, capability, width)
            print(kernel.fn.__name__, width)


if __name__ == "__main__":
    compile_rows()
    compile_blocks()
    compile_picking()
    compile_choices()
