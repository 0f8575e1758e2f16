"""Which precision the hardware is good at."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from pipeline.errors import ConfigError

Precision = Literal["fp32", "bf16-mixed", "fp16-mixed", "bf16"]


def device_for(accelerator: str) -> torch.device:
    """Return the device of an accelerator setting ('auto', 'cpu', 'gpu')."""
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def check_devices(device: torch.device, count: int) -> None:
    """Raise ``ConfigError`` where a machine has fewer GPUs than are wanted."""
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ConfigError(
            "This machine has fewer GPUs than are wanted",
            value=f"trainer.devices={count}",
            allowed=f"at most {torch.cuda.device_count()}",
        )


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 products are computed in hardware; emulated ones were some 100 times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve_precision(setting: str, device: torch.device) -> Precision:
    """Return the precision for ``auto``: bf16-mixed where the hardware multiplies bf16, else fp32.

    Raises:
        ConfigError: fp16 on a CPU, which has no fast products in it and whose range nobody has tried.
    """
    if setting == "auto":
        return "bf16-mixed" if has_native_bf16(device) else "fp32"
    if setting == "fp16-mixed":
        if device.type != "cuda":
            raise ConfigError(
                "fp16-mixed needs a GPU",
                value=f"trainer.precision=fp16-mixed on {device.type}",
                allowed="fp32 or bf16-mixed",
                remedy="Set trainer.precision=auto",
            )
        return "fp16-mixed"
    return "bf16" if setting == "bf16" else "bf16-mixed" if setting == "bf16-mixed" else "fp32"


def round_weights(method: nn.Module) -> None:
    """Keep the weights of convolutions and linear layers in bf16, for translation only: no step has to round them.

    Autocast rounds the same weights in each step. Modules whose names end in ``head`` stay in float32, and layers with
    a true ``stays_float32`` (whose names are a public checkpoint's): near the ends of the range one bf16 step is 8 HU.
    Norms and activations stay too; they are small.
    """
    for name, module in method.named_modules():
        in_head = any(part.endswith("head") for part in name.split(".")) or getattr(module, "stays_float32", False)
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not in_head:
            module.to(torch.bfloat16)


def lightning_plugin(precision: Precision, device: torch.device) -> Any:
    """Return Lightning's precision plugin: autocast only, for the methods scale their losses themselves."""
    from pytorch_lightning.plugins.precision import MixedPrecision
    from pytorch_lightning.plugins.precision import Precision as FullPrecision

    if precision == "fp32":
        return FullPrecision()
    plugin = MixedPrecision("bf16-mixed" if precision == "bf16-mixed" else "16-mixed", device.type)
    plugin.scaler = None  # one scaler for all optimisers would let one's overflow shrink the others' gradients
    return plugin


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which networks run at ``precision``."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.float16 if precision == "fp16-mixed" else torch.bfloat16)
