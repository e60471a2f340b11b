from functools import partial

import numpy as np
import pytest
import torch

from models import Discriminator, Generator, Segmenter, load_published
from models.losses import HEALTHY, OTHER, adversarial_loss
from tests import reference
from tests.volumes import refused
from utils.errors import CheckpointError

NETWORKS = {
    "segmenter_base4": lambda: Segmenter(width=4),
    "generator_base4": lambda: Generator(width=4),
    "discriminator_base2": lambda: Discriminator(width=2),
    "discriminator_two_heads_base2": lambda: Discriminator(width=2, heads=2),
}


def filled(name):
    arrays = reference.load(name)
    network = NETWORKS[name]()
    load_published(network, reference.published_state(arrays))
    return network.eval(), arrays


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_input_gradients_agree_with_the_published_networks(name):
    network, arrays = filled(name)
    x = reference.wave(tuple(arrays["input_shape"]), float(arrays["input_phase"])).requires_grad_()
    output, phase = network(x), float(arrays["grad_phase"])
    if name.startswith("segmenter"):
        output = output.sigmoid()
    outputs = output if isinstance(output, tuple) else (output,)
    expected = [arrays[key] for key in ("output", "patches") if key in arrays]
    assert [tuple(o.shape) for o in outputs] == [e.shape for e in expected]
    for found, numbers in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), numbers, atol=1e-4)
    waves = [reference.wave(tuple(o.shape), phase + 0.5 * number) for number, o in enumerate(outputs)]
    sum((o * wave).sum() for o, wave in zip(outputs, waves, strict=True)).backward()
    gradient = x.grad.numpy()
    scale = np.abs(arrays["input_grad_sample"]).max()
    np.testing.assert_allclose(gradient.ravel()[::997], arrays["input_grad_sample"], atol=1e-4 * scale)
    assert np.abs(gradient, dtype=np.float64).sum() == pytest.approx(float(arrays["input_grad_abs"]), rel=1e-4)
    assert gradient.sum(dtype=np.float64) == pytest.approx(
        float(arrays["input_grad_sum"]), abs=1e-4 * float(arrays["input_grad_abs"])
    )


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (Segmenter, 484_701),
        (Generator, 10_564_768),
        (Discriminator, 11_952_065),
        (lambda: Discriminator(heads=2), 11_337_461),
    ],
)
def test_the_published_widths_have_the_published_numbers_of_parameters(network, parameters):
    assert sum(p.numel() for p in network().parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_the_published_code_that_do_not_fit_are_refused(name):
    network, state = NETWORKS[name](), reference.published_state(reference.load(name))
    first = next(key for key in state if "conv1" in key or "cov1" in key)
    without = {key: value for key, value in state.items() if key != first}
    odd = torch.zeros(1, 2)
    wrong = {"Missing key": without, "Unexpected key": state | {"stray": odd}, "size mismatch": state | {first: odd}}
    for reason, weights in wrong.items():
        message = f"not the weights of a published .*{reason}"
        refused("", partial(load_published, network, weights), message, CheckpointError)


def test_adversarial_losses_of_one_head_and_of_two_are_the_published_ones():
    network, arrays = filled("discriminator_two_heads_base2")
    heads = network(reference.wave(tuple(arrays["input_shape"]), float(arrays["input_phase"])))
    one = reference.load("losses")
    for label, name in ((HEALTHY, "adversarial_healthy"), (OTHER, "adversarial_others")):
        assert adversarial_loss(heads, label).item() == pytest.approx(float(arrays[name]), abs=1e-4)
        assert adversarial_loss(torch.from_numpy(one["logits"]), label).item() == pytest.approx(
            float(one[name]), abs=1e-6
        )


def test_published_discriminators_with_one_head_and_with_two_are_told_apart():
    for name, heads, other in (("discriminator_base2", 1, 2), ("discriminator_two_heads_base2", 2, 1)):
        state = reference.published_state(reference.load(name))
        words = {1: "discriminator with one head", 2: "discriminator with two heads"}
        assert load_published(Discriminator(width=2, heads=heads), state) == words[heads]
        wrapped = {f"module.{key}": value for key, value in state.items()}
        with pytest.raises(CheckpointError, match=f"not the weights of a published {words[other]}"):
            load_published(Discriminator(width=2, heads=other), wrapped)


def test_wrapped_names_and_parametrized_spectral_norm_load_too():
    network, arrays = filled("discriminator_base2")
    renamed = {
        "module."
        + name.replace("weight_orig", "parametrizations.weight.original")
        .replace("weight_u", "parametrizations.weight.0._u")
        .replace("weight_v", "parametrizations.weight.0._v"): tensor
        for name, tensor in reference.published_state(arrays).items()
    }
    other = Discriminator(width=2)
    load_published(other, renamed)
    for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (Segmenter(2), (1, 1, 10, 16, 16), "depth a multiple of 4"),
        (Segmenter(2), (1, 2, 8, 16, 16), "segmenter takes"),
        (Segmenter(2), (8, 16, 16), "segmenter takes"),
        (Generator(2), (1, 1, 40, 160, 160), "depth a multiple of 16, height of 32 and width of 32"),
        (Discriminator(2, (16, 64, 64)), (1, 1, 32, 64, 64), r"built for volumes of \(16, 64, 64\)"),
    ],
)
def test_wrong_input_sizes_say_which_are_right(network, shape, message):
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(shape))


@pytest.mark.parametrize("size", [(40, 160, 160), (16, 32, 32), (0, 64, 64)])
def test_a_discriminator_of_an_impossible_size_or_number_of_heads_is_refused(size):
    with pytest.raises(ValueError, match="depth a multiple of 16"):
        Discriminator(2, size)
    with pytest.raises(ValueError, match="1 or 2 heads, got 3"):
        Discriminator(2, (16, 64, 64), heads=3)


def test_segmenter_and_generator_do_not_depend_on_the_mode_but_the_discriminator_does():
    x = reference.wave((1, 1, 16, 64, 64), 0.1)
    for network in (Segmenter(2), Generator(2)):
        assert torch.equal(network.train()(x), network.eval()(x))
    discriminator, _ = filled("discriminator_base2")
    vectors = discriminator.first[0].parametrizations.weight[0]._u.clone()
    x = reference.wave((1, 1, 32, 160, 160), 0.1)
    discriminator(x)
    assert torch.equal(vectors, discriminator.first[0].parametrizations.weight[0]._u)
    discriminator.train()(x)
    assert not torch.equal(vectors, discriminator.first[0].parametrizations.weight[0]._u)


def test_spectral_norms_are_computed_once_a_pass_and_in_single_precision():
    discriminator, _ = filled("discriminator_base2")
    seen, norm = [], discriminator.plane1[0].parametrizations.weight[0]

    def note(_, inputs, output):
        seen.append((torch.is_autocast_enabled("cpu"), inputs[0].dtype, output.dtype))

    hook = norm.register_forward_hook(note)
    x = reference.wave((1, 1, 32, 160, 160), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        discriminator(x)
    hook.remove()
    assert seen == [(False, torch.float32, torch.float32)]
    # Another pass computes them anew: a step of the optimiser lies between.
    with torch.no_grad():
        before = discriminator.plane1[0].weight.clone()
        discriminator.plane1[0].parametrizations.weight.original[0] *= 3
    assert not torch.equal(before, discriminator.plane1[0].weight)
