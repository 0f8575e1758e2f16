"""torch.compile and bf16 weights: the same names, the same numbers within a bound, few graphs, clear refusals."""

import copy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import nn

from pipeline.__main__ import main
from pipeline.errors import ConfigError
from pipeline.networks.residual_unet import ResidualUNet
from pipeline.training.compilation import check_compiler, compile_for_inference, compile_networks, trained_networks
from pipeline.training.precision import autocast, round_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from miniatures import MINIATURE
from model_making import draw_head, make_batch, make_film, make_method, modalities_of, same, train, weights_of

pytestmark = [
    # Lightning's own, about a class of torch.utils that torch renamed.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    # torch's own, when the compiler is first imported.
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
    # dynamo looks at every input's gradient.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
CPU = torch.device("cpu")
LEARNING = sorted(set(MINIATURE) - {"identity"})
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LEARNING)
def test_compiling_changes_no_name_and_spares_the_averages(name):
    method = make_method(name)
    names = list(method.state_dict())
    compile_networks(method)
    assert list(method.state_dict()) == names
    networks = trained_networks(method)
    assert networks
    assert not any(network is method.ema or network is method.ema.module for network in networks)
    assert same(weights_of(copy.deepcopy(method)), weights_of(method))


def test_other_shapes_are_compiled_once_more_and_then_no_more():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    network = ResidualUNet(widths=[2, 4], residual_units=0)
    plain = copy.deepcopy(network)
    network.compile(backend=count)
    for frames, height, width in ((4, 16, 16), (8, 16, 16), (12, 17, 23), (3, 31, 18), (7, 21, 39)):
        images = torch.randn(frames, 1, height, width)
        assert torch.allclose(network(images), plain(images), atol=1e-5)
    assert len(graphs) <= 4  # one as met, one with free frames, and those of sizes that need or need no padding


def test_a_missing_compiler_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no-such-compiler.*trainer.compile=false"):
        check_compiler(CPU)


def test_training_without_a_compiler_writes_nothing(tiny_shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    command = ["train", f"input={tiny_shards}", f"output={tmp_path / 'run'}", "source=t1n", "tracking=none"]
    assert main([*command, "model=regression", "trainer.compile=true"]) == 2
    assert "C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", LEARNING)
def test_bf16_weights_leave_heads_in_float32_and_err_like_autocast(name):
    exact = make_method(name)
    if name == "regression":
        draw_head(exact)
    rounded = copy.deepcopy(exact)
    round_weights(rounded)
    convolutions = {k: m for k, m in rounded.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    heads = {k for k, m in convolutions.items() if "head" in k or getattr(m, "stays_float32", False)}
    assert heads
    for key, module in convolutions.items():
        assert module.weight.dtype == (torch.float32 if key in heads else torch.bfloat16)
    film = make_film(4)[0]
    wanted = exact.translate(film, **modalities_of(exact))
    with autocast("bf16-mixed", CPU):
        mixed = exact.translate(film, **modalities_of(exact))
    with autocast("bf16", CPU):
        found = rounded.translate(film, **modalities_of(rounded))
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    error, accepted = ((values - wanted).abs().mean() for values in (found, mixed))
    assert error < 1.5 * accepted + 1e-3


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize("name", LEARNING)
def test_compiled_networks_have_the_results_and_gradients_of_plain_ones(name):
    # Network by network: a whole step of vid2vid turns rounding into pixels of flow and thresholds of confidence.
    method = make_method(name)
    networks = [n for n in trained_networks(method) if any(p.requires_grad for p in n.parameters())]
    calls = {}
    hooks = [n.register_forward_pre_hook(lambda n, a, k: calls.update({n: (a, k)}), with_kwargs=True) for n in networks]
    train(method, [make_batch(4)])
    for hook in hooks:
        hook.remove()
    assert calls
    for network, (args, kwargs) in calls.items():
        compiled = copy.deepcopy(network)
        compiled.compile()
        wanted, found = (results_and_gradients(n, args, kwargs) for n in (network, compiled))
        assert len(wanted) == len(found)
        largest = max(tensor.norm() for tensor in wanted)
        for one, other in zip(wanted, found, strict=True):
            # Gradients of biases before a norm are nothing but rounding.
            assert (one - other).norm() <= 1e-3 * one.norm() + 1e-5 * largest


def results_and_gradients(network, args, kwargs):
    args = [a.detach().clone() if torch.is_tensor(a) else a for a in args]
    results = list(tensors_in(network(*args, **kwargs)))
    total = sum((r * torch.arange(r.numel()).reshape(r.shape).sin()).sum() for r in results)
    gradients = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
    return [tensor.detach() for tensor in [*results, *gradients] if tensor is not None]


def tensors_in(result):
    if torch.is_tensor(result):
        yield result
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from tensors_in(part)


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize("name", LEARNING)
def test_a_compiled_training_resumes_exactly(name, tmp_path):
    unbroken, broken, resumed = (make_method(name, seed=seed) for seed in (0, 0, 9))
    for method in (unbroken, broken, resumed):
        compile_networks(method)
    batches = [make_batch(4)]
    train(unbroken, batches, max_epochs=2)
    train(broken, batches).save_checkpoint(tmp_path / "a.ckpt")
    train(resumed, batches, resume=tmp_path / "a.ckpt", max_epochs=2)
    assert same(weights_of(unbroken), weights_of(resumed))


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize("name", LEARNING)
def test_compiled_methods_translate_as_plain_ones(name):
    import torch._inductor.config as inductor

    plain, compiled = make_method(name), make_method(name)
    film = make_film(5)[0]
    wanted = plain.translate(film, **modalities_of(plain))
    with inductor.patch(freezing=False), torch.inference_mode():  # puts back what is set inside
        compile_for_inference(compiled)
        error = (compiled.translate(film, **modalities_of(compiled)) - wanted).abs()
    assert error[0].max() < 1e-4
    assert error.mean() < 0.01  # later frames are made from earlier ones, along a flow of many pixels
