"""What all methods share: the optimiser step, learning-rate schedules, the averaged weights, and the contract."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.errors import ConfigError

Batch = Mapping[str, Any]


class Update(NamedTuple):
    """One optimiser's share of a step: the total to descend, and the learning rate of this moment."""

    optimizer: Any  # a torch optimiser, as Lightning wraps it
    total: torch.Tensor  # a scalar
    learning_rate: float


def linear_decay(share: float, start: float) -> float:
    """Return the learning-rate factor that is 1 until ``start`` of the budget and falls to 0 at its end."""
    return 1.0 if share <= start else max(0.0, (1 - share) / (1 - start))


def warm_cosine(share: float, warm_up: float) -> float:
    """Return the factor that rises linearly during ``warm_up`` of the budget and falls to 0 along a cosine."""
    if share < warm_up:
        return max(share / warm_up, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up))))


def grown(count: int, stages: int, share: float) -> int:
    """Return a number of frames at a share of the budget: it doubles at each of ``stages`` equal parts."""
    return int(count * 2 ** min(int(share * stages), stages - 1))


def total_loss(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of all ``*_loss`` entries, which carry their weights already."""
    return torch.stack([value for name, value in losses.items() if name.endswith("_loss")]).sum()


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Let gradients pass through networks without computing those of their weights."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode and back."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


class Translator(LightningModule):
    """A method: it learns from clips and translates whole volumes.

    ``budget_share`` (0 to 1) is set by the trainer before each batch, and ``accumulate`` (backward passes per
    optimiser step, each over its part of the batch) once; learning rates are functions of the share, so that a
    resumed run continues exactly.
    ``skipped_steps`` counts steps with non-finite losses or gradients; ``skipped_in_a_row`` counts the batches with
    such steps since the last good one.
    """

    pairings: tuple[str, ...] = ("paired",)  # values of stream.pairing that the method learns from
    both_ways = False  # whether a training also teaches the way from the target to the source

    def __init__(self) -> None:
        super().__init__()
        # Alternating optimisers, one guard for all of them, and a schedule over the budget: all by hand.
        self.automatic_optimization = False
        self.budget_share = 0.0
        self.accumulate = 1
        self.use_ema = True
        self.ema: AveragedModel | None = None
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.signals: dict[str, torch.Tensor | float] = {}  # learning rates and gradient norms of the latest step
        self.seconds = {"backward": 0.0, "optimiser": 0.0}  # as the host sees them; the trainer reads and clears
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []  # of batch norms, before the batch
        self._counted = False
        self._passes = 0
        self._finite: list[torch.Tensor] = []
        self._pending: dict[int, Update] = {}  # optimisers with gradients, by id
        self._scalers: list[torch.amp.GradScaler] = []  # one per optimiser, for fp16 only
        self._scaler_states: list[dict[str, Any]] = []

    def translate(
        self,
        source: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        source_modality: str,
        target_modality: str,
        generator: torch.Generator | None = None,
        samples: int = 1,
    ) -> torch.Tensor:
        """Translate a whole ordered volume.

        Args:
            source: (slices, channels, height, width), normalised to [-1, 1], inferior to superior.
            mask: The same shape, 0 or 1; only for methods that need one.
            source_modality: Name of the source's modality.
            target_modality: Name of the wanted modality.
            generator: Of random methods.
            samples: How many different answers are wanted; deterministic methods have one.

        Returns:
            (slices, channels, height, width), float32, on the source's device.
        """
        raise NotImplementedError

    def check_stream(self, clip_length: int, longest: int | None = None) -> None:
        """Refuse a stream whose clips are too short for the method.

        Args:
            clip_length: Frames of a clip when training starts.
            longest: Frames of a clip at the end of the training; by default the same.

        Raises:
            ConfigError: A term of the loss would need more frames.
        """

    def check_pairing(self, pairing: str) -> None:
        """Refuse batches whose targets are of other patients, unless the method can learn from them."""
        if pairing not in self.pairings:
            raise ConfigError(
                f"{type(self).__name__} does not learn from such batches",
                value=f"stream.pairing={pairing}",
                allowed=", ".join(self.pairings),
            )

    def begin(self) -> dict[str, str]:
        """Take the weights of files that a new training begins with; it may still turn out to be continued.

        Returns:
            What began as what, in words for the user; empty: all at random.

        Raises:
            CinevoxError: A file that is missing, damaged, or does not fit.
        """
        return {}

    def kept_bytes(self, pixels: int) -> int:
        """Return what a checkpoint holds beside weights and optimisers, in bytes, for pictures of so many pixels."""
        return 0

    def learn_from_latents(self, std: float, encoder: str) -> None:
        """Prepare for batches of latents (``batch["latent"]``), divided by ``std``, instead of slices.

        Args:
            std: Standard deviation of the training's latents.
            encoder: Hash of the weights that made them.

        Raises:
            ConfigError: The method learns from slices only.
        """
        raise ConfigError(
            f"{type(self).__name__} does not learn from latents", remedy="Give shards of 'cinevox preprocess'"
        )

    # ---- averaged weights -------------------------------------------------------------------------------------

    def start_ema(self, network: nn.Module, decay: float) -> None:
        """Keep an exponential moving average of the network's weights as ``self.ema``; a decay of 0 keeps none.

        Early on the decay is (1 + n) / (10 + n) where that is smaller, so that the random start is soon forgotten.
        """
        if not 0 <= decay < 1:
            raise ConfigError("The decay of the averaged weights is out of range", value=decay, allowed="[0, 1)")
        if decay == 0:
            return

        def average(kept: Any, new: Any, updates: Any) -> None:
            count = int(updates)
            get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(kept, new, updates)

        self.ema = AveragedModel(network, multi_avg_fn=average)
        # Never trained by gradients: DDP and the optimisers must not wait for them.
        self.ema.requires_grad_(False)

    def averaged(self, network: nn.Module) -> nn.Module:
        """Return the averaged network where it exists and is wanted, else the network itself."""
        return self.ema.module if self.ema is not None and self.use_ema else network

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let a batch count once in ``skipped_in_a_row``, however many of its steps are skipped."""
        self._counted = False
        norms = (module for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        self._statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        self.signals.clear()  # a discriminator that sleeps has none

    # ---- the guarded step -------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Make a gradient scaler for each optimiser where training runs in fp16."""
        if self.trainer.precision == "16-mixed":
            self.scale_gradients(self.device.type)

    def scale_gradients(self, device: str) -> None:
        """Scale each optimiser's loss by a factor of its own, which adapts; a checkpoint's factors are taken up."""
        self._scalers = [torch.amp.GradScaler(device) for _ in self._all_optimizers()]
        for scaler, state in zip(self._scalers, self._scaler_states, strict=False):
            scaler.load_state_dict(state)

    def parts(self, batch: Batch) -> list[dict[str, Any]]:
        """Split a batch along its clips into ``accumulate`` parts of one size, each for one backward pass.

        Tensors and lists with an entry per clip are split; what else there is goes to every part.
        """
        clips = batch["source"].shape[0]
        count = clips // self.accumulate
        split = {
            name for name, value in batch.items() if isinstance(value, (torch.Tensor, list)) and len(value) == clips
        }
        return [
            {name: value[i * count : (i + 1) * count] if name in split else value for name, value in batch.items()}
            for i in range(self.accumulate)
        ]

    def guarded_step(self, updates: Sequence[Update], network: nn.Module, max_norm: float = 0.0) -> bool:
        """Run a backward pass, then step every optimiser, or none if anything is not finite on any rank.

        Args:
            updates: One per optimiser that takes part. A graph may hold another's weights only as constants, so one
                backward pass (and one exchange among the ranks) serves all.
            network: Whose average is updated after a step.
            max_norm: Largest norm of one optimiser's gradients; 0: no limit.

        Returns:
            Whether the optimisers stepped; False too while gradients are still being accumulated.
        """
        start = time.perf_counter()
        self._passes += 1
        last = self._passes == self.accumulate
        totals = [self._scaler(update.optimizer).scale(update.total) for update in updates]
        with nullcontext() if last else self._without_exchange():
            self.manual_backward(torch.stack(totals).sum() / self.accumulate)
        for update in updates:
            self._finite.append(torch.isfinite(update.total.detach()))
            self._pending[id(update.optimizer)] = update._replace(total=update.total.detach())
        backward = time.perf_counter()
        self.seconds["backward"] += backward - start
        if not last:
            return False
        self._passes = 0
        pending = list(self._pending.values())
        for update in pending:
            scaler = self._scaler(update.optimizer)
            if scaler.is_enabled():
                scaler.unscale_(update.optimizer.optimizer)
            weights = [p for group in update.optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in weights])
            self._finite.append(torch.isfinite(norm))
            name = self._trained_by(update.optimizer)
            self.signals |= {f"learning_rate/{name}": update.learning_rate, f"gradient_norm/{name}": norm}
            if max_norm:
                nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
        stepped = self._agreed(torch.stack(self._finite).all())
        self._finite.clear()
        self._pending.clear()
        if stepped:
            for update in pending:
                for group in update.optimizer.param_groups:
                    group["lr"] = update.learning_rate
                update.optimizer.step()
            if self.ema is not None:
                self.ema.update_parameters(network)
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps += 1
            for buffer, before in self._statistics:  # batch norms have seen the damaged images
                buffer.copy_(before)
            self.skipped_in_a_row += not self._counted
            self._counted = True
        for update in pending:
            if (scaler := self._scaler(update.optimizer)).is_enabled():
                scaler.update()
            update.optimizer.zero_grad(set_to_none=True)
        # Under autocast the low-precision copies of the weights live until its end, here: several steps later.
        torch.clear_autocast_cache()
        self.seconds["optimiser"] += time.perf_counter() - backward
        return stepped

    def _scaler(self, optimizer: Any) -> torch.amp.GradScaler:
        """Return the optimiser's gradient scaler; one that does nothing where there are none."""
        if not self._scalers:
            return torch.amp.GradScaler("cpu", enabled=False)
        return self._scalers[self._all_optimizers().index(optimizer)]

    def _trained_by(self, optimizer: Any) -> str:
        """Return the name of the network that an optimiser trains, with its place where there are several."""
        first = optimizer.param_groups[0]["params"][0]
        path = next((name for name, weight in self.named_parameters() if weight is first), "network")
        network, _, rest = path.partition(".")
        place = rest.partition(".")[0]
        return f"{network}_{place}" if place.isdigit() else network

    def _without_exchange(self) -> AbstractContextManager[Any]:
        """Return the context in which DDP keeps gradients on their rank: more of them will be added first."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else nullcontext()

    def _all_optimizers(self) -> list[Any]:
        """Return the optimisers as a list, also where there is only one."""
        optimizers = self.optimizers()
        return list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]

    @staticmethod
    def _agreed(finite: torch.Tensor) -> bool:
        """Return whether all ranks are finite: a rank that skips alone would leave the others waiting."""
        flag = finite.float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
        return bool(flag.item())

    # ---- logging and checkpoints ------------------------------------------------------------------------------

    def log_losses(self, windows: Sequence[Mapping[str, torch.Tensor]], batch_size: int) -> None:
        """Log the mean of each entry over the windows that have it, as ``train/NAME``."""
        entries: dict[str, list[torch.Tensor]] = {}
        for window in windows:
            for name, value in window.items():
                entries.setdefault(f"train/{name}", []).append(value.detach().float())
        means = {name: torch.stack(values).mean() for name, values in entries.items()}
        self.log_dict(means, on_step=True, on_epoch=False, batch_size=batch_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters of skipped steps and the gradient scalers."""
        checkpoint["skipped"] = {"steps": self.skipped_steps, "in_a_row": self.skipped_in_a_row}
        checkpoint["scalers"] = [scaler.state_dict() for scaler in self._scalers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters of skipped steps and the gradient scalers."""
        skipped = checkpoint.get("skipped", {})
        self.skipped_steps = int(skipped.get("steps", 0))
        self.skipped_in_a_row = int(skipped.get("in_a_row", 0))
        self._scaler_states = list(checkpoint.get("scalers", []))

    @staticmethod
    def only_one(samples: int) -> None:
        """Raise ``ConfigError`` where a deterministic method is asked for several answers."""
        if samples != 1:
            raise ConfigError("This method is deterministic and has one answer", value=samples, allowed="samples 1")
