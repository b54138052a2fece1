"""GCKT: CRD's contrast under a critic that is 1-Lipschitz, the global half of WCoRD."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.banks import BANK_SPACE
from raydistill.methods.base import Loss, Method, SearchSpace, Step, Weight
from raydistill.methods.crd import BankNCE
from raydistill.methods.precision import at_least_float32, no_autocast


def lipschitz_embedding(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(W x / |W| + b) brought into the unit ball, a map that moves no two points apart: [B, D] -> [B, E].

    |W| is the largest singular value, exact and differentiated, as no power iteration has to be remembered for it.
    The projection x / max(1, |x|) is 1-Lipschitz, which x / |x| is not near 0.
    """
    with no_autocast(rows):
        weight = at_least_float32(weight)
        mapped = F.linear(at_least_float32(rows), weight / _largest_singular_value(weight), at_least_float32(bias))
        length = torch.linalg.vector_norm(mapped, dim=1, keepdim=True)
        inside: Tensor = mapped / length.clamp_min(1.0)
        return inside


def _largest_singular_value(weight: Tensor) -> Tensor:
    # The smaller Gram matrix is at most as wide as the embedding, which is far cheaper than singular values of W.
    gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
    largest: Tensor = torch.linalg.eigvalsh(gram)[-1].sqrt()
    return largest


class GCKT(BankNCE, Method):
    """Global contrastive knowledge transfer: from the dual form of the Wasserstein distance.

    The dual asks for a 1-Lipschitz critic that separates an image's pair of embeddings from pairs with other images.
    The critic is the inner product of two embeddings, each 1-Lipschitz: a spectrally normalised linear map into the
    unit ball. Its objective is CRD's (Eq. 18 there, with the constant Z of CRD's ``variant: code``), and so are banks,
    draws and their defaults.

    No code of the authors is public. Choices made here: Z, the ``weight``, which is CRD's, and the projection into
    the ball in place of CRD's L2-normalisation, under which spectral normalisation would have no effect.
    """

    name: ClassVar[str] = "gckt"
    paper: ClassVar[str] = "Chen et al., CVPR 2021 (WCoRD), https://arxiv.org/abs/2012.08674"
    equation: ClassVar[str] = "-log h(t_i, s_i) - sum_j log(1 - h(t_j, s_i)) + swapped, critic 1-Lipschitz"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.25, 2.5]},
        **BANK_SPACE,
    }
    search_source: ClassVar[str] = "CRD's Figure 5, as the banks are CRD's; around its weight."

    weight: Weight = 0.8

    def embed(self, head: nn.Module, embedding: Tensor) -> Tensor:
        """Embed one side: [B, D] -> points of the unit ball [B, dimension]."""
        linear: Any = head
        return lipschitz_embedding(embedding, linear.weight, linear.bias)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum of both directions; carries the embeddings for the banks and Z."""
        return self.contrast(step, parts, normalised=True)
