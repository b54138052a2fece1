"""Turn a large vision model into a small one: compute the teacher once, train and tune students from its cache on Ray.

The names below are imported when they are first asked for, so that ``import raydistill`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydistill.api.distilling import distill as distill
    from raydistill.api.outcome import Distilled as Distilled
    from raydistill.config import Experiment as Experiment
    from raydistill.config import load_experiment as load_experiment
    from raydistill.errors import CacheError as CacheError
    from raydistill.errors import ConfigError as ConfigError
    from raydistill.errors import DataError as DataError
    from raydistill.errors import RunError as RunError
    from raydistill.errors import WeightsError as WeightsError
    from raydistill.evaluation.card import evaluate_run as evaluate  # noqa: F401
    from raydistill.exporting.export import export_run as export  # noqa: F401
    from raydistill.exporting.safetensors_file import load_exported as load_exported
    from raydistill.models.zoo import build_model as build_model
    from raydistill.teachers.cache.build import build_cache as build_cache
    from raydistill.teachers.cache.read import TeacherCache as TeacherCache
    from raydistill.training.teacher import train_teacher as train_teacher
    from raydistill.training.trainer import train as train
    from raydistill.tuning.sweep import tune as tune

_WHERE = {
    "CacheError": "raydistill.errors:CacheError",
    "ConfigError": "raydistill.errors:ConfigError",
    "DataError": "raydistill.errors:DataError",
    "Distilled": "raydistill.api.outcome:Distilled",
    "Experiment": "raydistill.config:Experiment",
    "RunError": "raydistill.errors:RunError",
    "TeacherCache": "raydistill.teachers.cache.read:TeacherCache",
    "WeightsError": "raydistill.errors:WeightsError",
    "build_cache": "raydistill.teachers.cache.build:build_cache",
    "build_model": "raydistill.models.zoo:build_model",
    "distill": "raydistill.api.distilling:distill",
    "evaluate": "raydistill.evaluation.card:evaluate_run",
    "export": "raydistill.exporting.export:export_run",
    "load_experiment": "raydistill.config:load_experiment",
    "load_exported": "raydistill.exporting.safetensors_file:load_exported",
    "train": "raydistill.training.trainer:train",
    "train_teacher": "raydistill.training.teacher:train_teacher",
    "tune": "raydistill.tuning.sweep:tune",
}

__all__ = sorted([*_WHERE, "functional"])  # noqa: PLE0605  the table is the one place that names them


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("raydistill.functional")
    if name not in _WHERE:
        raise AttributeError(f"module 'raydistill' has no attribute '{name}'")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
