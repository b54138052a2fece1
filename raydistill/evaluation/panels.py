"""What a report shows images of: whom networks see as nearest, and what lies together in clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from raydistill.counter_rng import hash_bits, name_key
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.evaluation.subject import Subject

QUERIES, NEAREST = 8, 7
CLUSTERS, MEMBERS = 6, 8


class Query(BaseModel):
    """A test image, and the training images that each network sees nearest to it, the nearest first; all by id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: int
    nearest: dict[str, list[int]]


class Panels(BaseModel):
    """Ids of images to be shown; ``clusters`` are some training images of some of the student's clusters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    neighbours: list[Query] = []
    clusters: list[list[int]] = []


def panels_of(subjects: Mapping[str, Subject]) -> Panels:
    """Choose what to show of networks whose embeddings are known; of clusters, where they were made.

    Queries lie evenly over the test images, clusters and their members are drawn by the run's seed: nobody has chosen
    them by how they look, as in CompRes (Koohpayegani et al. 2020, Figure 3c).
    """
    student = next(iter(subjects.values()))
    known = {role: subject for role, subject in subjects.items() if subject.knows_embeddings}
    return Panels(
        neighbours=_neighbours(known) if known else [],
        clusters=[] if student.clusters is None else _members(student.clusters, student.bank.ids, student.seed),
    )


def _neighbours(subjects: Mapping[str, Subject]) -> list[Query]:
    from raydistill.evaluation.features import spread
    from raydistill.evaluation.neighbours import nearest

    test = next(iter(subjects.values())).test
    chosen = spread(len(test), QUERIES).to(test.device)
    found: dict[str, list[list[int]]] = {}
    for role, subject in subjects.items():
        bank, queries = subject.output("bank", "embedding"), subject.output("test", "embedding")[chosen]
        rows = torch.cat([index for _, index in nearest(bank, queries, NEAREST)])
        found[role] = subject.bank.ids[rows].tolist()
    return [
        Query(query=query, nearest={role: of_queries[number] for role, of_queries in found.items()})
        for number, query in enumerate(test.ids[chosen].tolist())
    ]


def _members(clusters: Tensor, ids: Tensor, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(int(hash_bits(seed, name_key("panels"))))
    numbers = torch.unique(clusters)
    drawn = numbers[torch.randperm(len(numbers), generator=generator)[:CLUSTERS]]
    found = []
    for number in drawn.tolist():
        members = ids.cpu()[clusters.cpu() == number]
        found.append(members[torch.randperm(len(members), generator=generator)[:MEMBERS]].tolist())
    return found
