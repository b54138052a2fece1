"""Classification with few labels: features were learnt without them, and only some images of a set have one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from raydistill.counter_rng import hash_bits, name_key
from raydistill.evaluation.classification import top_k_accuracy
from raydistill.evaluation.linear import COMPRESS, LinearProtocol, linear_probe
from raydistill.evaluation.neighbours import nearest_neighbour_accuracy
from raydistill.lazy import Tensor, torch

DRAWS = 10
SHARES = {"1%": 0.01, "10%": 0.1}


@dataclass(frozen=True)
class FewShot:
    """Percentages of test images classified rightly by their nearest labelled image.

    ``one_shot``: one labelled image a class, mean over the draws; ``one_shot_std``: its standard deviation over them
    (of a sample, n - 1). ``one_percent``, ``ten_percent``: so much of each class is labelled, drawn once.
    """

    one_shot: float
    one_shot_std: float
    one_percent: float
    ten_percent: float


def few_shot(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, *, seed: int
) -> FewShot:
    """Classify by the nearest labelled image by cosine, with the labels of few.

    CompRes (Koohpayegani et al. 2020, https://arxiv.org/abs/2010.14713), Table 3 and section 4.3, "Evaluation on
    smaller ImageNet": 1-shot over 10 draws, 1 % and 10 %.

    Args:
        train_features: [M, D].
        train_labels: integers [M].
        test_features: [N, D].
        test_labels: integers [N].
        seed: of the draws.

    Raises:
        ValueError: where sizes do not fit or features are not finite.
    """

    def accuracy(share: float, draw: int) -> float:
        rows = draw_labelled(train_labels, share, seed=seed, draw=draw).to(train_features.device)
        chosen = train_labels.to(train_features.device)[rows]
        return nearest_neighbour_accuracy(train_features[rows], chosen, test_features, test_labels)

    shots = [accuracy(0.0, draw) for draw in range(DRAWS)]
    percent = [accuracy(share, 0) for share in SHARES.values()]
    return FewShot(statistics.mean(shots), statistics.stdev(shots), *percent)


def linear_with_few_labels(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    seed: int,
    protocol: LinearProtocol = COMPRESS,
) -> dict[str, float]:
    """Train only a linear layer with 1 % and 10 % of the labels: CompRes, Table 6.

    The means and variances by which features are standardised are those of the labelled images.

    Returns:
        ``top1@1%``, ``top5@1%``, ``top1@10%`` and ``top5@10%`` in percent.

    Raises:
        ValueError: where sizes do not fit or features are not finite.
    """
    found: dict[str, float] = {}
    for name, share in SHARES.items():
        rows = draw_labelled(train_labels, share, seed=seed, draw=0).to(train_features.device)
        chosen = train_labels.to(train_features.device)[rows]
        logits = linear_probe(
            train_features[rows], chosen, test_features, protocol=protocol, num_classes=num_classes, seed=seed
        )
        found |= {f"top{k}@{name}": top_k_accuracy(logits, test_labels, k) for k in (1, 5)}
    return found


def draw_labelled(labels: Tensor, share: float, *, seed: int, draw: int) -> Tensor:
    """Draw a share of each class's samples, rounded, and at least one of each: a share of 0 is 1-shot.

    What is drawn depends on the seed, the draw and a sample's position alone; of one draw a smaller share lies within
    a larger one.

    Args:
        labels: integers [N].
        share: from 0 to 1.
        seed: of all draws.
        draw: which of them.

    Returns:
        Positions, ascending, int64 on the CPU.

    Raises:
        ValueError: where there is no sample or the share is out of range.
    """
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels [N] expected, got {list(labels.shape)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    _, classes, sizes = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    shuffled = hash_bits(seed, name_key("few_shot"), draw, torch.arange(len(labels))).argsort(stable=True)
    order = shuffled[classes[shuffled].argsort(stable=True)]  # class by class, each in random order
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[classes[order]]
    wanted = (share * sizes.double()).round().clamp(min=1)
    return order[place < wanted[classes[order]]].sort().values
