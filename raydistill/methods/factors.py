"""The networks of factor transfer: what turns maps [B, C, H, W] into factors [B, F, H, W] of the same size."""

from __future__ import annotations

from torch import nn

_SLOPE = 0.1


def paraphraser(channels: int, factors: int) -> nn.ModuleDict:
    """``encoder``, teacher's maps -> factors, and ``decoder``, back to maps; without batch-norm."""
    encoder = [(channels, channels), (channels, factors), (factors, factors)]
    decoder = [(factors, factors), (factors, channels), (channels, channels)]
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(*(_activated(nn.Conv2d(*widths, 3, padding=1)) for widths in encoder)),
            "decoder": nn.Sequential(*(_activated(nn.ConvTranspose2d(*widths, 3, padding=1)) for widths in decoder)),
        }
    )


def translator(channels: int, factors: int) -> nn.Sequential:
    """Student's maps -> factors, each convolution followed by a batch-norm, which makes a bias needless."""
    widths = [(channels, channels), (channels, factors), (factors, factors)]
    return nn.Sequential(
        *(
            _activated(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
            for inputs, outputs in widths
        )
    )


def _activated(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.LeakyReLU(_SLOPE))
