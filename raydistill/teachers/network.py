"""The teacher as a network: built by name, loaded strictly, frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydistill.errors import ConfigError, did_you_mean
from raydistill.models.loading import build_described

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet
    from raydistill.models.taps import Tapped
    from raydistill.network_config import TeacherConfig

NO_TEACHER = "teacher: required by this command, but not given; name its model and weights in a section `teacher`"


def load_teacher(config: TeacherConfig, *, num_classes: int, in_channels: int) -> Tapped:
    """Build the teacher with its weights, in evaluation mode and without gradients.

    Raises:
        ConfigError: if no weights are named.
        WeightsError: if they are missing, unreadable or do not fit.
    """
    if not config.brings_weights:
        raise ConfigError(
            "teacher.weights: not given; train a teacher with `raydistill teacher CONFIG` "
            "or give the path of its weights"
        )
    return build_described(config, num_classes, in_channels, layout=config.layout).eval().requires_grad_(False)


def teacher_of(experiment: Experiment, images: ImageSet) -> Tapped:
    """Load the experiment's teacher for these images. Raises what ``load_teacher`` raises, and without one."""
    if experiment.teacher is None:
        raise ConfigError(NO_TEACHER)
    return load_teacher(experiment.teacher, num_classes=images.num_classes, in_channels=images.shape[0])


def output_shapes(
    network: Tapped, outputs: tuple[str, ...], image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each named output, without the batch, in the order of the names.

    Raises:
        ConfigError: if the network has no output of that name.
    """
    known = network.shapes(image_shape)
    for name in outputs:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"cache.outputs: the teacher has no output '{name}'{hint} (known: {', '.join(known)})")
    return {name: known[name] for name in outputs}
