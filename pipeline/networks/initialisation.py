"""How weights start, in one place for all networks."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations


def initialise_normal(network: nn.Module, spread: float = 0.02) -> None:
    """Draw convolution weights from N(0, spread); biases 0, norm scales N(1, spread), norm shifts 0.

    Draws from torch's global generator, so that a run's seed decides. The start of pix2pix, pix2pixHD and vid2vid.
    Weights on the meta device stay as they are. Spectrally normalised ones are drawn anew and normalised again.
    """
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            spectral = is_parametrized(module, "weight")
            if spectral:
                remove_parametrizations(module, "weight", leave_parametrized=False)
            nn.init.normal_(module.weight, 0.0, spread)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if spectral:
                spectral_norm(module)
        elif isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)) and module.weight is not None:
            nn.init.normal_(module.weight, 1.0, spread)
            nn.init.zeros_(module.bias)
