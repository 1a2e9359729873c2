"""A sparse model is the same model in a copy, a file, another process, another thread."""

import copy
import io
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import cloudpickle
import dill
import joblib
import pytest
import torch
from torch.nn import parallel
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForSequenceClassification

import crisp_attention as crisp
from crisp_attention import BlockTopK, Entmax, TopK
from crisp_attention.methods.method import as_method
from crisp_attention.models.sparse_model import STATE
from tests.models.tiny import BATCH, IDS, distilbert, llama, logits, settings_in


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "cloudpickle": lambda model: pickle.loads(cloudpickle.dumps(model)),
    "dill": lambda model: dill.loads(dill.dumps(model)),
    "torch.save": through_torch,
    "joblib": through_joblib,
    "share_memory": lambda model: copy.deepcopy(model).share_memory(),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("method", [BlockTopK(0.5, block_size=2), Entmax("learned")])
def test_a_copy_shares_nothing_with_its_model(copied, method):
    model = crisp.sparsify(distilbert(layers=2), method)
    expected, dense = logits(model), logits(distilbert(layers=2))
    with crisp.measuring(model) as measured:
        twin = copied(model)
        assert torch.equal(logits(twin), expected)
    assert not measured.totals
    ours, theirs = settings_in(model), settings_in(twin)
    assert [settings.method for _, settings in theirs] == [as_method(method)] * 2
    assert not {id(s) for _, s in ours} & {id(s) for _, s in theirs}
    held = [{id(each) for pair in getattr(m, STATE).taken for each in pair} for m in (model, twin)]
    assert not held[0] & held[1]
    assert twin.config is getattr(twin, STATE).taken[0][0]

    crisp.densify(twin)
    assert torch.equal(logits(twin), dense)
    assert twin.config._attn_implementation == "sdpa"
    left = [vars(module) for module in twin.modules()]
    assert not any(name.startswith("_crisp") for each in left for name in each)
    assert not any(each["_forward_pre_hooks"] or each["_forward_pre_hooks_with_kwargs"] for each in left)
    assert torch.equal(logits(model), expected)


def test_a_copy_made_while_decoding_goes_on_by_itself():
    model = crisp.sparsify(llama(), BlockTopK(0.5, block_size=2))
    prompt = IDS[:1]
    expected = model.generate(prompt, max_new_tokens=6, do_sample=False)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.generate(prompt, max_new_tokens=6, do_sample=False), expected)
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, COPIES["pickle"]])
def test_what_was_measured_and_profiled_travels_too(copied):
    model = crisp.sparsify(distilbert(layers=2), TopK(0.6))
    with crisp.measuring(model) as measured:
        model(**BATCH)
    profile = crisp.profile(model, [BATCH], block_size=2)
    assert copied(measured).table().equals(measured.table())
    assert copied(profile).curves().equals(profile.curves())


# one process that has never heard of Crisp reads everything; its parent compares
READER = """
import json, pickle, sys, warnings
import joblib, torch
folder = sys.argv[1]
batch = torch.load(folder + "/batch.pt")
def run(model):
    with torch.no_grad():
        return model(**batch).logits.tolist()
found = {
    "pickle": run(pickle.load(open(folder + "/model.pickle", "rb"))),
}
assert "crisp_attention" in sys.modules
found["torch"] = run(torch.load(folder + "/model.pt", weights_only=False))
found["joblib"] = run(joblib.load(folder + "/model.joblib"))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_process_that_never_made_a_sparse_model_reads_one(tmp_path):
    model = crisp.sparsify(distilbert(layers=2), TopK(0.6))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    torch.save(model, tmp_path / "model.pt")
    joblib.dump(model, tmp_path / "model.joblib")
    torch.save(BATCH, tmp_path / "batch.pt")
    command = [sys.executable, "-c", READER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) == {"pickle", "torch", "joblib"}
    for each in found.values():
        torch.testing.assert_close(torch.tensor(each), logits(model))


def served(model, queue):
    queue.put(logits(model).tolist())


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param("spawn", marks=pytest.mark.slow),
    ],
)
def test_a_process_of_torchs_own_runs_a_model_that_it_shares(method):
    context = torch.multiprocessing.get_context(method)
    model = crisp.sparsify(distilbert(layers=2), BlockTopK(0.5, block_size=2)).share_memory()
    queue = context.Queue()
    process = context.Process(target=served, args=(model, queue))
    process.start()
    try:
        found = queue.get(timeout=120)
    finally:
        process.join(120)
    torch.testing.assert_close(torch.tensor(found), logits(model))


@pytest.mark.slow
def test_joblibs_processes_run_it():
    model = crisp.sparsify(distilbert(layers=2), TopK(0.6))
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(logits)(model) for _ in range(2))
    for each in found:
        torch.testing.assert_close(each, logits(model))


class Scores(torch.utils.data.Dataset):
    """What a model says of each example, computed where the examples are loaded."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return len(IDS)

    def __getitem__(self, row):
        with torch.no_grad():
            return self.model(**{name: each[row : row + 1] for name, each in BATCH.items()}).logits[0]


def test_the_workers_of_a_dataloader_run_it():
    model = crisp.sparsify(distilbert(layers=2), TopK(0.6))
    found = torch.cat(list(DataLoader(Scores(model), num_workers=1)))
    torch.testing.assert_close(found, logits(model))


# --- threads


@pytest.mark.slow
def test_threads_run_sparse_and_dense_models_at_once_while_others_measure_them():
    sparse, other, dense = (
        crisp.sparsify(distilbert(), TopK(0.6)),
        crisp.sparsify(distilbert(), BlockTopK(0.5, block_size=2)),
        distilbert(),
    )
    jobs = [(sparse, False), (sparse, True), (other, False), (dense, False), (dense, True), (dense, True)]
    expected = {id(model): logits(model) for model in (sparse, other, dense)}
    together = Barrier(len(jobs))

    def work(model, measured):
        together.wait()
        for _ in range(15):
            if measured:
                with crisp.measuring(model) as measurement:
                    found = logits(model)
                assert (measurement.table()["rows"] >= 8 + 5).all()
                assert (measurement.table()["rows"] % (8 + 5) == 0).all() or model is not sparse
            else:
                found = logits(model)
            torch.testing.assert_close(found, expected[id(model)], rtol=1e-4, atol=1e-5)

    with ThreadPoolExecutor(len(jobs)) as pool:
        for done in [pool.submit(work, *job) for job in jobs]:
            done.result()
    assert not any(each.observers for _, each in (*settings_in(sparse), *settings_in(other)))
    assert not settings_in(dense)
    assert dense.config._attn_implementation == "sdpa"


def test_threads_decode_with_one_model_as_if_each_were_alone():
    """In lockstep: every step of one thread comes between two of the other."""
    model = crisp.sparsify(llama(), BlockTopK(0.5, block_size=2))
    prompts = [IDS[:1], IDS[:1] + 7]
    generate = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    alone = [model.generate(each, output_logits=True, **generate).logits for each in prompts]
    together = Barrier(2)

    def in_step(ids, scores):
        together.wait(60)
        return scores

    def decode(prompt):
        return model.generate(prompt, output_logits=True, logits_processor=[in_step], **generate).logits

    with ThreadPoolExecutor(2) as pool:
        for found, expected in zip(pool.map(decode, prompts), alone, strict=True):
            torch.testing.assert_close(torch.stack(found), torch.stack(expected))


# `replicate` itself on a CPU, where nothing has to be sent
def on_one_device(tensors, devices, detach=False):
    return [[each.detach() if detach else each * 1 for each in tensors] for _ in devices]


@pytest.mark.parametrize("method", [TopK(0.6), BlockTopK(0.5, block_size=2), Entmax("learned")])
def test_replicas_of_dataparallel_compute_and_learn_what_the_model_would(method, monkeypatch):
    home = sys.modules[parallel.replicate.__module__]
    monkeypatch.setattr(home, "_broadcast_coalesced_reshape", on_one_device)
    monkeypatch.setattr(home, "_get_device_index", lambda device, optional: device)
    model = crisp.sparsify(distilbert(layers=2), method)
    names = [name for name, _ in model.named_parameters()]
    whole = model(**BATCH).logits
    expected = torch.autograd.grad(whole.square().sum(), list(model.parameters()))
    with crisp.measuring(model) as measured:
        replicas = parallel.replicate(model, [0, 1])
        rows = [{name: each[row : row + 1] for name, each in BATCH.items()} for row in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(lambda replica, row: replica(**row).logits, replicas, rows))
    assert (measured.table()["rows"] == 8 + 5).all()
    torch.testing.assert_close(torch.cat(parts), whole)
    gradients = torch.autograd.grad(torch.cat(parts).square().sum(), list(model.parameters()))
    for name, found, wanted in zip(names, gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    if method == Entmax("learned"):
        assert any(name.endswith("alpha") for name in names)


# --- another type


@pytest.mark.parametrize("method", [TopK(0.6), Entmax("learned")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_type_afterwards_is_as_good_as_before(method, dtype):
    before = crisp.sparsify(distilbert(layers=2).to(dtype), method)
    after = crisp.sparsify(distilbert(layers=2), method).to(dtype)
    assert torch.equal(logits(after), logits(before))
    kept = {name: each.dtype for name, each in before.named_parameters()}
    assert {name: each.dtype for name, each in after.named_parameters()} == kept


# --- the name alone


def by_configuration(folder):
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(folder), attn_implementation="crisp"
    )


def by_loading(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="crisp")


def by_switching(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.set_attn_implementation("crisp")
    return model


def of_a_sparse_models_config(folder):
    sparse = crisp.sparsify(by_loading(folder), TopK(0.6))
    return type(sparse)(sparse.config).eval()


@pytest.mark.parametrize("build", [by_configuration, by_loading, by_switching, of_a_sparse_models_config])
def test_a_model_that_was_given_the_name_but_no_method_says_what_to_do(build, tmp_path):
    distilbert(layers=2).save_pretrained(tmp_path)
    model = build(tmp_path).eval()
    with pytest.raises(ValueError, match=r"'crisp' but no Crisp settings.*crisp_attention\.sparsify\(model"):
        logits(model)
    config = copy.deepcopy(model.config.to_dict())
    model.load_state_dict(distilbert(layers=2).state_dict())
    if hasattr(model.config, "crisp_attention"):
        crisp.restore(model)
    else:
        crisp.sparsify(model, TopK(0.6))
    assert torch.equal(logits(model), logits(crisp.sparsify(distilbert(layers=2), TopK(0.6))))
    crisp.densify(model)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model), logits(distilbert(layers=2)))
    config.pop("crisp_attention", None)
    assert model.config.to_dict() == config


def test_a_model_built_from_a_sparse_ones_config_leaves_it_its_settings():
    sparse = crisp.sparsify(distilbert(layers=2), TopK(0.6))
    record = copy.deepcopy(sparse.config.crisp_attention)
    twin = crisp.restore(type(sparse)(sparse.config).eval())
    crisp.densify(twin)
    assert sparse.config.crisp_attention == record
    assert not hasattr(twin.config, "crisp_attention")
    assert torch.equal(logits(sparse), logits(crisp.sparsify(distilbert(layers=2), TopK(0.6))))
