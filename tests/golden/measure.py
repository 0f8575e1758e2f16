"""What the golden values are: losses of the first four steps and the output's mean and spread, per method.

python tests/golden/measure.py     writes them again, after a change that is meant to change them
"""

import json
import sys
from pathlib import Path

FILE = Path(__file__).with_name("methods.json")


def measure(name: str) -> dict[str, list[float]]:
    """Train a miniature four steps and translate a film with it."""
    import torch
    from model_making import make_batch, make_film, make_method, modalities_of

    torch.set_num_threads(1)
    method = make_method(name)
    losses: list[float] = []
    optimizers = method.configure_optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            # Adam makes full steps of random sign out of the rounding in vanishing gradients (biases before a norm).
            group["eps"] = 1e-3
    if hasattr(method, "generator"):
        # Many updates, and the flow of many pixels that untrained heads draw, amplify a processor's own rounding.
        method.frames_per_step = 7
        method.generator.flow_scale = 1.0
    method.optimizers = lambda: optimizers
    method.manual_backward = lambda loss: loss.backward()
    method.log_dict = lambda values, **_: losses.append(sum(float(v) for v in values.values()))
    for step in range(4):
        method.training_step(make_batch(7, 16, seed=step), step)
    film = method.translate(make_film(5)[0], **modalities_of(method))
    return {"losses": losses, "output": [float(film.mean()), float(film.std())]}


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "models")]
    from miniatures import MINIATURE

    values = {name: measure(name) for name in MINIATURE if name != "identity"}
    FILE.write_text(json.dumps(values, indent=1) + "\n")
