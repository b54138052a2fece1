"""Inner products with drawn rows of a bank, and their gradient, in whichever way they are computed."""

from __future__ import annotations

import pytest
import torch

from raydistill.methods.sampled import WHOLE_BANK_RATIO, WHOLE_WEIGHTS_RATIO, sampled_products
from tests.methods.support import close


@pytest.mark.parametrize("ratio", [1, WHOLE_WEIGHTS_RATIO, WHOLE_WEIGHTS_RATIO + 1, WHOLE_BANK_RATIO + 1])
@pytest.mark.parametrize("repeated", [False, True])
def test_every_way_is_the_plain_one(ratio: int, repeated: bool) -> None:
    torch.manual_seed(ratio)
    samples, drawn = 3, 10
    bank = torch.randn(ratio * drawn, 4, dtype=torch.float64)
    index = torch.stack([torch.randperm(len(bank))[:drawn] for _ in range(samples)])
    if repeated:  # a row that is drawn twice counts twice
        index[:, 1] = index[:, 0]
    embedding = torch.randn(samples, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(samples, drawn, dtype=torch.float64)
    found, plain = sampled_products(embedding, bank, index), torch.einsum("bd,bkd->bk", embedding, bank[index])
    close(found, plain)
    gradients = [torch.autograd.grad((scores * weights).sum(), embedding)[0] for scores in (found, plain)]
    close(*gradients)
