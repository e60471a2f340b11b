"""Load weights of the published code: maps its parameter names to ours."""

import logging
import re
from collections.abc import Mapping

from torch import Tensor, nn

from models.discriminator import Discriminator
from models.generator import Generator
from models.segmenter import Segmenter
from utils.errors import CheckpointError, one_line

log = logging.getLogger(__name__)

# Our module -> the published one. A published separable pair has its four convolutions at 0, 1, 4 and 5.
_PAIRS = {"encode1": "conv1", "encode2": "cov2", "encode3": "cov3", "decode2": "de_cov2", "decode1": "de_cov1"}
_PAIR_POSITIONS = {"0.0": "0", "0.1": "1", "1.0": "4", "1.1": "5"}
_SEGMENTER = {
    "stem.0": "conv",
    "down2.0": "max_cov2.0",
    "down3.0": "max_cov3.0",
    "up2.1": "up_cov2.1",
    "up1.1": "up_cov1.1",
    "predict": "pred",
    **{
        f"{ours}.{position}": f"{theirs}.{published}"
        for ours, theirs in _PAIRS.items()
        for position, published in _PAIR_POSITIONS.items()
    },
}
_GENERATOR = {
    **{f"encode{level}.0": f"conv{level}.0" for level in range(1, 6)},
    **{f"decode{level}.1": f"up_conv{level}.1" for level in range(1, 5)},
    "predict.1": "out_G.output_conv",
}
_ONE_HEAD = {
    "first.0": "cov_init.0",
    "plane1.0": "cov1.0",
    "down2.0": "cov3.0",
    "plane2.0": "cov5.0",
    "down3.0": "cov6.0",
    "plane3.0": "cov8.0",
    "down4.0": "cov9.0",
    "plane4.0": "cov11.0",
    "down5.0": "cov12.0",
    "judge": "layer",
}
_TWO_HEADS = {name: published for name, published in _ONE_HEAD.items() if name != "plane4.0"} | {
    "squeeze.0": "flat_conv2.0",
    "judge_patches": "out_conv",
}


# Our modules with their published names, and published layers that the forward pass does not use.
_PUBLISHED = {
    "segmenter": (_SEGMENTER, ("max_cov4", "cov4", "up_cov3", "de_cov3")),
    "generator": (_GENERATOR, ("out_2", "out_3", "out_4")),
    "discriminator with one head": (_ONE_HEAD, ("cov13", "flat_conv2", "out_conv", "att")),
    "discriminator with two heads": (_TWO_HEADS, ("cov11", "cov13", "att")),
}
_HEADS = {1: "discriminator with one head", 2: "discriminator with two heads"}


def _title(network: nn.Module) -> str | None:
    if isinstance(network, Discriminator):
        return _HEADS[network.heads]
    return {Segmenter: "segmenter", Generator: "generator"}.get(type(network))


# The published spectral norm and PyTorch's parametrization store the same three tensors.
_SPECTRAL_NORM = {
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}


def _published_name(modules: Mapping[str, str], name: str) -> str:
    module = next(module for module in modules if name.startswith(module + "."))
    tensor = name.removeprefix(module + ".")
    return f"{modules[module]}.{_SPECTRAL_NORM.get(tensor, tensor)}"


def without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefixes ``module.`` and ``_orig_mod.`` of wrapped modules from the names of a state dict.

    Raises:
        CheckpointError: two entries would get the same name.
    """
    plain = {re.sub(r"(?<![^.])(module|_orig_mod)\.", "", name): tensor for name, tensor in state_dict.items()}
    if len(plain) < len(state_dict):
        raise CheckpointError("holds the same weights twice, with and without module. or _orig_mod. in their names")
    return plain


def is_published(network: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the parameter names of the published code for this network."""
    title = _title(network)
    if title is None:
        return False
    first = _published_name(_PUBLISHED[title][0], next(iter(network.state_dict())))
    return any(name.startswith(first.split(".")[0]) for name in without_wrappers(state_dict))


def load_published(network: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """Load weights of the published code into a Segmenter, Generator or Discriminator.

    Entries of layers that the published forward pass does not use are ignored, and prefixes of wrappers are stripped. A
    spectral norm may be stored in the old form (``weight_orig``) or as a parametrization. Returns what the weights are:
    ``segmenter``, ``generator``, ``discriminator with one head`` or ``... two heads``.

    Raises:
        CheckpointError: an entry is missing, unknown, or has a different shape, as in a discriminator with another
            number of heads.
    """
    title = _title(network)
    modules, unused = _PUBLISHED[title]
    ours = {_published_name(modules, name): name for name in network.state_dict()}
    given: dict[str, Tensor] = {}
    for name, tensor in without_wrappers(state_dict).items():
        if name.split(".")[0] not in unused:
            for new, old in _SPECTRAL_NORM.items():
                name = name.replace(new, old)
            given[ours.get(name, name)] = tensor
    try:
        network.load_state_dict(given)
    except RuntimeError as error:
        raise CheckpointError(f"not the weights of a published {title} of this size ({one_line(error)})") from None
    log.info("loaded the weights of a published %s", title)
    return title
