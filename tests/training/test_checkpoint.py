"""What a checkpoint keeps of the random state, wherever it is taken up again."""

from types import SimpleNamespace

import torch

from pipeline.training.checkpoint import Checkpoints


def test_a_rank_keeps_and_takes_up_the_state_of_its_own_gpu(tmp_path, monkeypatch):
    gpus = {0: torch.tensor([1]), 1: torch.tensor([2])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: gpus[device.index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, number {device.index}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: gpus.update({device.index: state}))
    budget = SimpleNamespace(progress=lambda: {"step": 1, "seconds": 1.0}, restore=lambda progress: None)
    callback = Checkpoints(tmp_path, {}, budget, every=0, keep_every=0)
    checkpoint: dict = {}
    callback.on_save_checkpoint(None, SimpleNamespace(device=torch.device("cuda", 1)), checkpoint)
    assert checkpoint["arithmetic"]["hardware"] == "a GPU, number 1"
    # Continued on a machine with one GPU.
    del gpus[1]
    callback.on_load_checkpoint(None, None, checkpoint)
    callback.on_train_start(None, SimpleNamespace(device=torch.device("cuda", 0)))
    assert gpus == {0: torch.tensor([2])}
    # And on none.
    callback.on_train_start(None, SimpleNamespace(device=torch.device("cpu")))
