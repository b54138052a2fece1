"""The teacher cache's encodings, and its reader against other ways to hold the same numbers; all in one run.

    python experiments/benchmarks/cache.py [--quick] [--json]

Rows are made up: ReLU features of 512 numbers and logits of 1000 classes, as many as 50,000 (--quick: 8,192).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measuring import fastest

from raydistill.data.shared import tensor_of
from raydistill.files import make_folders
from raydistill.teachers.cache.codec import Array
from raydistill.teachers.cache.commit import begin, finish
from raydistill.teachers.cache.manifest import (
    RECORDS,
    SHARDS,
    Content,
    DataContent,
    Preprocessing,
    TeacherContent,
    shard_path,
)
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.shards import Place, encode, ids_sha256

TEMPERATURES = (1, 4)
BATCH = 256
WIDTH, CLASSES, SHARD_ROWS = 512, 1000, 8192
ENCODINGS: dict[str, dict[str, Any]] = {
    "float16": {},
    "float32": {"dtype": "float32"},
    "int8": {"dtype": "int8"},
    "float16, zstd": {"compression": "zstd"},
    "float16, top 20": {"top_k": 20},
}
AT_LEAST_FASTER_THAN_LISTS, AT_MOST_SLOWER_THAN_NUMPY = 3.0, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    given = parser.parse_args()
    images, repeats = (8192, 2) if given.quick else (50_000, 5)
    embedding, logits = made_up(images)
    rows = {"embedding": embedding, "logits": logits}
    with tempfile.TemporaryDirectory() as folder:
        few = {name: values[:SHARD_ROWS] for name, values in rows.items()}
        table = [encoding(name, section, few, Path(folder), repeats) for name, section in ENCODINGS.items()]
        reading = reader(embedding, Path(folder), repeats)
    if given.json:
        print(json.dumps({"images": images, "encodings": table, "reader": reading}))
        return
    print(
        f"{'':<17}{'bytes/image':>12}{'write rows/s':>14}{'read rows/s':>13}  "
        "mean cosine of embedding, logits; KL of logits"
    )
    for row in table:
        print(
            f"{row['encoding']:<17}{row['bytes_per_image']:>12.0f}{row['write_rows_per_s']:>14,.0f}"
            f"{row['read_rows_per_s']:>13,.0f}  {row['cosine']['embedding']:.6f}, {row['cosine']['logits']:.6f}; "
            + ", ".join(f"{name} {nats:.1e}" for name, nats in row["nats"].items())
        )
    print(f"\n{images} x {WIDTH} float16 into one tensor")
    for name, milliseconds in reading["milliseconds"].items():
        print(f"{name:<28}{milliseconds:>9.1f} ms")
    for name, verdict in reading["targets"].items():
        print(f"{name}: {verdict['ratio']:.2f} (target {verdict['target']}) {'met' if verdict['met'] else 'MISSED'}")


def made_up(images: int) -> tuple[Array, Array]:
    """Features of a few directions after a ReLU, and logits that a linear layer makes of them."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(images, 64)).astype(np.float32)
    embedding = np.maximum(hidden @ generator.normal(size=(64, WIDTH)).astype(np.float32) / 8, 0)
    logits = embedding @ generator.normal(size=(WIDTH, CLASSES)).astype(np.float32) / 8
    return embedding, logits


def encoding(name: str, section: dict[str, Any], rows: dict[str, Array], folder: Path, repeats: int) -> dict[str, Any]:
    """Write and read one shard."""
    content = content_of(rows, **section)
    place = Place(content.key, 0, 0, len(rows["embedding"]))
    ids = np.arange(place.rows)
    (writing,) = fastest([lambda: encode(content, place, ids, rows, None)], repeats)
    cache = stored(content, rows, folder)
    (reading,) = fastest([lambda: cache.table(ids, (0,), cache.outputs)], repeats)
    found = cache.read(ids)
    return {
        "encoding": name,
        "bytes_per_image": sum(record.bytes for record in cache.manifest.shards) / place.rows,
        "write_rows_per_s": 1000 * place.rows / writing,
        "read_rows_per_s": 1000 * place.rows / reading,
        "cosine": {output: cosine(found[output], rows[output]) for output in rows},
        "nats": {f"T={t}": divergence(found["logits"], rows["logits"], t) for t in TEMPERATURES},
    }


def reader(embedding: Array, folder: Path, repeats: int) -> dict[str, Any]:
    """Read the same numbers in three ways, in turns."""
    half = embedding.astype(np.float16)
    cache = stored(content_of({"embedding": embedding}), {"embedding": embedding}, folder)
    ids = np.arange(len(half))
    array, lists = folder / "rows.npy", folder / "rows.parquet"
    np.save(array, half)
    column = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), WIDTH)
    pq.write_table(pa.table({"embedding": column}), lists, row_group_size=SHARD_ROWS, compression="none")
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "cache": lambda: torch.from_numpy(cache.table(ids, (0,), ["embedding"])["embedding"][0]),
        "numpy.load": lambda: torch.from_numpy(np.load(array)),
        "FixedSizeList<halffloat>": lambda: from_lists(lists),
    }
    for name, way in ways.items():
        assert torch.equal(way(), torch.from_numpy(half)), name
    *quick, slow = ways.values()
    times = dict(zip(ways, [*fastest(quick, 6 * repeats), *fastest([slow], repeats)], strict=True))
    most, some = ids[ids % 10 != 0], np.random.default_rng(0).permutation(ids)[:BATCH]
    others: dict[str, Callable[[], object]] = {
        "cache, nine rows of ten": lambda: cache.table(most, (0,), ["embedding"]),
        f"cache, {BATCH} rows at random": lambda: cache.rows(some, 0, ["embedding"]),
    }
    times |= dict(zip(others, fastest(list(others.values()), repeats), strict=True))
    faster = times["FixedSizeList<halffloat>"] / times["cache"]
    slower = times["cache"] / times["numpy.load"]
    return {
        "milliseconds": times,
        "targets": {
            "times faster than FixedSizeList<halffloat>": {
                "ratio": faster,
                "target": f"at least {AT_LEAST_FASTER_THAN_LISTS}",
                "met": faster >= AT_LEAST_FASTER_THAN_LISTS,
            },
            "times numpy.load": {
                "ratio": slower,
                "target": f"at most {AT_MOST_SLOWER_THAN_NUMPY}",
                "met": slower <= AT_MOST_SLOWER_THAN_NUMPY,
            },
        },
    }


def from_lists(path: Path) -> torch.Tensor:
    column = pq.read_table(path).column("embedding").combine_chunks()
    return tensor_of(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH))


def content_of(rows: dict[str, Array], **section: Any) -> Content:
    images = len(rows["embedding"])
    values: dict[str, Any] = {"dtype": "float16", "views": 0, "augmentation": None, "shard_rows": SHARD_ROWS}
    return Content(
        data=DataContent(fingerprint="made up", count=images, ids=ids_sha256(np.arange(images))),
        teacher=TeacherContent(
            model="made-up", weights="none", outputs={name: values.shape[1:] for name, values in rows.items()}
        ),
        preprocessing=Preprocessing(mean=(0.5,), std=(0.5,), image_shape=(1, 8, 8)),
        **{**values, **section},
    )


def stored(content: Content, rows: dict[str, Array], root: Path) -> TeacherCache:
    folder = root / content.folder_name
    make_folders(folder, folder / SHARDS, folder / RECORDS)
    begin(folder, content)
    done = {}
    for view, first, count in content.shards():
        place, ids = Place(content.key, view, first, count), np.arange(first, first + count)
        part = {name: values[first : first + count] for name, values in rows.items()}
        encoded = encode(content, place, ids, part, None)
        shard_path(folder, place.name).write_bytes(encoded.data)
        done[place.name] = encoded.record(forwards=count)
    finish(folder, content, done)
    return TeacherCache.open(folder)


def divergence(found: torch.Tensor, exact: Array, temperature: int) -> float:
    """Mean KL of the stored logits' softened probabilities from the exact ones', which a cosine says little of."""
    target = torch.from_numpy(exact).div(temperature).log_softmax(dim=1)
    return float(
        torch.nn.functional.kl_div(
            found.div(temperature).log_softmax(dim=1), target, log_target=True, reduction="batchmean"
        )
    )


def cosine(found: torch.Tensor, exact: Array) -> float:
    return float(torch.nn.functional.cosine_similarity(found.double(), torch.from_numpy(exact).double()).mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
