"""Classification by clusters: each cluster of features stands for one class.

CompRes (Koohpayegani et al. 2020, https://arxiv.org/abs/2010.14713, section 4): the alignment is fitted on
the training set and applied to the test set.
"""

from __future__ import annotations

from raydistill.evaluation.classification import accuracy
from raydistill.lazy import Tensor, torch

_STARTS = 3


def cluster_alignment(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    seed: int,
) -> float:
    """Return the percentage of test samples whose cluster of training samples stands for their class.

    Section 4.1, "Cluster Alignment": k-means with one cluster for each class (of fewer samples than classes, each is
    one) on L2-normalised features, clusters matched to classes by ``cluster_to_class``. The best of 3 starts counts.

    Args:
        train_features: [M, D], finite, on any device; computed on the CPU.
        train_labels: [M], integers below ``num_classes``; only name the clusters.
        test_features: [N, D].
        test_labels: [N].
        num_classes: number of classes.
        seed: of the starts.

    Raises:
        ValueError: where sizes or numbers do not make sense.
    """
    before, after = k_means(train_features, test_features, clusters=num_classes, seed=seed)
    return alignment(before, train_labels, after, test_labels, num_classes=num_classes)


def alignment(before: Tensor, train_labels: Tensor, after: Tensor, test_labels: Tensor, *, num_classes: int) -> float:
    """Return the same of clusters that are there: those of training samples [M] and of test samples [N]."""
    classes = cluster_to_class(before, train_labels, num_classes=num_classes)
    return cluster_accuracy(after, test_labels.cpu(), classes)


def k_means(train_features: Tensor, test_features: Tensor, *, clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cluster L2-normalised training features [M, D], and put test features [N, D] into the nearest cluster.

    Returns:
        Clusters of both, int64 [M] and [N] on the CPU, below ``clusters`` or the number of training samples.
    """
    # scikit-learn is slow to import.
    from sklearn.cluster import KMeans

    kmeans = KMeans(min(clusters, len(train_features)), n_init=_STARTS, random_state=seed)
    before, after = (
        torch.nn.functional.normalize(side.float(), dim=1).cpu().numpy() for side in (train_features, test_features)
    )
    found = kmeans.fit_predict(before), kmeans.predict(after)
    return torch.from_numpy(found[0]).long(), torch.from_numpy(found[1]).long()


def cluster_to_class(clusters: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Return the class [K] that each cluster stands for.

    Clusters and classes are matched one to one (Hungarian algorithm) so that the summed purity
    |c and y| / |c| is largest. Purity, not the count: otherwise large clusters would decide for small ones.
    A cluster without samples gets a class that is left over; clusters beyond the number of classes get their
    own most frequent one.

    Args:
        clusters: [N], the cluster of each training sample.
        labels: [N], its class.
        num_classes: number of classes; K is this number or the highest cluster plus one, whichever is larger.

    Raises:
        ValueError: where there is no sample, the sizes differ or a number is out of range.
    """
    # scipy.optimize is slow to import, and every `import raydistill.functional` would pay for it.
    from scipy.optimize import linear_sum_assignment

    counts = _contingency(torch.as_tensor(clusters), torch.as_tensor(labels), num_classes)
    purity = counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)
    rows, columns = linear_sum_assignment(purity.numpy(), maximize=True)
    # An empty cluster that was not matched either has nothing of its own to go by.
    own = torch.where(counts.sum(dim=1) > 0, counts.argmax(dim=1), counts.sum(dim=0).argmax())
    own[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return own.to(torch.as_tensor(clusters).device)


def cluster_accuracy(clusters: Tensor, labels: Tensor, classes: Tensor) -> float:
    """Return the percentage of samples whose cluster stands for their label.

    Args:
        clusters: [N], the cluster of each test sample.
        labels: [N], its class.
        classes: [K] from ``cluster_to_class``. A cluster that it does not know counts as wrong.
    """
    clusters = clusters.to(classes.device, torch.int64)
    known = (clusters >= 0) & (clusters < len(classes))
    predicted = torch.where(known, classes[clusters.clamp(0, len(classes) - 1)], -1)
    return accuracy(predicted, labels)


def _contingency(clusters: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each cluster meets each class, [K, num_classes] in float64 on the CPU."""
    clusters, labels = clusters.to("cpu", torch.int64), labels.to("cpu", torch.int64)
    if clusters.ndim != 1 or clusters.shape != labels.shape or not len(labels):
        shapes = f"{list(clusters.shape)} and {list(labels.shape)}"
        raise ValueError(f"clusters [N] and labels [N] expected, got {shapes}")
    if int(clusters.min()) < 0 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"clusters must not be negative and labels must lie in [0, {num_classes})")
    num_clusters = max(num_classes, int(clusters.max()) + 1)
    pairs = torch.bincount(clusters * num_classes + labels, minlength=num_clusters * num_classes)
    return pairs.view(num_clusters, num_classes).double()
