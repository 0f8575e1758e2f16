import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError
from pipeline.networks.generator_file import channels_of, load_generator, read_generator
from pipeline.networks.patchgan import PatchDiscriminator
from pipeline.networks.resnet_generator import ResnetGenerator
from pipeline.networks.unet_generator import UnetGenerator

TINY = {"width": 2, "blocks": 2}


def generator(channels: int = 3, **settings) -> ResnetGenerator:
    torch.manual_seed(3)
    network = ResnetGenerator(channels, channels, **{**TINY, **settings})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return network


def legacy(state: dict) -> OrderedDict:
    """Add what instance norms of old kept, with values that would spoil the translation if they were used."""
    norms = {f"model.{place}": 0 for place in (2, 5, 8, 13, 16)} | {
        f"model.{block}.conv_block.{place}": 0 for block in (10, 11) for place in (2, 6)
    }
    state = OrderedDict(state)
    for name in norms:
        state |= {f"{name}.running_mean": torch.full((8,), 9.0), f"{name}.running_var": torch.full((8,), 5.0)}
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_legacy_checkpoint_with_running_statistics_translates_as_before(tmp_path, zipped, prefix):
    network, image = generator(), torch.rand(1, 3, 8, 8)
    state = OrderedDict((prefix + key, value) for key, value in legacy(network.state_dict()).items())
    state._metadata = OrderedDict(version=1)
    torch.save(state, tmp_path / "horse2zebra.pth", _use_new_zipfile_serialization=zipped)
    found = read_generator(tmp_path / "horse2zebra.pth")
    assert channels_of(found) == (3, 3)
    other = ResnetGenerator(3, 3, **TINY)
    load_generator(other, found, "horse2zebra.pth")
    assert torch.equal(other(image), network(image))


def test_into_one_channel_the_input_is_summed_exactly_and_the_output_averaged_before_the_tanh():
    network, image = generator(), torch.rand(1, 1, 32, 32)
    grey = ResnetGenerator(**TINY)
    load_generator(grey, network.state_dict(), "a.pth")
    assert torch.allclose(grey.model[1](image), network.model[1](image.expand(-1, 3, -1, -1)), atol=1e-5)
    body = network.model[:-1](image.expand(-1, 3, -1, -1))
    assert torch.allclose(grey(image), torch.tanh(body.mean(1, keepdim=True)), atol=1e-3)
    assert not torch.allclose(grey(image), network(image), atol=1e-2)  # the mean after the tanh is another one


def without(state: dict, *names: str) -> dict:
    return {key: value for key, value in state.items() if key not in names}


def test_files_of_other_networks_are_refused_with_the_difference(tmp_path):
    good = generator().state_dict()
    bad = {
        "a U-Net of pix2pix": UnetGenerator(width=2, depth=2).state_dict(),
        "a patch discriminator": PatchDiscriminator(width=2).state_dict(),
        "with dropout": generator(dropout=0.5).state_dict(),
        "entries: fc.weight": {"fc.weight": torch.ones(1)},
        "it lacks 2 entries: model.11.conv_block.1.bias, model.4.weight": without(
            good, "model.4.weight", "model.11.conv_block.1.bias"
        ),
        "it has what the network has not: 1 entries: model.99.weight": {**good, "model.99.weight": torch.ones(1)},
        "model.4.weight (4, 2, 5, 5) instead of (4, 2, 3, 3)": {**good, "model.4.weight": torch.ones(4, 2, 5, 5)},
        "not finite": {**good, "model.4.bias": torch.full((4,), torch.nan)},
        "it lacks 1 entries: model.19.weight": without(good, "model.19.weight"),
    }
    for message, state in bad.items():
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(ArtifactError) as refused:
            read_generator(tmp_path / "a.pth")
        assert message in str(refused.value)
        assert "'a.pth'" in str(refused.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"channels": 3}, r"1 channels to 1, where the network has 3 to 3"),
        ({"channels": 1, "blocks": 9}, "2 residual blocks, where the network has 9"),
        ({"channels": 1, "width": 4}, r"2 channels at full resolution \(width\), where the network has 4"),
    ],
)
def test_a_network_of_another_size_is_refused_with_the_difference(network, message):
    with pytest.raises(ArtifactError, match=message):
        load_generator(generator(**network), generator(1).state_dict(), "a.pth")


class Executes:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["CINEVOX_TEST_PLACE"])),)


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CINEVOX_TEST_PLACE", str(tmp_path / "executed"))
    torch.save({"model.1.weight": torch.ones(1), "x": Executes()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Executes()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_generator(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for zipped in (True, False):
        torch.save(generator().state_dict(), folder / f"{zipped}.pth", _use_new_zipfile_serialization=zipped)
    return sorted(folder.iterdir())


@given(share=st.floats(0, 0.999), which=st.integers(0, 1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_is_refused(files, share, which):
    content = files[which].read_bytes()
    cut = files[which].with_name("cut.pth.partial")
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError, match=r"cannot be read|does not hold"):
        read_generator(cut)


def test_no_file_and_no_state_dict_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_generator(tmp_path / "none.pth")
    torch.save({1: torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match="does not hold a state dict"):
        read_generator(tmp_path / "a.pth")
