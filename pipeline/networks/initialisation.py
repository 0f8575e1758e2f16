"""How weights start, in one place for all networks."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pipeline.networks.spectral import draw_anew


def initialise_normal(network: nn.Module, spread: float = 0.02) -> None:
    """Draw convolution weights from N(0, spread); biases 0, norm scales N(1, spread), norm shifts 0.

    Draws from torch's global generator, so that a run's seed decides. The start of pix2pix, pix2pixHD and vid2vid.
    Weights on the meta device stay as they are. Spectrally normalised ones are drawn anew and normalised again.
    """
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            if is_parametrized(module, "weight"):
                draw_anew(module, spread)
            else:
                nn.init.normal_(module.weight, 0.0, spread)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)) and module.weight is not None:
            nn.init.normal_(module.weight, 1.0, spread)
            nn.init.zeros_(module.bias)
