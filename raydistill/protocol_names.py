"""What ``raydistill eval`` can measure, by name. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ALL = "all"
"""Stands for every protocol."""

PROTOCOLS: Mapping[str, str] = MappingProxyType(
    {
        "top1": "accuracy of the trained classifier on the test images",
        "top5": "share of test images whose label is among the classifier's five likeliest",
        "classes": "the classifier's accuracy on the class that it knows least",
        "calibration": "expected calibration error of the classifier, 15 bins",
        "knn": "weighted vote of evaluate.k neighbours among the training images (DINO, section 4.1)",
        "nn1": "the nearest training image's class (CompRes, section 4)",
        "linear": "logistic regression on the embedding, standardised; by L-BFGS",
        "linear_compress": "linear classifier on the embedding by CompRes' recipe, 40 epochs of SGD",
        "linear_protocpc": "linear classifier on the embedding by ProtoCPC's recipe, 100 epochs of SGD",
        "linear_protocpc_self": "the same by its recipe for self-distillation, which is DINO's",
        "linear_stages": "linear classifiers on the maps of every stage by CompRes' recipe (CompRes, Table 5)",
        "clusters": "k-means clusters matched with classes (CompRes, section 4)",
        "few_labels": "one image a class, ten times drawn, and 1 % and 10 % of the labels (CompRes, Tables 3 and 6)",
        "retrieval": "share of test images with one of their class among the nearest 1, 2, 4 and 8 others",
        "map": "mean average precision where images show several classes, linear, 11-point (CompRes, Table 7)",
        "agreement": "share of test images that student and teacher put into the same class",
        "correlation": "mean difference between the correlations of student's and teacher's logits (CRD, Figure 2)",
        "neighbours": "share of ten nearest neighbours that student and teacher have in common",
        "cka": "linear centred kernel alignment of student's and teacher's embeddings",
        "cost": "parameters, multiply-adds, bytes on disk, latency and peak memory by batch size",
    }
)
"""Names and what they mean, in the order of a card."""
