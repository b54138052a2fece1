"""What computes shards: an actor of Ray's that holds the teacher."""

from __future__ import annotations

import time
from typing import Any

from raydistill.errors import RaydistillError, WeightsError
from raydistill.teachers.cache import store
from raydistill.teachers.cache.counting import SECONDS_BETWEEN_COUNTS
from raydistill.teachers.cache.manifest import Content
from raydistill.teachers.cache.shards import Place


class ShardActor:
    """Holds the teacher and computes shards; errors travel as rows, so that the driver raises them unchanged."""

    def __init__(self, job: dict[str, Any]) -> None:
        """Take what ``build`` knows of the cache; the teacher is loaded with the first shard."""
        self._job = job
        self._source: Any = None
        self._uncounted, self._counted = 0, time.monotonic()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Compute one shard: its place -> its record, or the name and text of an error."""
        from raydistill.teachers.cache.compute import compute_shard

        place = Place(**{name: batch[name][0].item() for name in ("view", "first", "rows")}, key=str(batch["key"][0]))
        try:
            self._source = self._source or self._load()
            record = compute_shard(self._source, store.location(self._job["folder"]), place)
            self._send_count()
        except RaydistillError as error:
            return {"error": [type(error).__name__], "text": [str(error)]}
        return {"error": [""], "text": [record.model_dump_json()]}

    def _load(self) -> Any:
        """Read the teacher's weights and map the images; in the constructor, Ray would retry what fails."""
        import ray
        import torch

        from raydistill.data.shared import from_parts
        from raydistill.models.weights import weights_fingerprint
        from raydistill.network_config import TeacherConfig
        from raydistill.teachers.cache.compute import Source
        from raydistill.teachers.network import load_teacher

        job = self._job
        torch.set_num_threads(int(job["cpus"]))
        content = Content.model_validate_json(job["content"])
        config = TeacherConfig.model_validate_json(job["teacher"]).model_copy(update={"weights": job["weights"]})
        channels = content.preprocessing.image_shape[0]
        device = torch.device("cuda" if job["gpu"] else "cpu")
        network = load_teacher(config, num_classes=job["num_classes"], in_channels=channels)
        if weights_fingerprint(network) != content.teacher.weights:
            raise WeightsError(
                f"teacher.model = {config.model}: it has other weights in each process; a function must load its "
                f"weights, or teacher.weights name them"
            )
        network = network.to(device)
        if device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)
        parts, partners = ray.get([job["images"], job["partners"]])
        return Source(content, from_parts(parts), network, config.batch_size, device, partners, self._count)

    def _count(self, rows: int) -> None:
        self._uncounted += rows
        if time.monotonic() - self._counted > SECONDS_BETWEEN_COUNTS:
            self._send_count()

    def _send_count(self) -> None:
        self._job["counter"].add.remote(self._uncounted)
        self._uncounted, self._counted = 0, time.monotonic()
