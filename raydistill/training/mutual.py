"""Networks that are trained together, each of them taught by all the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raydistill.counter_rng import hash_bits, name_key
from raydistill.errors import ConfigError
from raydistill.methods.base import Loss, Method, Outputs, Setting, Step
from raydistill.methods.objective import Objective
from raydistill.models.taps import Tapped
from raydistill.training import phases
from raydistill.training.distiller import Distiller

STUDENT = "student"


class MutualDistiller(Distiller):
    """Runs the student and its peers on every step; all have the same methods and learn from each other.

    Each network has an objective of its own, whose teachers are the other networks: their outputs of the same step,
    detached. Heads and memories are there for each pair, and a method's loss is the mean over the other networks, as
    in deep mutual learning (Zhang et al., CVPR 2018, https://arxiv.org/abs/1706.00384), so that its weight means the
    same for any number of them. All networks are updated at once, from outputs of one forward pass; that paper's
    Algorithm 1 updates them in turn, with fresh outputs of those already updated.

    Attributes:
        peers: the networks beside the student, by their names ``peer1``, ``peer2``, ...
        peer_objectives: theirs, by the same names.
    """

    def __init__(
        self, networks: Sequence[Tapped], methods: Mapping[str, Method], setting: Setting, image_shape: tuple[int, ...]
    ) -> None:
        """Build the objectives of all networks.

        Args:
            networks: the student and at least one peer.
            methods: label -> method, for every network.
            setting: the student's, which differs for the others in networks, shapes and seed.
            image_shape: (C, H, W) of what all networks see.

        Raises:
            ConfigError: where a method is impossible between these networks, or needs a stage before distillation.
        """
        settings = _settings(networks, setting, image_shape)
        objective, *others = [Objective(methods, own, mean_over_teachers=True) for own in settings]
        super().__init__(networks[0], objective)
        names = [f"peer{number}" for number in range(1, len(networks))]
        self.peers = nn.ModuleDict(dict(zip(names, networks[1:], strict=True)))
        self.peer_objectives = nn.ModuleDict(dict(zip(names, others, strict=True)))
        if stages := objective.stages(networks[0]):
            label = next(iter(stages)).partition("/")[0]
            raise ConfigError(
                f"methods.{label} trains a stage before distillation, from a teacher that has learnt already, which"
                " peers have not; leave out the method, or give a teacher in place of peers"
            )

    def forward(self, step: Step) -> Loss:
        """Return the sum of all networks' losses for a step without outputs of networks.

        The terms are the student's; those of the others have their names in front, as in ``peer1/kd``. ``loss`` is a
        network's own weighted total.
        """
        with self.phases(phases.STUDENT):
            outputs = {name: self._outputs(network, step) for name, network, _ in self._members()}
        with self.phases(phases.OBJECTIVE):
            return self._loss(step, outputs)

    def _loss(self, step: Step, outputs: Mapping[str, dict[int, Outputs]]) -> Loss:
        """The same from what each network said."""
        said = {name: _detached(views) for name, views in outputs.items()}
        losses: dict[str, Loss] = {}
        for name, _, objective in self._members():
            others = tuple(views for other, views in said.items() if other != name)
            losses[name] = objective(replace(step, student=outputs[name], teachers=others))
        terms = {
            term if name == STUDENT else f"{name}/{term}": value
            for name, loss in losses.items()
            for term, value in {"loss": loss.total.detach(), **loss.terms}.items()
        }
        total = torch.stack([loss.total for loss in losses.values()]).sum()
        return Loss(total, terms=terms, carry={name: loss.carry for name, loss in losses.items()})

    def after_step(self, carry: Mapping[str, Any]) -> None:
        """Let the methods of all networks update their state; to be called after the optimiser's step."""
        with self.phases(phases.OBJECTIVE):
            for name, network, objective in self._members():
                objective.after_step(network, carry[name])

    def _members(self) -> Iterator[tuple[str, nn.Module, Objective]]:
        """All networks with their names and objectives, the student first."""
        yield STUDENT, self.student, self.objective
        for name, network in self.peers.items():
            objective = self.peer_objectives[name]
            assert isinstance(objective, Objective)
            yield name, network, objective

    def _outputs(self, network: nn.Module, step: Step) -> dict[int, Outputs]:
        """What a network says, both for its own losses and as a teacher."""
        needs = self.objective.needs
        nothing: frozenset[str] = frozenset()
        return {
            view: network(
                step.views[view],
                outputs=tuple(sorted(needs.student.get(view, nothing) | needs.teacher.get(view, nothing))),
            )
            for view in sorted({*needs.student, *needs.teacher})
        }


def _settings(networks: Sequence[Tapped], setting: Setting, image_shape: tuple[int, ...]) -> list[Setting]:
    """The setting of each network, with all others as teachers and with initial weights of its own for heads."""
    channels, height, width = image_shape
    shapes = [network.shapes((channels, height, width)) for network in networks]
    return [
        replace(
            setting,
            student=shapes[number],
            teachers=tuple(other for place, other in enumerate(shapes) if place != number),
            student_network=network,
            seed=int(hash_bits(setting.seed, name_key("peer"), number)) if number else setting.seed,
        )
        for number, network in enumerate(networks)
    ]


def _detached(views: Mapping[int, Outputs]) -> dict[int, Outputs]:
    return {view: {name: value.detach() for name, value in outputs.items()} for view, outputs in views.items()}
