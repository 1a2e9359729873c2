"""Training a sparse model on the predictions of its dense original."""

import copy

import pytest
import torch
from torch.nn.functional import kl_div, mse_loss
from transformers import DistilBertForQuestionAnswering

import crisp_attention as crisp
from crisp_attention import SparseLinear, TopK
from tests.models.diffusion import FAMILIES, built, run
from tests.models.tiny import BATCH, bart, distilbert, gpt2, logits, noisy


def apart():
    """A classifier whose sentences get different logits."""
    model = distilbert()
    random = torch.Generator().manual_seed(0)
    for each in model.parameters():
        each.data.add_(0.3 * torch.randn(each.shape, generator=random))
    return model


def test_the_loss_is_the_divergence_of_logits_and_gives_the_teacher_no_gradient() -> None:
    teacher = apart().train()
    student = crisp.sparsify(copy.deepcopy(teacher).eval(), TopK(0.8))
    loss = crisp.distill(student, teacher, temperature=2.0)(BATCH | {"labels": torch.tensor([0, 1])})
    one, other = (logits(model.eval()) / 2 for model in (student, copy.deepcopy(teacher)))
    wanted = 4 * kl_div(one.log_softmax(-1), other.log_softmax(-1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(loss, wanted)
    assert loss > 0
    loss.backward()
    assert all(each.grad is not None for each in student.parameters() if each.requires_grad)
    assert all(each.grad is None for each in teacher.parameters())
    assert all(module.training for module in teacher.modules())


def test_tokens_of_padding_count_for_nothing() -> None:
    teacher = gpt2()
    loss = crisp.distill(crisp.sparsify(copy.deepcopy(teacher), TopK(0.8)), teacher)
    together = loss(BATCH)
    real = BATCH["attention_mask"].bool()
    apart = [loss({"input_ids": ids[seen][None]}) for ids, seen in zip(BATCH["input_ids"], real, strict=True)]
    lengths = real.sum(-1)
    torch.testing.assert_close(
        together, sum(each * n for each, n in zip(apart, lengths, strict=True)) / lengths.sum()
    )


def test_a_diffusion_transformer_learns_predictions_in_a_few_steps() -> None:
    teacher = built("DiT")
    student = crisp.sparsify(built("DiT"), SparseLinear(0.3, 0.1, block_size=2))
    loss, given = crisp.distill(student, teacher), FAMILIES["DiT"].inputs(2)
    torch.testing.assert_close(loss(given), mse_loss(run(student, "DiT"), run(teacher, "DiT")))
    learned = [each for name, each in student.named_parameters() if "crisp_learned" in name]
    optimizer = torch.optim.Adam(learned, lr=0.02)
    losses = []
    for _ in range(30):
        losses.append(loss(given))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_by_it(tmp_path) -> None:
    from transformers import Trainer, TrainingArguments

    teacher = apart()
    student = crisp.sparsify(copy.deepcopy(teacher), TopK(0.8))
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(0)}
        for ids, mask in zip(BATCH["input_ids"], BATCH["attention_mask"], strict=True)
    ]
    loss = crisp.distill(student, teacher)
    before = loss(BATCH).item()
    arguments = TrainingArguments(
        tmp_path, num_train_epochs=20, learning_rate=1e-3, report_to=[], use_cpu=True
    )
    trainer = Trainer(student, arguments, train_dataset=rows)
    trainer.compute_loss = loss.compute_loss
    trainer.train()
    assert loss(BATCH).item() < 0.7 * before


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", None])
def test_the_loss_is_that_of_the_problem(problem: str | None) -> None:
    teacher = apart()
    teacher.config.problem_type = problem
    if problem is None:
        teacher.classifier = torch.nn.Linear(16, 1)
    student = crisp.sparsify(copy.deepcopy(teacher), TopK(0.8))
    loss = crisp.distill(student, teacher)(BATCH)
    one, other = (logits(each).double() for each in (student, teacher))
    if problem == "multi_label_classification":
        (p, q) = (each.sigmoid() for each in (other, one))
        wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1).mean()
    else:
        wanted = (one - other).square().mean()
    assert loss > 0
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-3, atol=1e-7)


class Wrapped(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


def test_a_wrapped_student_has_the_loss_of_what_is_in_the_wrapper() -> None:
    teacher = apart()
    teacher.config.problem_type = "regression"
    student = crisp.sparsify(copy.deepcopy(teacher), TopK(0.8))
    assert crisp.distill(Wrapped(student), teacher)(BATCH).equal(crisp.distill(student, teacher)(BATCH))


def test_labels_of_an_encoder_decoder_are_the_input_of_its_decoder() -> None:
    teacher = noisy(bart())
    loss = crisp.distill(crisp.sparsify(copy.deepcopy(teacher), TopK(0.8)), teacher)
    labels = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10], [3, 4, 5, -100, -100, -100, -100, -100]])
    first, second = (
        loss({name: each[row : row + 1] for name, each in (BATCH | {"labels": labels}).items()})
        for row in range(2)
    )
    cut = loss({name: each[1:] for name, each in BATCH.items()} | {"labels": labels[1:, :3]})
    torch.testing.assert_close(second, cut)
    torch.testing.assert_close(loss(BATCH | {"labels": labels}), (8 * first + 3 * second) / 11)


def test_hidden_states_of_padding_count_for_nothing() -> None:
    teacher = apart().distilbert
    student = crisp.sparsify(copy.deepcopy(teacher), TopK(0.8))
    real = BATCH["attention_mask"].bool()
    one, other = (each(**BATCH).last_hidden_state[real] for each in (student, teacher))
    torch.testing.assert_close(crisp.distill(student, teacher)(BATCH), mse_loss(one, other))


@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (0.0, ValueError, r"temperature must be in \(0, inf\), got 0.0"),
        (float("nan"), ValueError, "temperature must be in"),
        ("2", TypeError, "temperature must be a number"),
    ],
)
def test_temperatures_that_cannot_be(temperature, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        crisp.distill(distilbert(), distilbert(), temperature=temperature)


def test_models_and_batches_that_cannot_be() -> None:
    model, sparse = distilbert(), crisp.sparsify(distilbert(), TopK(0.8))
    with pytest.raises(ValueError, match="same model"):
        crisp.distill(model, model)
    with pytest.raises(ValueError, match=r"expected crisp\.distill\(sparse, dense\)"):
        crisp.distill(model, sparse)
    with pytest.raises(TypeError, match="expected a mapping of what the models are called with, got Tensor"):
        crisp.distill(sparse, model)(BATCH["input_ids"])
    wider = distilbert()
    wider.classifier = torch.nn.Linear(16, 5)
    with pytest.raises(ValueError, match=r"the student predicts \(2, 2\), the teacher \(2, 5\)"):
        crisp.distill(sparse, wider)(BATCH)
    answering = DistilBertForQuestionAnswering(model.config)
    with pytest.raises(TypeError, match="the model gives start_logits, end_logits"):
        crisp.distill(crisp.sparsify(copy.deepcopy(answering), TopK(0.8)), answering)(BATCH)
