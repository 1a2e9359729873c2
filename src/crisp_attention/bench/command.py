"""`crisp bench`: from options to tables, numbers and the picture."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crisp_attention.bench import decoding, learn, pruned
from crisp_attention.bench.children import measure_first_calls, measure_memory
from crisp_attention.bench.hooked import MODELS, measure_hooks
from crisp_attention.bench.limit import matrix_rate
from crisp_attention.bench.options import BenchOptions
from crisp_attention.bench.page import write_page
from crisp_attention.bench.picture import draw
from crisp_attention.bench.plan import Plan, planned
from crisp_attention.bench.predicted import measure_listed, measure_predicted, states_of, steps_of
from crisp_attention.bench.printed import show
from crisp_attention.bench.results import Results, described, machine
from crisp_attention.bench.rounds import clock_of
from crisp_attention.bench.situated import measure_situations
from crisp_attention.bench.timed import measure_attention, measure_steps
from crisp_attention.errors import OptionError
from crisp_attention.files import check_folder, plain, write_json
from crisp_attention.kernels import dispatch, preference
from crisp_attention.runs.terminal import table_console

BUSY = 0.5  # processes waiting to run before we began


def run_bench(options: BenchOptions, notes: Console) -> Results | None:
    """Measure, write bench.json, the picture and the page, and print tables; progress goes to `notes`.

    With `learn` it writes a table of kernels, and there are no results.
    Raises OptionError, before anything is measured, for what cannot work.
    """
    plan = planned(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("device cuda: torch finds no CUDA device here", "device")
    if not options.learn:
        check_folder(options.output)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = machine(options.device)
    _say(notes, described(found))
    if busy := found["load_before"] > BUSY:
        _say(
            notes,
            f"the machine is busy (load {found['load_before']:.1f}): times will vary more than they should",
        )
    if options.learn:
        _learn(options.device, notes)
        if busy:
            _say(notes, "the machine was busy: run it once more when it is not, as this is kept")
        return None
    results = Results(sys.argv, plain(options), found)
    states = states_of(options.text, options.quick) if options.text and "sparsefinder" in plan.parts else None
    dtype = plan.cases[0].shape.dtype
    results.matrix_rate[dtype] = rate = matrix_rate(dtype, options.device, clock_of(options.device))
    with _progress(plan, options, notes) as told:
        for part in plan.parts:
            if part == "attention":
                results.attention = measure_attention(plan.cases, plan.effort, rate, options.quick, told)
            elif part == "step":
                results.step = measure_steps(
                    plan.steps, plan.step_method, plan.effort, dtype, options.device, told
                )
            elif part == "memory":
                results.memory = measure_memory(plan.memory, told)
            elif part == "first-call":
                results.first_call = measure_first_calls(plan.first_call, told)
            elif part == "pruning":
                results.pruned = pruned.measure_pruned(plan.effort, options.quick, told)
            elif part in plan.situations:
                results.situated += measure_situations(plan.situations[part], plan.brief, told)
                if part == "generation":
                    results.situated += decoding.measure_decoder(plan.brief, options.quick, told)
            elif part == "hooks":
                results.hooked = measure_hooks(plan.step_method, plan.effort, told)
            else:
                assert states is not None
                results.predicted = measure_predicted(
                    states, options.sparsity, plan.effort, options.quick, told
                )
                results.listed = measure_listed(states, plan.effort, options.quick, told)
            with _writable():
                options.output.mkdir(parents=True, exist_ok=True)
                # now, so that an interruption loses one part at most
                write_json(options.output / "bench.json", results.plain())
    with _writable():
        draw(results, options.output)
        write_page(results, options.output)
    console = table_console()
    show(results, console)
    _say(console, f"everything is in {options.output}")
    return results


def _learn(device: str, notes: Console) -> None:
    where = preference.path(torch.device(device))
    with _counting(len(learn.planned(device)), notes) as told:
        table = learn.measured(device, told)
    with _writable():
        where.parent.mkdir(parents=True, exist_ok=True)
        write_json(where, table.plain())
    dispatch.forget()
    console = table_console()
    learn.show(table, device, console)
    _say(console, f"kernels are taken by this from now on: {where}; without the file, as before")


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"cannot write the results: {error}") from error


@contextmanager
def _progress(plan: Plan, options: BenchOptions, notes: Console) -> Iterator[Callable[[str], None]]:
    """The progress of measuring: a moving line on a terminal, elsewhere a line for each case."""
    cases = {
        "attention": len(plan.cases),
        "step": len(plan.steps),
        "memory": 2 * len(plan.memory),
        "first-call": 2 * len(plan.first_call),
        **{part: sum(1 + each.gradients for each in found) for part, found in plan.situations.items()},
        "hooks": len(MODELS),
        "pruning": sum(map(len, pruned.planned(options.quick))),
        "sparsefinder": steps_of(options.quick),
    }
    cases["generation"] += len(decoding.planned(options.quick))
    with _counting(sum(cases[part] for part in plan.parts), notes) as told:
        yield told


@contextmanager
def _counting(total: int, notes: Console) -> Iterator[Callable[[str], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bars:
        task = bars.add_task("", total=total, completed=-1)

        def told(what: str) -> None:
            bars.update(task, description=what, advance=1, refresh=True)
            if not notes.is_terminal:
                _say(notes, what)

        yield told


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
