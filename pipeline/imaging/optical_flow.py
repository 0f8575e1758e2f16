"""Classical optical flow between frames, the reference that a learned flow is held against.

vid2vid takes it from FlowNet2, whose weights cannot be had and which wants colour images; DIS needs no weights
(Kroeger et al., ECCV 2016, arXiv 1603.03590).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SMALLEST = 12  # pixels, DIS refuses smaller images


def dis_flow(current: NDArray[np.float32], previous: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the flow that samples ``previous`` so that it looks like ``current``.

    ``previous(x + flow(x))`` is about ``current(x)``: the convention of ``networks.warp.warp(previous, flow)``.

    Args:
        current: (frames, height, width) in [-1, 1]; quantised to 8 bits, all that DIS reads.
        previous: The same shape: for each current frame the one it is compared with.

    Returns:
        (frames, 2, height, width), pixels; channel 0 along the columns, 1 along the rows.
    """
    height, width = current.shape[1:]
    edges = ((0, 0), (0, max(SMALLEST - height, 0)), (0, max(SMALLEST - width, 0)))
    current, previous = np.pad(current, edges, "edge"), np.pad(previous, edges, "edge")
    eight_bit = [np.clip(np.nan_to_num(films) * 127.5 + 128, 0, 255).astype(np.uint8) for films in (current, previous)]
    flows = np.empty((current.shape[0], 2, *current.shape[1:]), np.float32)
    # DIS splits an image into as many stripes as there are threads, and the result depends on the stripes.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        solver = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        for flow, now, before in zip(flows, *eight_bit, strict=True):
            flow[:] = np.moveaxis(np.asarray(solver.calc(now, before, None)), -1, 0)  # type: ignore[call-overload]
    finally:
        cv2.setNumThreads(threads)
    return np.ascontiguousarray(flows[..., :height, :width])
