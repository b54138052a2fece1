"""Linear classifiers on frozen features: how much of the classes a plane can tell apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from raydistill.evaluation.neighbours import check_features
from raydistill.lazy import F, Tensor, torch

_VARIANCE_FLOOR = 1e-5
_LBFGS_ITERATIONS = 300

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LinearProtocol:
    """How a linear layer is trained on frozen features by SGD.

    Attributes:
        lr: the learning rate of the first epoch.
        epochs: passes over the training set.
        batch_size: samples of a step; an epoch's last one may have fewer.
        momentum: of SGD.
        weight_decay: on weights and biases.
        l2_norm: divide each sample by its L2 norm.
        standardise: then give each dimension the mean 0 and variance 1 that the training set's features set.
        milestones: epochs before which the rate is multiplied by ``factor``; ``None`` lets it fall to 0 by a cosine.
        factor: see ``milestones``.
    """

    lr: float
    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    l2_norm: bool = False
    standardise: bool = False
    milestones: tuple[int, ...] | None = None
    factor: float = 0.1

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, the first of which is 0."""
        if self.milestones is None:
            return self.lr * (1.0 + math.cos(math.pi * epoch / self.epochs)) / 2.0
        return self.lr * float(self.factor) ** sum(epoch >= milestone for milestone in self.milestones)


COMPRESS = LinearProtocol(
    lr=0.01,
    epochs=40,
    batch_size=256,
    momentum=0.9,
    weight_decay=1e-4,
    l2_norm=True,
    standardise=True,
    milestones=(15, 30),
)
"""CompRes, https://arxiv.org/abs/2010.14713, section 4.1, "Linear classifier"; said there for all its linear layers.

Departures: the authors' code (UMBCvision/CompRess) trains on random crops and flips, where frozen features are of the
evaluation view, and names the best epoch by the validation set; here the last one counts. As there, 1e-5 is added to
each variance.
"""

PROTOCPC = LinearProtocol(lr=0.3, epochs=100, batch_size=256, momentum=0.9, weight_decay=0.0)
"""ProtoCPC (ICLR 2022), appendix A.3.4, self-supervised compression.

The paper names neither momentum nor a normalisation: 0.9 is that of DINO's linear evaluation, on whose code it builds,
and features stay as they are. Departure: no random crops and flips, since frozen features are of the evaluation view.
"""

PROTOCPC_SELF = LinearProtocol(lr=0.004, epochs=100, batch_size=1024, momentum=0.9, weight_decay=0.0)
"""ProtoCPC, appendix A.4, self-distillation: that of DINO, from whose code "most of our implementation is borrowed".

DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294, section 4 and ``eval_linear.py``): batches of 1024, no weight
decay, a cosine from 0.001 for every 256 samples of a batch. Departures: its authors try several rates for each network
and name the best epoch by the validation set; they train on random crops and flips; and of a small vision transformer
they join the class tokens of the last four blocks, where here the embedding is alone.
"""


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    protocol: LinearProtocol,
    num_classes: int,
    seed: int,
) -> Tensor:
    """Train a linear layer with cross entropy by SGD and return its logits [N, num_classes], float32.

    The layer starts from zero, where no class is preferred; its loss is convex. The seed decides the order of samples.

    Args:
        train_features: [M, D].
        train_labels: integers [M] below ``num_classes``.
        test_features: [N, D], on the device of the training features.
        protocol: such as ``COMPRESS``.
        num_classes: columns of the result.
        seed: of the order of training samples, which is the same on all devices.

    Raises:
        ValueError: where sizes, labels or features do not make sense.
    """
    check_features(train_features, test_features)
    labels = _checked_labels(train_features, train_labels, num_classes)
    return _trained(
        train_features, labels, test_features, F.cross_entropy, protocol=protocol, outputs=num_classes, seed=seed
    )


def multi_label_probe(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    *,
    protocol: LinearProtocol,
    seed: int,
    ignored: Tensor | None = None,
) -> Tensor:
    """Train a linear layer that scores each class by itself and return its logits [N, C], float32.

    Of CompRes' classification of VOC07 (Table 7) the paper says that only a linear classifier on top of the frozen
    network is trained, and of all its linear layers how: by ``COMPRESS``. The loss is binary cross entropy, summed over
    classes and averaged over samples, so that no class's training depends on how many others there are.

    Args:
        train_features: [M, D].
        train_targets: bool [M, C], which classes a sample shows.
        test_features: [N, D], on the device of the training features.
        protocol: such as ``COMPRESS``.
        seed: of the order of training samples.
        ignored: bool [M, C], where a sample has no part in a class's loss, such as those that VOC2007 marks as
            difficult.

    Raises:
        ValueError: where sizes or features do not make sense.
    """
    check_features(train_features, test_features)
    if train_targets.ndim != 2 or len(train_targets) != len(train_features) or train_targets.dtype != torch.bool:
        given = f"{train_targets.dtype} {list(train_targets.shape)}"
        raise ValueError(f"train_targets torch.bool [{len(train_features)}, C] expected, got {given}")
    if ignored is not None and (ignored.shape != train_targets.shape or ignored.dtype != torch.bool):
        given = f"{ignored.dtype} {list(ignored.shape)}"
        raise ValueError(f"ignored torch.bool {list(train_targets.shape)} expected, got {given}")
    signs = 2.0 * train_targets.to(train_features.device, torch.float32) - 1.0
    if ignored is not None:
        signs[ignored.to(signs.device)] = 0.0
    return _trained(
        train_features, signs, test_features, _each_class, protocol=protocol, outputs=signs.shape[1], seed=seed
    )


def logistic_regression(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, *, num_classes: int
) -> Tensor:
    """Fit scikit-learn's logistic regression (L-BFGS, C = 1) on standardised features and return its logits.

    Faster than a protocol's SGD, and what it finds is no paper's. At most 300 iterations: separable classes never
    converge, and all networks that are compared get the same number.

    Args:
        train_features: [M, D], on any device; computed on the CPU.
        train_labels: integers [M] below ``num_classes``, of two classes at least.
        test_features: [N, D].
        num_classes: columns of the result.

    Returns:
        [N, num_classes] on the CPU; minus infinity for classes without a training sample.

    Raises:
        ValueError: where sizes, labels or features do not make sense.
    """
    # scikit-learn is slow to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_features(train_features, test_features)
    labels = _checked_labels(train_features, train_labels, num_classes).cpu()
    seen = torch.unique(labels)
    if len(seen) < 2:
        raise ValueError(f"train_labels of two classes at least expected, all are {int(seen)}")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_LBFGS_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train_features.detach().cpu().numpy(), labels.numpy())
    scores = torch.from_numpy(model.decision_function(test_features.detach().cpu().numpy()))
    if scores.ndim == 1:  # of two classes: the second one's odds
        scores = torch.stack([torch.zeros_like(scores), scores], dim=1)
    logits = scores.new_full((len(scores), num_classes), float("-inf"))
    logits[:, seen] = scores
    return logits


def _each_class(logits: Tensor, signs: Tensor) -> Tensor:
    """Binary cross entropy of classes that are shown (1) and not (-1); those of sign 0 do not count."""
    targets, weight = (signs > 0).float(), signs.abs()
    return F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum") / len(logits)


def _trained(
    train_features: Tensor,
    targets: Tensor,
    test_features: Tensor,
    loss: Loss,
    *,
    protocol: LinearProtocol,
    outputs: int,
    seed: int,
) -> Tensor:
    features, queries = _normalised(train_features, test_features, protocol)
    weight = torch.zeros(outputs, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(outputs, device=features.device, requires_grad=True)

    def loss_of(rows: Tensor) -> Tensor:
        return loss(F.linear(features[rows], weight, bias), targets[rows])

    descend([weight, bias], loss_of, len(features), protocol=protocol, seed=seed)
    return F.linear(queries, weight, bias).detach()


def descend(
    parameters: list[Tensor], loss_of: Callable[[Tensor], Tensor], count: int, *, protocol: LinearProtocol, seed: int
) -> None:
    """Train in place by the protocol's SGD; the seed decides the order of rows, the same on all devices.

    Args:
        parameters: that take gradients.
        loss_of: rows int64 [B], on the parameters' device -> the loss of a batch.
        count: of rows.
        protocol: learning rates, epochs and size of a batch.
        seed: of the order.
    """
    optimizer = torch.optim.SGD(
        parameters, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for epoch in range(protocol.epochs):
            optimizer.param_groups[0]["lr"] = protocol.rate(epoch)
            order = torch.randperm(count, generator=generator).to(parameters[0].device)
            for rows in torch.split(order, protocol.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(loss_of(rows))
                optimizer.step()


def _normalised(train: Tensor, test: Tensor, protocol: LinearProtocol) -> tuple[Tensor, Tensor]:
    train, test = train.detach().float(), test.detach().float()
    if protocol.l2_norm:
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    if protocol.standardise:
        variance, mean = torch.var_mean(train, dim=0, correction=0)
        scale = (variance + _VARIANCE_FLOOR).rsqrt()
        train, test = (train - mean) * scale, (test - mean) * scale
    return train, test


def _checked_labels(train_features: Tensor, train_labels: Tensor, num_classes: int) -> Tensor:
    if train_labels.shape != train_features.shape[:1]:
        raise ValueError(f"train_labels [{len(train_features)}] expected, got {list(train_labels.shape)}")
    low, high = int(train_labels.min()), int(train_labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"train_labels must lie in [0, {num_classes}), got [{low}, {high}]")
    return train_labels.to(train_features.device, torch.int64)
