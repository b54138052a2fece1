"""All pure losses, operators and measures, each with its shapes, its equation and its paper."""

from __future__ import annotations

from raydistill.evaluation.clusters import cluster_to_class
from raydistill.evaluation.neighbours import weighted_knn
from raydistill.methods.cocord import prediction_loss
from raydistill.methods.compress import compress_loss
from raydistill.methods.contrast import info_nce_loss
from raydistill.methods.crd import crd_nce_loss, crd_scores
from raydistill.methods.kd import kd_loss
from raydistill.methods.protocpc import proto_cpc_loss, sinkhorn_knopp, update_prior

__all__ = [
    "cluster_to_class",
    "compress_loss",
    "crd_nce_loss",
    "crd_scores",
    "info_nce_loss",
    "kd_loss",
    "prediction_loss",
    "proto_cpc_loss",
    "sinkhorn_knopp",
    "update_prior",
    "weighted_knn",
]
