"""Cluster classification: the student learns which cluster of the teacher's embeddings an image belongs to."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Stage, Step
from raydistill.methods.collectives import gather_rows, rank
from raydistill.methods.contrast import unit
from raydistill.methods.precision import at_least_float32, no_autocast


def nearest_center(rows: Tensor, centers: Tensor) -> Tensor:
    """Number of the center that is nearest to each row: [B, D], [K, D] -> int64 [B]."""
    centers = centers.to(rows)
    # |r - c|^2 without |r|^2, which is the same for all centers.
    return (centers.square().sum(dim=1) - 2 * rows @ centers.T).argmin(dim=1)


def fit_centers(rows: Tensor, clusters: int, *, iterations: int, seed: int) -> Tensor:
    """Centers of k-means (Lloyd's algorithm from a k-means++ start, scikit-learn): [N, D] -> [clusters, D]."""
    from sklearn.cluster import KMeans

    fitted = KMeans(clusters, n_init=1, max_iter=iterations, random_state=seed).fit(rows.numpy())
    return torch.from_numpy(fitted.cluster_centers_)


class ClusterClassification(Method):
    """Cross-entropy of a linear classifier on the student with the clusters of the teacher's embeddings.

    In one epoch before distillation the teacher's unit embeddings of the training images, as they are augmented
    in that epoch, are collected and divided into ``clusters`` by k-means. From then on an image belongs to the
    center nearest to its teacher embedding of the step, so that cluster and crop agree. Before that epoch the
    centers are random unit vectors.

    The paper gives no number of clusters; 1000 is what it uses to evaluate features. While they are collected the
    embeddings take 4 bytes a number in the memory of every worker; the first worker alone runs k-means.
    """

    name: ClassVar[str] = "cluster_cls"
    paper: ClassVar[str] = (
        "Noroozi et al., CVPR 2018, https://arxiv.org/abs/1805.00385; CC in Koohpayegani et al., NeurIPS 2020"
    )
    equation: ClassVar[str] = "-log softmax(W s + b)[argmin_k |t - c_k|]"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.3, 3.0]},
        "clusters": {"choice": [125, 250, 500, 1000, 2000]},
    }
    search_source: ClassVar[str] = (
        "Around the published values; as many clusters as an epoch of 5000 images can still fill."
    )

    clusters: Annotated[int, Field(ge=2)] = 1000
    iterations: Annotated[int, Field(ge=1)] = 100

    def needs(self) -> Needs:
        """Embeddings on both sides; before distillation the teacher's and the samples' positions."""
        return Needs.of_both_sides("embedding", columns=frozenset({"index"}))

    def refuses_mixing(self) -> str:
        """A mixed image has no cluster of its own, though the teacher would name one."""
        return "an image belongs to one cluster, and a mixed one lies between two"

    def check(self, setting: Setting) -> None:
        """An epoch must bring as many samples as there are clusters."""
        seen = setting.num_samples // setting.batch_size * setting.batch_size or setting.num_samples
        if self.clusters > seen:
            raise ConfigError(
                f"methods.{self.name}.clusters: {self.clusters} is too many for the {seen} samples of an epoch; "
                "lower it"
            )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The student's classifier of clusters, trained; the centers and the seed of k-means."""
        from raydistill.methods.state import Value, seeded

        with seeded(setting.seed):
            classifier = nn.Linear(setting.student["embedding"][0], self.clusters)
            centers = F.normalize(torch.randn(self.clusters, setting.teacher["embedding"][0]), dim=1)
        return nn.ModuleDict(
            {"classifier": classifier, "centers": Value(centers), "seed": Value(torch.tensor(setting.seed))}
        )

    def pretraining(self, parts: Any, student: nn.Module) -> Stage:
        """One epoch that looks at the teacher's embeddings, then k-means."""
        found: dict[str, list[Tensor]] = {"index": [], "rows": []}

        def collect(step: Step) -> Loss:
            rows = unit(step.teacher[0]["embedding"]).float()
            found["index"].append(gather_rows(step.columns["index"]).cpu())
            found["rows"].append(gather_rows(rows).cpu())
            return Loss(rows.new_zeros(()))

        def fit() -> None:
            # In the order of the training set, so that the epoch's shuffling does not decide the clusters.
            order = torch.cat(found["index"]).argsort()
            rows = torch.cat(found["rows"])[order]
            found.clear()
            centers: Tensor = parts["centers"].value
            fitted = torch.zeros_like(centers)
            if rank() == 0:
                seed = int(parts["seed"].value)
                fitted.copy_(fit_centers(rows, self.clusters, iterations=self.iterations, seed=seed))
            parts["centers"].set(gather_rows(fitted)[: self.clusters])

        needs = Needs(teacher={0: frozenset({"embedding"})}, columns=frozenset({"index"}))
        return Stage(epochs=1, trains=(), loss=collect, needs=needs, finish=fit)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch."""
        logits = parts["classifier"](step.student[0]["embedding"])
        with no_autocast(logits):
            cluster = nearest_center(unit(step.teacher[0]["embedding"]), parts["centers"].value)
            return Loss(F.cross_entropy(at_least_float32(logits), cluster))
