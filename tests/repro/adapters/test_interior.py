"""Bad versions of diffusers networks: attention against a direct computation, and what else is made worse."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch

from metrics.files import InputError
from repro.adapters import from_diffusers, from_epsilon, interior, null_class
from repro.adapters.parameterisations import Adapted
from repro.degradations import attention_blocks, degrade, seed_degradations
from repro.sampler import SeedStreams, draw_inputs, sample

diffusers = pytest.importorskip("diffusers")
from tests.repro.adapters.networks import CLASSES, transformer, unet, vae  # noqa: E402

WORSE: list[dict[str, Any]] = [
    {"input_noise": 0.2},
    {"blurred_attention": 0.7},
    {"blurred_attention": math.inf},
    {"identity_attention": 1},
    {"quantised": 3},
    {"sliding_window": [4, 2]},
    {"random_label": 1},
]


def dit() -> Adapted:
    return from_diffusers(
        diffusers.DiTPipeline(transformer(), vae(), diffusers.DDIMScheduler(clip_sample=False)), device="cpu"
    )


def u_net() -> Adapted:
    return from_diffusers(diffusers.DDPMPipeline(unet(CLASSES), diffusers.DDPMScheduler()))


MODELS = {"dit": dit, "unet": u_net}


def answer(network: Any, seeds: list[int]) -> torch.Tensor:
    """At one noise level, of images that depend on their seeds alone."""
    seed_degradations(network, SeedStreams("cpu", seeds))
    noise, labels = draw_inputs(network, seeds)
    with torch.no_grad():
        return network(2 * noise, torch.tensor(2.0), labels)


def attended(module: Any, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Self-attention of a module on tokens [N, HW, C] of a square image, its queries blurred by SciPy; float64."""
    n, tokens, _ = x.shape
    side = math.isqrt(tokens)
    q, k, v = ((x @ part.weight.T + part.bias).numpy() for part in (module.to_q, module.to_k, module.to_v))
    image = q.reshape(n, side, side, -1)
    if math.isinf(sigma):
        image = np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape)
    elif sigma:
        size = min(math.ceil(6 * sigma) // 2 * 2 + 1, side // 2 * 2 + 1)
        image = scipy.ndimage.gaussian_filter(image, sigma, mode="mirror", axes=(1, 2), radius=size // 2)
    q, k, v = (y.reshape(n, tokens, module.heads, -1).transpose(0, 2, 1, 3) for y in (image, k, v))
    logits = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    y = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    y = torch.from_numpy(np.ascontiguousarray(y.transpose(0, 2, 1, 3)).reshape(n, tokens, -1))
    return y @ module.to_out[0].weight.T + module.to_out[0].bias


def modules(network: Any) -> dict[str, Any]:
    found = interior.network_of(network)
    assert found is not None
    return dict(found.named_modules())


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, math.inf])
def test_blurred_queries_of_a_transformer_are_those_of_a_blurred_image(sigma: float) -> None:
    network = dit().double()
    name = "transformer_blocks.1.attn1"
    module = modules(degrade(network, {"blurred_attention": sigma}).inner())[name]  # type: ignore[attr-defined]
    x = torch.randn(3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), attended(modules(network)[name], x, sigma), rtol=0, atol=1e-10)


def test_blurred_queries_of_a_unet_are_those_of_a_blurred_image() -> None:
    """Its attention normalises the image before, and adds it after."""
    network = u_net().double()
    name = "mid_block.attentions.0"
    module = modules(degrade(network, {"blurred_attention": 1.0}).inner())[name]  # type: ignore[attr-defined]
    x = torch.randn(3, 16, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        tokens = module.group_norm(x).flatten(2).transpose(1, 2)
        wanted = x + attended(module, tokens, 1.0).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_an_exchangeable_attention_is_diffusers_own(kind: str) -> None:
    network = MODELS[kind]()
    torch.testing.assert_close(answer(interior.reachable(network), [1, 2]), answer(network, [1, 2]), rtol=0, atol=0)
    for strength in ({"blurred_attention": 0.0, "identity_attention": 0, "quantised": 0, "sliding_window": [8, 4]},):
        torch.testing.assert_close(answer(degrade(network, strength), [1, 2]), answer(network, [1, 2]), rtol=0, atol=0)


def test_identity_attention_lets_the_values_out_and_spares_other_layers() -> None:
    first, second = "transformer_blocks.0.attn1", "transformer_blocks.1.attn1"
    worse = degrade(dit(), {"identity_attention": {"strength": 1, "layers": [first]}}).inner()  # type: ignore[attr-defined]
    assert list(attention_blocks(worse)) == [first, second]
    found, x = modules(worse), torch.randn(2, 16, 16)
    with torch.no_grad():
        module = found[first]
        torch.testing.assert_close(module(x), module.to_out[0](module.to_v(x)))
        module = found[second]
        assert not torch.allclose(module(x), module.to_out[0](module.to_v(x)))
    with pytest.raises(InputError, match=r"no self-attention 'transformer_blocks.7.attn1'; did you mean"):
        degrade(dit(), {"identity_attention": {"strength": 1, "layers": ["transformer_blocks.7.attn1"]}})


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("wanted", WORSE, ids=str)
def test_each_makes_another_answer_that_belongs_to_the_image_s_own_seed(kind: str, wanted: dict[str, Any]) -> None:
    network = MODELS[kind]()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain, worse = answer(network, [5, 6]), answer(degrade(network, wanted), [5, 6])
    assert (plain - worse).norm() > 1e-4 * plain.norm()
    assert torch.equal(worse, answer(degrade(network, wanted), [5, 6]))
    torch.testing.assert_close(worse[0], answer(degrade(network, wanted), [5, 9])[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(answer(network, [5, 6]), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", MODELS)
def test_quantised_are_convolutions_and_linear_layers_but_no_embeddings(kind: str) -> None:
    network = MODELS[kind]()
    worse = modules(degrade(network, {"quantised": 4}).inner())  # type: ignore[attr-defined]
    for name, module in modules(network).items():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            w, found = module.weight.flatten(1), worse[name].weight.flatten(1)
            step = w.abs().amax(dim=1, keepdim=True) / 7
            embeds = ".emb." in name or name.startswith(("time_embedding", "class_embedding"))
            torch.testing.assert_close(found, w if embeds else (w / step).round() * step, rtol=1e-5, atol=1e-7)
            assert torch.equal(worse[name].bias, module.bias)


def test_windows_are_what_the_network_answers_for_smaller_images() -> None:
    network = dit()
    x, sigma, labels = torch.randn(2, 4, 8, 8), torch.tensor(1.5), torch.eye(CLASSES)[[3, 4]]
    with torch.no_grad():
        found = degrade(network, {"sliding_window": [4, 4]})(x, sigma, labels)
        corner = network(x[:, :, 4:, :4], sigma, labels)
    assert torch.equal(found[:, :, 4:, :4], corner)
    for model, size, least in ((network, 3, 2), (u_net(), 5, 2)):
        with pytest.raises(InputError, match=f"size {size}, expected a multiple of {least}"):
            degrade(model, {"sliding_window": [size, 1]})


def test_the_null_class_is_a_bad_version_like_any_other() -> None:
    """Classifier-free guidance from one network, alone and with something worse inside."""
    network = dit()
    noise, labels = draw_inputs(network, [1, 2])
    options: dict[str, Any] = {"guidance": 2.0, "num_steps": 3}
    plain = sample(network, noise, labels, guide=null_class(network), **options)
    assert torch.equal(sample(network, noise, labels, guide=degrade(network, {"null_class": 1}), **options), plain)
    both = {"null_class": 1, "identity_attention": 1}
    worse = sample(network, noise, labels, guide=degrade(network, both), **options)
    wanted = sample(network, noise, labels, guide=degrade(null_class(network), {"identity_attention": 1}), **options)
    assert torch.equal(worse, wanted)
    assert not torch.equal(worse, plain)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"dropout": 0.1}, "'dropout' needs one of this project's networks, whose blocks"),
        ({"null_class": 1}, "no null label"),
        ({"null_class": 1, "random_label": 1}, "no null label"),
        ({"sliding_window": [16, 8]}, "size 16, the image has 8"),
    ],
)
def test_what_a_unet_cannot_have_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        degrade(u_net(), wanted)


def test_a_network_without_self_attention_cannot_have_it_worse() -> None:
    plain = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4, layers_per_block=1, add_attention=False,
    )  # fmt: skip
    network = from_diffusers(diffusers.DDPMPipeline(plain, diffusers.DDPMScheduler()))
    with pytest.raises(InputError, match="no self-attention that could be made worse"):
        degrade(network, {"identity_attention": 1})


@pytest.mark.parametrize("name", ["blurred_attention", "identity_attention", "quantised", "sliding_window"])
def test_a_model_that_is_a_mere_function_cannot_be_reached_into(name: str) -> None:
    alphas = torch.linspace(0.99, 0.01, 10)
    network = from_epsilon(lambda x, t: x, alphas, img_resolution=8, img_channels=1)
    with pytest.raises(InputError, match=f"'{name}' needs one of this project's networks, or a DiT or UNet2D"):
        degrade(network, {name: [4, 2] if name == "sliding_window" else 2 if name == "quantised" else 1})
