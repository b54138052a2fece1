"""A network that is measured, with the images it is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from raydistill.data.resident import ResidentSet
from raydistill.evaluate_config import EvaluateConfig
from raydistill.evaluation.features import extract_all
from raydistill.models.taps import Tapped

BANK, TEST = "bank", "test"


@dataclass
class Subject:
    """A network and its outputs, each computed once.

    Attributes:
        network: in evaluation mode, on the device of the images.
        bank: labelled images that nearest neighbours are looked for among, and on which classifiers of its features are
            fitted; no test or validation images.
        test: labelled images that it is judged by.
        classifies: whether its own classifier was trained for these classes.
        settings: the experiment's section ``evaluate``.
        seed: of what is drawn, such as the first centres of clusters.
        teacher: who it is compared with, on the same images.
        clusters: of each image of the bank, where its features were clustered: int64 [N].
    """

    network: Tapped
    bank: ResidentSet
    test: ResidentSet
    classifies: bool
    settings: EvaluateConfig
    seed: int
    teacher: Subject | None = None
    clusters: Tensor | None = None
    _seen: dict[str, Tensor] = field(default_factory=dict)

    def see(self, outputs: Iterable[str]) -> None:
        """Compute outputs such as ``test/logits`` that are not there yet, all of one part in one pass over it."""
        missing = [name for name in outputs if not self.seen(name)]
        for part in (BANK, TEST):
            names = [name.removeprefix(f"{part}/") for name in missing if name.startswith(f"{part}/")]
            if names:
                found = self._pass(part, names)
                self._seen |= {f"{part}/{name}": value for name, value in found.items()}

    def seen(self, output: str) -> bool:
        """Whether an output such as ``test/logits`` was computed."""
        return output in self._seen

    @property
    def knows_embeddings(self) -> bool:
        """Whether those of all images were computed."""
        return all(self.seen(f"{part}/embedding") for part in (BANK, TEST))

    def output(self, part: str, name: str) -> Tensor:
        """Return ``name`` [N, ...] on ``part`` (``bank`` or ``test``)."""
        self.see([f"{part}/{name}"])
        return self._seen[f"{part}/{name}"]

    def stage(self, part: str, name: str) -> Tensor:
        """Return ``features/<i>`` as pooled vectors [N, D]; not kept, as those of all stages would fill the memory."""
        return self._pass(part, [name])[name]

    def labels(self, part: str) -> Tensor:
        """Return the labels of ``part``, int64 [N]."""
        labels = self._images(part).labels
        assert labels is not None
        return labels

    def targets(self, part: str) -> Tensor:
        """Return which classes images of ``part`` show: int8 [N, C], as ``ImageSet.targets``."""
        targets = self._images(part).targets
        assert targets is not None
        return targets

    def _images(self, part: str) -> ResidentSet:
        return self.bank if part == BANK else self.test

    def _pass(self, part: str, names: list[str]) -> dict[str, Tensor]:
        return extract_all(self.network, self._images(part), names, batch_size=self.settings.batch_size)
