"""Linear classifiers in closed form, against scikit-learn and against PyTorch's schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from raydistill.evaluation.classification import top_k_accuracy
from raydistill.evaluation.linear import (
    COMPRESS,
    PROTOCPC,
    PROTOCPC_SELF,
    LinearProtocol,
    linear_probe,
    logistic_regression,
    multi_label_probe,
)

STEP = LinearProtocol(lr=0.5, epochs=1, batch_size=100, momentum=0.9, weight_decay=0.1)
"""One step of plain gradient descent for 100 samples at most: momentum and decay have nothing to work on yet."""


def sample(images: int, classes: int = 3, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    means = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return means[labels] + torch.randn(images, width, generator=generator), labels


@pytest.mark.parametrize("protocol", [COMPRESS, PROTOCPC, PROTOCPC_SELF])
def test_rates_are_those_of_pytorchs_schedules(protocol: LinearProtocol) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=protocol.lr)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if protocol.milestones is None:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, protocol.epochs)
    else:
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(protocol.milestones), gamma=protocol.factor)
    for epoch in range(protocol.epochs):
        assert protocol.rate(epoch) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_compress_is_what_the_paper_says() -> None:
    assert [COMPRESS.rate(epoch) for epoch in (0, 14, 15, 29, 30, 39)] == pytest.approx(
        [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]
    )
    assert (COMPRESS.epochs, COMPRESS.batch_size, COMPRESS.momentum, COMPRESS.weight_decay) == (40, 256, 0.9, 1e-4)


def test_a_step_in_closed_form() -> None:
    """From zero all classes are as likely, so a step goes by the mean of (one-hot - 1 / C) x."""
    (features, labels), (queries, _) = sample(60), sample(7, seed=1)
    residual = nn.functional.one_hot(labels, 4).float() - 0.25
    expected = 0.5 * (queries @ (residual.T @ features).T + residual.sum(dim=0)) / 60
    found = linear_probe(features, labels, queries, protocol=STEP, num_classes=4, seed=0)
    torch.testing.assert_close(found, expected)


def test_a_step_of_many_labels_in_closed_form_and_each_class_by_itself() -> None:
    (features, _), (queries, _) = sample(60), sample(7, seed=1)
    targets = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    residual = targets.float() - 0.5
    expected = 0.5 * (queries @ (residual.T @ features).T + residual.sum(dim=0)) / 60
    found = multi_label_probe(features, targets, queries, protocol=STEP, seed=0)
    torch.testing.assert_close(found, expected)
    protocol = replace(COMPRESS, epochs=3)
    together = multi_label_probe(features, targets, queries, protocol=protocol, seed=0)
    alone = multi_label_probe(features, targets[:, 1:2], queries, protocol=protocol, seed=0)
    torch.testing.assert_close(together[:, 1:2], alone)


def test_samples_that_are_ignored_do_not_move_their_class() -> None:
    (features, _), (queries, _) = sample(60), sample(7, seed=1)
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(60, 3, generator=generator) < 0.3
    ignored = torch.rand(60, 3, generator=generator) < 0.2
    residual = (targets.float() - 0.5) * ~ignored
    expected = 0.5 * (queries @ (residual.T @ features).T + residual.sum(dim=0)) / 60
    found = multi_label_probe(features, targets, queries, protocol=STEP, seed=0, ignored=ignored)
    torch.testing.assert_close(found, expected)
    assert torch.equal(
        found, multi_label_probe(features, targets ^ ignored, queries, protocol=STEP, seed=0, ignored=ignored)
    )


def test_steps_are_those_of_a_layer_and_an_optimiser_of_pytorch() -> None:
    """Batches of 32, 32 and 6, two epochs, a cosine, momentum and decay."""
    (features, labels), (queries, _) = sample(70), sample(7, seed=1)
    protocol = LinearProtocol(lr=0.1, epochs=2, batch_size=32, momentum=0.9, weight_decay=0.01)
    layer = nn.Linear(5, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    generator = torch.Generator().manual_seed(11)
    for _ in range(2):
        order = torch.randperm(70, generator=generator)
        for rows in (order[:32], order[32:64], order[64:]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    found = linear_probe(features, labels, queries, protocol=protocol, num_classes=3, seed=11)
    torch.testing.assert_close(found, layer(queries).detach())
    other = linear_probe(features, labels, queries, protocol=protocol, num_classes=3, seed=12)
    assert not torch.equal(found, other)


def test_seed_decides_whatever_was_drawn_before_and_gradients_may_be_off() -> None:
    (features, labels), (queries, _) = sample(300), sample(50, seed=1)
    first = linear_probe(features, labels, queries, protocol=COMPRESS, num_classes=3, seed=4)
    torch.rand(5)
    with torch.no_grad():
        again = linear_probe(features, labels, queries, protocol=COMPRESS, num_classes=3, seed=4)
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert not first.requires_grad


def test_compress_ignores_the_length_of_features_and_what_test_images_are_like() -> None:
    (features, labels), (queries, _) = sample(300), sample(50, seed=1)
    whole = linear_probe(features, labels, queries, protocol=COMPRESS, num_classes=3, seed=4)
    longer = linear_probe(7 * features, labels, 0.1 * queries, protocol=COMPRESS, num_classes=3, seed=4)
    torch.testing.assert_close(whole, longer, rtol=1e-3, atol=1e-4)
    part = linear_probe(features, labels, queries[:3], protocol=COMPRESS, num_classes=3, seed=4)
    torch.testing.assert_close(whole[:3], part)


def test_standardising_is_by_the_training_set_and_spares_a_dimension_that_never_changes() -> None:
    """With mean 0 and variance 1 a step's logits are the covariance of residuals and standardised features."""
    (features, labels), (queries, _) = sample(60), sample(7, seed=1)
    features[:, 2], queries[:, 2] = 0.0, 0.0
    found = linear_probe(features, labels, queries, protocol=replace(STEP, standardise=True), num_classes=3, seed=0)
    scale = (features.var(dim=0, correction=0) + 1e-5).sqrt()
    train, test = ((side - features.mean(dim=0)) / scale for side in (features, queries))
    residual = nn.functional.one_hot(labels, 3).float() - 1 / 3
    torch.testing.assert_close(found, 0.5 * (test @ (residual.T @ train).T + residual.sum(dim=0)) / 60)
    assert found.isfinite().all()


def test_protocols_learn_what_can_be_learnt() -> None:
    (features, labels), (queries, known) = sample(600), sample(300, seed=1)
    best = LogisticRegression(max_iter=300).fit(features.numpy(), labels.numpy()).score(queries.numpy(), known.numpy())
    for protocol in (COMPRESS, PROTOCPC, PROTOCPC_SELF):
        logits = linear_probe(features, labels, queries, protocol=protocol, num_classes=3, seed=0)
        assert top_k_accuracy(logits, known, 1) > 100 * best - 6


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_regression_is_that_of_sklearn_for_two_classes_and_more(classes: int) -> None:
    (features, labels), (queries, known) = sample(200, classes), sample(100, classes, seed=1)
    logits = logistic_regression(features, 2 * labels, queries, num_classes=2 * classes)
    assert logits.shape == (100, 2 * classes)
    assert logits[:, 1::2].isneginf().all()
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    model = LogisticRegression(max_iter=300).fit(((features - mean) / deviation).numpy(), labels.numpy())
    expected = torch.from_numpy(model.predict_proba(((queries - mean) / deviation).numpy())).double()
    torch.testing.assert_close(logits[:, ::2].double().softmax(dim=1), expected, rtol=1e-3, atol=1e-3)
    assert top_k_accuracy(logits, 2 * known, 1) > 100 / classes


def test_senseless_input_is_refused() -> None:
    features, labels = sample(10)
    with pytest.raises(ValueError, match=r"train_labels must lie in \[0, 1\)"):
        linear_probe(features, labels, features, protocol=STEP, num_classes=1, seed=0)
    with pytest.raises(ValueError, match="train_labels"):
        linear_probe(features, labels[:3], features, protocol=STEP, num_classes=3, seed=0)
    with pytest.raises(ValueError, match="finite"):
        linear_probe(features / 0, labels, features, protocol=STEP, num_classes=3, seed=0)
    with pytest.raises(ValueError, match=r"torch.bool \[10, C\]"):
        multi_label_probe(features, labels, features, protocol=STEP, seed=0)
    with pytest.raises(ValueError, match=r"ignored torch.bool \[10, 1\] expected, got torch.int64 \[10\]"):
        multi_label_probe(features, labels[:, None] > 0, features, protocol=STEP, seed=0, ignored=labels)
    with pytest.raises(ValueError, match="two classes"):
        logistic_regression(features, labels * 0, features, num_classes=3)
