"""What is exported: a finished run's student, and the images that it is compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raydistill.config import Experiment, load_experiment
from raydistill.data.config import DataConfig
from raydistill.data.datasets import Splits, load_test, load_train, split_train
from raydistill.data.folder import class_names
from raydistill.data.image_set import ImageSet
from raydistill.data.resident import ResidentSet
from raydistill.errors import DataError
from raydistill.evaluation.card import refuse_sweep, trained_weights
from raydistill.exporting.deployed import Deployed, Description
from raydistill.models.loading import build_described
from raydistill.models.taps import EMBEDDING, LOGITS, Tapped


@dataclass(frozen=True)
class Subject:
    """A trained network and the images at hand.

    Attributes:
        run: the run's folder.
        images: test images, or training images where no test images can be read; on the CPU.
        on_test: which of the two they are.
        splits: the training images, where they can be read.
    """

    run: Path
    experiment: Experiment
    deployed: Deployed
    images: ResidentSet
    on_test: bool
    splits: Splits | None

    @property
    def student(self) -> Tapped:
        """The plain network, in evaluation mode."""
        return self.deployed.network

    @property
    def description(self) -> Description:
        """What the exported file says of itself."""
        return self.deployed.description

    @property
    def classifies(self) -> bool:
        """Whether a classifier was trained."""
        return LOGITS in self.description.outputs

    @property
    def images_are(self) -> str:
        """What to call the images."""
        return "test images" if self.on_test else "training images"


def read_run(path: Path) -> Subject:
    """Rebuild the student of a finished run, or the network of a teacher's run.

    Raises:
        DataError: where the folder holds no finished run, or neither test nor training images can be read.
        ConfigError, WeightsError: where the network cannot be rebuilt.
    """
    refuse_sweep(path, "export")
    weights = trained_weights(path)
    experiment = load_experiment(path / "config.yaml")
    images, on_test, train = _images(experiment.data, path)
    network = build_described(
        experiment.student.model_copy(update={"weights": str(weights)}), images.num_classes, images.shape[0]
    )
    description = Description(
        model=experiment.student.model,
        taps=experiment.student.taps,
        num_classes=images.num_classes,
        image_shape=images.shape,
        mean=images.mean,
        std=images.std,
        outputs=(LOGITS, EMBEDDING) if experiment.needs.trains_classifier else (EMBEDDING,),
        classes=class_names(experiment.data),
    )
    splits = None if train is None else split_train(train, experiment.data)
    return Subject(path, experiment, Deployed(network, description), ResidentSet(images, "cpu"), on_test, splits)


def _images(data: DataConfig, path: Path) -> tuple[ImageSet, bool, ImageSet | None]:
    """Return images to compare on, whether they are test images, and the training images if they can be read."""
    problems: list[str] = []

    def readable(load: Callable[[DataConfig], ImageSet]) -> ImageSet | None:
        try:
            return load(data)
        except DataError as error:
            problems.append(str(error))
            return None

    test, train = readable(load_test), readable(load_train)
    images = test or train
    if images is None:
        raise DataError(f"{path}: no images at hand to compare the exported student on: {problems[0]}")
    return images, test is not None, train
