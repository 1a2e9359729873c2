"""Training a sparse model on the predictions of its dense original."""

import copy

import pytest
import torch
from torch.nn.functional import kl_div, mse_loss

import crisp_attention as crisp
from crisp_attention import SparseLinear, TopK
from tests.models.diffusion import FAMILIES, built, run
from tests.models.tiny import BATCH, distilbert, gpt2, logits


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


@pytest.mark.parametrize(
    ("temperature", "same", "message"), [(0.0, False, "more than 0"), (1.0, True, "same model")]
)
def test_what_cannot_be(temperature: float, same: bool, message: str) -> None:
    model = distilbert()
    with pytest.raises(ValueError, match=message):
        crisp.distill(model, model if same else distilbert(), temperature=temperature)
    wider = distilbert()
    wider.classifier = torch.nn.Linear(16, 5)
    with pytest.raises(ValueError, match=r"the student predicts \(2, 2\), the teacher \(2, 5\)"):
        crisp.distill(model, wider)(BATCH)
