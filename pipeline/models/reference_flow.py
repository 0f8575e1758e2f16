"""The reference flow of a clip, window by window: none, classical, or of a network that learns beside the generator.

All follow ``networks.warp``: pixels, and ``warp(previous frame, flow)`` is about the current frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.imaging.optical_flow import dis_flow
from pipeline.losses.flow import Reference, confidence

FLOWS = ("dis", "learned", "none")


class References:
    """Reference flows of one clip of target frames; this one knows none, whatever the strides.

    ``known[stride][t]`` leads from frame t to t + stride. Flow is computed as the windows ask for it, so that it
    costs no waiting (a thread works ahead) and no frame twice.

    Args:
        clip: Target frames (batch, frames, channels, height, width) in [-1, 1].
        strides: Distances of the frames that are wanted; those beyond the clip's end are left out.
    """

    def __init__(self, clip: torch.Tensor, strides: Collection[int] = ()) -> None:
        self.clip = clip
        self.known: dict[int, list[Reference]] = {stride: [] for stride in sorted(strides) if stride < clip.shape[1]}

    def extend(self, stop: int) -> torch.Tensor | None:
        """Make known the flow up to frame ``stop - 1``; return what its estimator still has to learn, if it learns."""
        return None

    def flow(self, stride: int) -> list[torch.Tensor] | None:
        """Return the flows (batch, 2, height, width) known at a stride; None: there is no reference flow."""
        return [reference.flow for reference in self.known[stride]] if stride in self.known else None

    def _wanted(self, stop: int) -> list[tuple[int, int]]:
        """Return (stride, first frame) of each pair that ends before frame ``stop`` and is not known yet."""
        return [(n, first) for n, known in self.known.items() for first in range(len(known), stop - n)]

    def _pair(self, stride: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the current and the previous image of a pair."""
        return self.clip[:, first + stride], self.clip[:, first]


class DisReferences(References):
    """DIS flow, computed by a thread while the networks work on earlier frames."""

    def __init__(self, clip: torch.Tensor, strides: Collection[int], pool: ThreadPoolExecutor) -> None:
        super().__init__(clip, strides)
        grey = clip.float().mean(2).cpu().numpy()
        self._jobs: dict[tuple[int, int], Future[NDArray[Any]]] = {}
        for end in range(1, clip.shape[1]):  # in the order in which the windows will ask
            for stride in self.known:
                if end >= stride:
                    job = pool.submit(dis_flow, grey[:, end], grey[:, end - stride])
                    self._jobs[stride, end - stride] = job

    def extend(self, stop: int) -> None:
        """Wait for the flow up to frame ``stop - 1``."""
        for stride, first in self._wanted(stop):
            current, previous = self._pair(stride, first)
            flow = torch.from_numpy(self._jobs.pop((stride, first)).result()).to(self.clip.device)
            self.known[stride].append(Reference(flow, confidence(current, previous, flow)))


class LearnedReferences(References):
    """Flow of a network that is trained, unsupervised, on the very pairs that it is asked for."""

    def __init__(self, clip: torch.Tensor, strides: Collection[int], network: nn.Module, loss: nn.Module) -> None:
        super().__init__(clip, strides)
        self.network, self.loss = network, loss

    def extend(self, stop: int) -> torch.Tensor | None:
        """Estimate the flow up to frame ``stop - 1`` (constants) and return the network's loss on it."""
        wanted = self._wanted(stop)
        if not wanted:
            return None
        current, previous = (torch.cat(images) for images in zip(*(self._pair(*pair) for pair in wanted), strict=True))
        flow = self.network(current, previous)
        loss: torch.Tensor = self.loss(current, previous, flow)
        fixed = flow.detach()
        confident = confidence(current, previous, fixed)
        for (stride, _), *fields in zip(wanted, fixed.chunk(len(wanted)), confident.chunk(len(wanted)), strict=True):
            self.known[stride].append(Reference(*fields))
        return loss


@contextmanager
def references(
    kind: str, clip: torch.Tensor, strides: Collection[int], network: nn.Module | None, loss: nn.Module | None
) -> Iterator[References]:
    """Give the reference flows of a clip, of one of ``FLOWS``; ``network`` and its ``loss`` are of the learned one."""
    if kind == "dis" and strides:
        pool = ThreadPoolExecutor(1, thread_name_prefix="flow")
        try:
            yield DisReferences(clip, strides, pool)
        finally:
            pool.shutdown(cancel_futures=True)
    elif kind == "learned" and strides:
        assert network is not None
        assert loss is not None
        yield LearnedReferences(clip, strides, network, loss)
    else:
        yield References(clip)
