"""Cross-entropy."""

from __future__ import annotations

import torch

from raydistill.methods.ce import CrossEntropy
from tests.methods.support import close, single_step


def test_value_of_uniform_logits() -> None:
    step = single_step({0: {"logits": torch.zeros(3, 7)}}, {}, columns={"label": torch.arange(3)})
    close(CrossEntropy().loss(step, {}).total, torch.tensor(7.0).log(), rtol=1e-6)


def test_smoothing_moves_towards_the_mean_over_classes() -> None:
    logits, labels = torch.randn(4, 7, dtype=torch.float64), torch.arange(4)
    step = single_step({0: {"logits": logits}}, {}, columns={"label": labels})
    log_probabilities = logits.log_softmax(1)
    expected = -(0.8 * log_probabilities[range(4), labels] + 0.2 * log_probabilities.mean(1)).mean()
    close(CrossEntropy(label_smoothing=0.2).loss(step, {}).total, expected)


def test_a_mixed_image_has_the_mean_of_both_labels_losses() -> None:
    logits, labels, partners = torch.randn(5, 7, dtype=torch.float64), torch.arange(5), torch.tensor([6, 0, 2, 2, 1])
    share = torch.tensor([1.0, 0.25, 0.5, 0.0, 0.75])
    step = single_step({0: {"logits": logits}}, {}, columns={"label": labels, "partner_label": partners, "mix": share})
    weight = share.double()[:, None]
    one_hot = torch.nn.functional.one_hot
    wanted = weight * one_hot(labels, 7) + (1 - weight) * one_hot(partners, 7)
    for smoothing in (0.0, 0.3):
        target = (1 - smoothing) * wanted + smoothing / 7
        expected = -(target * logits.log_softmax(1)).sum(1).mean()
        close(CrossEntropy(label_smoothing=smoothing).loss(step, {}).total, expected)


def test_without_a_share_of_the_partner_nothing_changes() -> None:
    columns = {"label": torch.arange(3)}
    outputs = {0: {"logits": torch.randn(3, 7)}}
    alone = CrossEntropy().loss(single_step(outputs, {}, columns=columns), {}).total
    columns |= {"partner_label": torch.tensor([6, 5, 4]), "mix": torch.ones(3)}
    assert torch.equal(CrossEntropy().loss(single_step(outputs, {}, columns=columns), {}).total, alone)
