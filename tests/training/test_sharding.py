"""FSDP: composed, refused where it cannot work with the reason, and on a GPU it trains and leaves whole weights."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from pipeline.__main__ import main
from pipeline.config import compose
from pipeline.errors import ConfigError
from pipeline.training.ranks import Ranks, strategy_for
from pipeline.training.sharding import check_sharding, fsdp, sharded_precision

GPU = torch.device("cuda")


class Linear(pl.LightningModule):
    """One optimiser that Lightning steps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def training_step(self, batch, _):
        return (self.layer(batch) - batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class ByHand(Linear):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def test_it_is_composed_and_ddp_stays_the_default():
    config = compose(["trainer=fsdp"])
    assert (config.trainer.strategy, config.trainer.precision) == ("fsdp", "bf16-mixed")
    assert compose([]).trainer.strategy == "ddp"
    assert config.trainer.budget == compose([]).trainer.budget


@pytest.mark.parametrize(
    ("method", "device", "precision", "ranks", "message"),
    [
        (Linear, torch.device("cpu"), "fp32", 2, r"needs GPUs.*fsdp on cpu.*trainer.strategy=ddp"),
        (Linear, GPU, "fp32", 1, r"1 rank.*at least 2"),
        (Linear, GPU, "fp16-mixed", 2, r"bf16-mixed or fp32"),
        (ByHand, GPU, "bf16-mixed", 2, r"ByHand steps its optimisers by hand.*no rank has them.*one optimiser"),
    ],
)
def test_where_it_cannot_work_it_is_refused_with_the_reason(method, device, precision, ranks, message):
    with pytest.raises(ConfigError, match=message):
        check_sharding(method(), device, precision, ranks)


def test_what_is_left_is_accepted_and_the_trainer_gets_its_strategy_and_precision():
    check_sharding(Linear(), GPU, "bf16-mixed", 2)
    assert strategy_for(Ranks(0, 1, 0, 1), "fsdp") == "auto"
    strategy = fsdp("nccl")
    assert strategy._state_dict_type == "full"
    assert strategy.kwargs["auto_wrap_policy"].keywords == {"min_num_params": 10_000_000}
    assert sharded_precision("bf16-mixed").precision == "bf16-mixed"
    assert sharded_precision("fp32").precision == "32-true"


def test_a_training_on_a_cpu_is_refused_before_it_writes(tiny_shards, tmp_path, capsys):
    command = ["train", f"input={tiny_shards}", f"output={tmp_path / 'run'}", "source=t1n", "tracking=none"]
    assert main([*command, "model=regression", "trainer=fsdp", "trainer.accelerator=cpu"]) == 2
    assert "FSDP needs GPUs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_on_a_gpu_it_trains_and_its_checkpoint_holds_whole_weights(tmp_path):
    method = Linear()
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        strategy=fsdp(),
        plugins=[sharded_precision("bf16-mixed")],
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, torch.utils.data.DataLoader(torch.randn(12, 8), batch_size=4))
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    weights = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    assert {name: tuple(value.shape) for name, value in weights.items()} == {"layer.weight": (8, 8), "layer.bias": (8,)}
