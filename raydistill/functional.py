"""All pure losses, operators and measures, each with its shapes, its equation and its paper."""

from __future__ import annotations

from raydistill.evaluation.clusters import cluster_to_class
from raydistill.evaluation.collapse import effective_rank
from raydistill.evaluation.neighbours import weighted_knn
from raydistill.methods.ab import ab_loss
from raydistill.methods.at import at_loss
from raydistill.methods.cc import cc_loss
from raydistill.methods.cocord import prediction_loss
from raydistill.methods.compress import compress_loss
from raydistill.methods.contrast import info_nce_loss
from raydistill.methods.crd import crd_nce_loss, crd_scores
from raydistill.methods.dino import dino_loss
from raydistill.methods.dist import dist_loss
from raydistill.methods.dkd import dkd_loss
from raydistill.methods.fitnet import hint_loss
from raydistill.methods.fsp import fsp_loss
from raydistill.methods.ft import ft_loss
from raydistill.methods.kd import kd_loss
from raydistill.methods.kdsvd import kdsvd_loss
from raydistill.methods.lckt import lckt_loss
from raydistill.methods.nst import nst_loss
from raydistill.methods.one import one_loss
from raydistill.methods.pkt import pkt_loss
from raydistill.methods.protocpc import proto_cpc_loss, update_prior
from raydistill.methods.prototypes import sinkhorn_knopp
from raydistill.methods.reviewkd import hcl_loss
from raydistill.methods.rkd import rkd_loss
from raydistill.methods.seed import seed_loss
from raydistill.methods.sp import sp_loss
from raydistill.methods.sskd import selective_kd_loss
from raydistill.methods.swav import swav_loss
from raydistill.methods.vid import vid_loss

__all__ = [
    "ab_loss",
    "at_loss",
    "cc_loss",
    "cluster_to_class",
    "compress_loss",
    "crd_nce_loss",
    "crd_scores",
    "dino_loss",
    "dist_loss",
    "dkd_loss",
    "effective_rank",
    "fsp_loss",
    "ft_loss",
    "hcl_loss",
    "hint_loss",
    "info_nce_loss",
    "kd_loss",
    "kdsvd_loss",
    "lckt_loss",
    "nst_loss",
    "one_loss",
    "pkt_loss",
    "prediction_loss",
    "proto_cpc_loss",
    "rkd_loss",
    "seed_loss",
    "selective_kd_loss",
    "sinkhorn_knopp",
    "sp_loss",
    "swav_loss",
    "update_prior",
    "vid_loss",
    "weighted_knn",
]
