"""Time limits and preemption: a signal sets a flag; at the end of a step all ranks save and stop together."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from pipeline.progress import say
from pipeline.signals import release_warnings
from pipeline.training.budget import Budget
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.ranks import TO_BE_CONTINUED, summed, this_rank

# Before a time limit, and of preemption (SIGKILL follows when its grace is over).
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Warned:
    """Whether a signal told this process to stop, and which."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; nothing else is safe in the middle of a step."""
        self.signal = signal.Signals(number)

    def listen(self) -> None:
        """Take the signals from whoever had them."""
        for number in _SIGNALS:
            signal.signal(number, self)
        release_warnings()


@contextmanager
def warned() -> Iterator[Warned]:
    """Yield what listens to the signals until the context ends."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    here = Warned()
    here.listen()
    try:
        yield here
    except BaseException:
        if this_rank().count > 1:
            # The first rank that ends makes srun end the others, which must end with the codes that say why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # of a rank that leaves
                signal.signal(number, handler)


def leave() -> None:
    """End this rank as one that is to be continued, when all ranks have come this far; within ``warned``.

    Raises:
        SystemExit: Always.
    """
    if this_rank().count > 1:
        summed([0.0])
    raise SystemExit(TO_BE_CONTINUED)


def keep_signals_from(trainer: pl.Trainer) -> None:
    """Keep Lightning from taking the signals as a fit begins.

    Its handlers save in the middle of a step, exchange tensors while the other ranks may be in another exchange, and
    end the fit with an exception.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


class Preemption(pl.Callback):
    """Saves and ends the fit at the end of the step in which any rank was told to stop."""

    def __init__(self, here: Warned, budget: Budget, checkpoints: Checkpoints) -> None:
        self.here, self.budget, self.checkpoints = here, budget, checkpoints
        self.stopped = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Agree with the other ranks, which may have been told a step earlier or later."""
        if summed([float(self.here.signal is not None)])[0] == 0 or self.budget.share >= 1:
            return
        self.checkpoints.save(trainer)
        self.stopped = True
        trainer.should_stop = True
        told = self.here.signal.name if self.here.signal else "another rank's signal"
        say(f"Told to stop by {told}: saved at step {self.budget.step}; the same command continues")
