"""What the workers send each other in a step: counted on gloo ranks, against the formulae of docs/scaling.md.

    python experiments/benchmarks/volumes.py [--ranks 2] [--batch 24] [--json]

Every method trains a small student by the real step. Each collective call adds the bytes that one rank hands to it:
rows to all-gathers, which every other rank receives, sums to all-reduces, and the gradients, which are all-reduced too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from raydistill.config import Experiment, parse_experiment
from raydistill.methods.crops import GLOBAL_CROPS
from raydistill.methods.registry import METHODS
from raydistill.models.batch_norm import GlobalBatchNorm
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.training.assembly import assemble
from raydistill.training.material import prepare
from raydistill.training.session import Session
from raydistill.training.step import descend

FLOAT, INT = 4, 8
BATCH = 24


@dataclass(frozen=True)
class Sizes:
    """Widths of embeddings d_s and d_t, classes C, and numbers in the last stage's maps of both sides."""

    student: int
    teacher: int
    classes: int
    maps: int = 0


@dataclass(frozen=True)
class Volume:
    """Bytes that one rank hands over in a step."""

    gathered: int = 0
    summed: int = 0
    gradients: int = 0

    def through_a_link(self, ranks: int) -> float:
        """Bytes that pass each link of a ring in one direction, which is what each rank sends, and receives."""
        return (ranks - 1) * self.gathered + 2 * (ranks - 1) / ranks * (self.summed + self.gradients)


Bytes = Callable[[Any, Sizes], int]


def nothing(method: Any, sizes: Sizes) -> int:
    return 0


@dataclass(frozen=True)
class Exchange:
    """What a method's workers hand over in each micro-batch, from its hyper-parameters and the sizes.

    Attributes:
        text: numbers that are gathered of each image.
        row: bytes that are gathered of each image of a rank.
        once: bytes that are gathered of each rank.
        summed: bytes that are all-reduced.
    """

    text: str
    row: Bytes = nothing
    once: Bytes = nothing
    summed: Bytes = nothing

    def volume(self, method: Any, sizes: Sizes, rows: int, micro_batches: int = 1) -> Volume:
        """Of a rank with so many images of the step."""
        once, summed = self.once(method, sizes), self.summed(method, sizes)
        return Volume(rows * self.row(method, sizes) + micro_batches * once, micro_batches * summed)


def balanced(method: Any, sizes: Sizes) -> int:
    """The scores from which ProtoCPC's mode balances."""
    prototypes = {"supervised": sizes.classes, "compress": method.prototypes, "self": GLOBAL_CROPS * method.prototypes}
    return FLOAT * prototypes[method.mode]


EXCHANGES = {
    "cc": Exchange("2 n", lambda method, sizes: FLOAT * 2 * method.dimension),
    "cocord": Exchange("n", lambda method, sizes: FLOAT * method.dimension),
    "compress": Exchange(
        "d_s + d_t", lambda method, sizes: FLOAT * (sizes.teacher + (sizes.student if method.queues == "2q" else 0))
    ),
    "crd": Exchange(
        "2 n + an index",
        lambda method, sizes: INT + FLOAT * 2 * method.dimension,
        once=lambda method, sizes: 2 * FLOAT if method.variant == "code" else 0,
    ),
    "dino": Exchange("0", summed=lambda method, sizes: 2 * FLOAT * method.prototypes),
    "dist": Exchange("2 C", lambda method, sizes: FLOAT * 2 * sizes.classes),
    "gckt": Exchange(
        "2 n + an index",
        lambda method, sizes: INT + FLOAT * 2 * method.dimension,
        once=lambda method, sizes: 2 * FLOAT,
    ),
    "info_nce": Exchange("2 n + an index", lambda method, sizes: INT + FLOAT * 2 * method.dimension),
    "lckt": Exchange("2 d_t", lambda method, sizes: FLOAT * 2 * sizes.teacher),
    "moco_v2": Exchange("n", lambda method, sizes: FLOAT * method.dimension),
    "pkt": Exchange("d_s + d_t", lambda method, sizes: FLOAT * (sizes.student + sizes.teacher)),
    "protocpc": Exchange(
        "C, K or 2 K",
        balanced,
        summed=lambda method, sizes: FLOAT * method.prototypes * ((method.mode != "supervised") + method.centering),
    ),
    "reg_bn": Exchange("2 d_t", lambda method, sizes: FLOAT * 2 * sizes.teacher),
    "rkd": Exchange("d_s + d_t", lambda method, sizes: FLOAT * (sizes.student + sizes.teacher)),
    "seed": Exchange("d_t", lambda method, sizes: FLOAT * sizes.teacher),
    "sp": Exchange("maps", lambda method, sizes: FLOAT * sizes.maps),
    "sskd": Exchange(
        "6 C + 4 (d_s + d_t) + a label",
        lambda method, sizes: INT + FLOAT * (6 * sizes.classes + 4 * (sizes.student + sizes.teacher)),
    ),
    "swav": Exchange(
        "2 (K + n)",
        lambda method, sizes: FLOAT * GLOBAL_CROPS * (method.prototypes + (method.dimension if method.queue else 0)),
        summed=lambda method, sizes: FLOAT * method.prototypes,
    ),
    "wcord": Exchange(
        "2 n + 2 d_t + an index",
        lambda method, sizes: INT + FLOAT * 2 * (method.dimension + sizes.teacher),
        once=lambda method, sizes: 2 * FLOAT,
    ),
}
"""n: width of the method's own embedding, K: prototypes. Methods that are not named exchange nothing but gradients."""


def exchange_of(name: str) -> Exchange:
    return EXCHANGES.get(name, Exchange("0"))


def batch_norm_bytes(channels: int) -> int:
    """All-reduced by a synchronised batch-norm in a pass and its way back: sums, squared distances, a count."""
    return FLOAT * 2 * (2 * channels + 1)


LOCAL = {"local_crops": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "ab": {"weight": 1.0},
    "cc": {"dimension": 8},
    "cluster_cls": {"clusters": 4},
    "cocord": {"queue": 40, "hidden": 9, "dimension": 8, "predictor_hidden": 4},
    "compress": {"queue": 40},
    "dino": {"prototypes": 11, "hidden": 9, "bottleneck": 5, **LOCAL},
    "fsp": {"weight": 1.0},
    "moco_v2": {"queue": 40, "hidden": 9, "dimension": 8},
    "seed": {"queue": 40},
    "swav": {"prototypes": 11, "hidden": 9, "dimension": 8, **LOCAL},
} | {name: {"negatives": 5, "dimension": 8} for name in ("crd", "gckt", "info_nce", "wcord")}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "compress 1q": ("compress", {"queues": "1q"}),
    "crd paper": ("crd", {"variant": "paper"}),
    "protocpc compress": ("protocpc", {"mode": "compress", "prototypes": 11, "hidden": 9, **LOCAL}),
    "protocpc self": ("protocpc", {"mode": "self", **SETTINGS["dino"]}),
    "swav with queue": ("swav", {"queue": 12, "queue_from": 0}),
}
TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "seed in 2 micro-batches": ("seed", {"train": {"accumulate": 2}}),
    "crd in 2 micro-batches": ("crd", {"train": {"accumulate": 2}}),
    "kd, SyncBN": ("kd", {"scale": {"sync_batch_norm": True}}),
}
"""Cases of a method's settings, and of other sections of the experiment."""
SAME_MAPS = {"fsp", "kdsvd"}
"""Methods for which student and teacher need maps of the same shapes."""


def cases() -> dict[str, tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """Label -> method, its settings, and what else is set."""
    alone = {name: (name, SETTINGS.get(name, {}), {}) for name in METHODS}
    variants = {label: (name, SETTINGS.get(name, {}) | more, {}) for label, (name, more) in VARIANTS.items()}
    return alone | variants | {label: (name, SETTINGS.get(name, {}), more) for label, (name, more) in TRAINING.items()}


def experiment_of(label: str, folder: Path, ranks: int, batch: int) -> Experiment:
    """A resnet8 and a teacher without training, on digits; only their shapes matter."""
    name, settings, more = cases()[label]
    teacher = "resnet14" if name in SAME_MAPS else "wrn_16_2"
    return parse_experiment(
        {
            "name": "volumes",
            "output": str(folder),
            "data": {"name": "digits", "subset": 120, "validation": 0.2},
            "student": {"model": "resnet8"},
            "teacher": {"model": teacher, "weights": str(folder / f"{teacher}.safetensors"), "source": "live"},
            "methods": {name: settings},
            "train": {"epochs": 1, "batch_size": batch, **more.get("train", {})},
            "scale": {"workers": ranks, **more.get("scale", {})},
        }
    )


COLLECTIVES = ("all_gather", "all_gather_into_tensor", "all_reduce", "all_to_all", "all_to_all_single", "broadcast")
COLLECTIVES += ("gather", "reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter")


@contextmanager
def counting(found: Counter[str]) -> Iterator[None]:
    """Add the bytes that this rank hands to each of torch's collectives, by their names."""
    kept = {name: getattr(distributed, name) for name in COLLECTIVES}

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            # The pieces that an all-gather fills come first, what this rank gives to it second.
            found[name] += arguments[1 if name.startswith("all_gather") else 0].nbytes
            return kept[name](*arguments, **named)

        return call

    for name in COLLECTIVES:
        setattr(distributed, name, counted(name))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(distributed, name, function)


def wrapped(module: nn.Module, found: Counter[str], *, all_used: bool) -> nn.Module:
    """Wrap as the product does, and add the bytes of gradients that it exchanges, which happens beneath Python."""
    sum_over_ranks = distributed.all_reduce
    model = DistributedDataParallel(module, forward_sync_buffers=False, find_unused_parameters=not all_used)

    def exchange(state, bucket):  # torch wants its own types here, or none
        gradients = bucket.buffer()
        found["gradients"] += gradients.nbytes
        work = sum_over_ranks(gradients.div_(distributed.get_world_size()), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    model.register_comm_hook(None, exchange)
    return model


def count(label: str, folder: Path, batch: int) -> tuple[dict[str, int], dict[str, int]]:
    """Run two steps on this rank; return the bytes of the second, and what the formulae say."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    experiment = experiment_of(label, folder, ranks, batch)
    found: Counter[str] = Counter()
    session = assemble(
        experiment,
        prepare(experiment),
        device=torch.device("cpu"),
        rank=rank,
        world_size=ranks,
        wrap=lambda module: wrapped(module, found, all_used=experiment.needs.trains_classifier),
    )
    session.model.train()
    steps = session.steps(0)
    descend(session, next(steps))  # here the wrapper still sorts its buckets
    found.clear()
    with counting(found):
        descend(session, next(steps))
    reckoned = reckon(label, session)
    named = {"all_gather": reckoned.gathered, "all_reduce": reckoned.summed, "gradients": reckoned.gradients}
    return {name: found[name] for name in {*named} | {*found}}, named


def reckon(label: str, session: Session) -> Volume:
    """What a step of a session should take, by the formulae."""
    (name, _, _), experiment = cases()[label], session.experiment
    student = session.distiller.student.shapes(session.data.shape)
    teacher = session.teachers[0].shapes if session.teachers else student
    maps = sum(torch.Size(shapes["features/3"]).numel() for shapes in (student, teacher) if "features/3" in shapes)
    shares = session.batching.shares(0)
    volume = exchange_of(name).volume(
        experiment.methods[name],
        Sizes(student["embedding"][0], teacher.get("embedding", (0,))[0], student["logits"][0], maps),
        rows=sum(max(each) for each in shares),
        micro_batches=len(shares),
    )
    norms = [part for part in session.distiller.modules() if isinstance(part, GlobalBatchNorm)]
    trained = sum(value.numel() for value in session.distiller.parameters() if value.requires_grad)
    return Volume(
        volume.gathered,
        volume.summed + sum(batch_norm_bytes(part.num_features) for part in norms),
        FLOAT * trained,
    )


def run_rank(rank: int, ranks: int, labels: list[str], batch: int, folder: str) -> None:
    """One process: count all cases and save what was found."""
    torch.set_num_threads(1)
    path = Path(folder)
    distributed.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=ranks)
    found = {label: count(label, path, batch) for label in labels}
    (path / f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def counted(labels: list[str], ranks: int, batch: int, folder: Path) -> list[dict[str, Any]]:
    """Label -> [counted, reckoned], of each rank."""
    for name in ("resnet14", "wrn_16_2"):
        save_weights(build_model(name, 10, in_channels=1), folder / f"{name}.safetensors")
    multiprocessing.spawn(run_rank, args=(ranks, labels, batch, str(folder)), nprocs=ranks)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=BATCH, help="images in a global batch")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = counted([*cases()], given.ranks, given.batch, Path(folder))
    if given.json:
        print(json.dumps(found))
        return
    print(f"{given.ranks} ranks, {given.batch} images: bytes that a rank hands over in a step")
    print(f"{'':<26}{'numbers of a row':<32}{'all-gather':>11}{'all-reduce':>12}{'gradients':>11}")
    for label, (mine, reckoned) in found[0].items():
        same = all(rank[label] == [mine, mine] for rank in found)
        verdict = "as reckoned" if same else f"MISSED, reckoned: {reckoned}"
        text = exchange_of(cases()[label][0]).text
        numbers = f"{mine['all_gather']:>11}{mine['all_reduce']:>12}{mine['gradients']:>11}"
        print(f"{label:<26}{text:<32}{numbers}  {verdict}")


if __name__ == "__main__":
    main()
