"""The section ``cache`` of an experiment: what is kept of the teacher, who computes it, and how it is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydistill.section import Count, PathText, Positive, Section


class CacheConfig(Section):
    """What is kept of the teacher: ``views`` replayable augmentations beside the evaluation view, and which outputs.

    ``root`` is a folder or the URL of one, as ``s3://bucket/folder``; credentials come from the environment (AWS_...).
    ``seed`` decides the pixels of those views; it is not the experiment's seed, so that all seeds share one cache.
    ``int8`` keeps a scale for each row: no number is off by more than 1/254 of the row's largest. ``top_k`` keeps the
    largest logits alone, for methods that can live with it; ``raydistill cache plan`` says which cannot. ``actors`` is
    a number, or the least and the most between which the pool grows with its work and Ray's cluster; several of them
    share a GPU where ``gpus_per_actor`` is below 1. What is not given is chosen from what Ray has.

    ``read`` says where training keeps the rows: on its device (``resident``), once for each node (``shared``) or on the
    disk, read ahead of the steps (``stream``); ``auto`` takes the first that has room. Results are the same.
    """

    root: PathText = "cache"
    outputs: Annotated[tuple[str, ...], Field(min_length=1)] = ("logits", "embedding")
    views: Annotated[int, Field(ge=0, le=1000)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dtype: Literal["float16", "float32", "int8"] = "float16"
    compression: Literal["none", "zstd"] = "none"
    top_k: Count | None = None
    shard_rows: Count = 8192
    actors: Count | tuple[Count, Count] | None = None
    cpus_per_actor: Count | None = None
    gpus_per_actor: Positive | None = None
    read: Literal["auto", "resident", "shared", "stream"] = "auto"

    @model_validator(mode="after")
    def _possible_actors(self) -> CacheConfig:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors: the least, {self.actors[0]}, is more than the most, {self.actors[1]}")
        if self.gpus_per_actor is not None and self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(f"gpus_per_actor: a part of one GPU or whole ones, not {self.gpus_per_actor:g}")
        return self

    @model_validator(mode="after")
    def _top_k_of_logits(self) -> CacheConfig:
        if self.top_k is not None and "logits" not in self.outputs:
            raise ValueError("top_k shortens the logits, which 'outputs' does not include; add them or leave it out")
        return self
