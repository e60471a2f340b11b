import logging
import os
import pickle
import warnings
from urllib.error import URLError

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from datasets import lungmask_model
from datasets.lungmask_model import Lungmask, load_lungmask
from datasets.phantom.make import make_phantom
from utils.errors import VolumeError

CPU = torch.device("cpu")


def _network(classes):
    from lungmask.resunet import UNet

    torch.manual_seed(3)
    return UNet(n_classes=classes, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("lungmask") / "random.pth"
    network = _network(3).eval()
    with torch.inference_mode():  # without this one class wins everywhere
        level = network(torch.full((1, 1, 64, 64), 0.55)).mean((0, 2, 3))
    network.last.bias.data -= level
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def thin_ct():
    case = make_phantom(np.random.default_rng(0), (16, 32, 32), diseased=False)
    image = sitk.GetImageFromArray(case.ct)
    image.SetSpacing(case.spacing)
    return image[:, :, 6:8]


def test_the_labels_are_lungmasks_with_openvino_and_with_pytorch(weights, thin_ct, capsys):
    filters = list(warnings.filters)
    segment = load_lungmask(weights=weights, device=CPU, precision="fp32")
    assert warnings.filters == filters
    turned = sitk.DICOMOrient(thin_ct, "RAS")
    labels = segment(turned)
    assert segment.way.startswith("OpenVINO")
    assert capsys.readouterr().out == ""

    from lungmask import LMInferer

    direct = LMInferer(modelpath=str(weights), force_cpu=True, tqdm_disable=True).apply(turned)
    np.testing.assert_array_equal(labels, direct)
    segment.engine._failed = True
    np.testing.assert_array_equal(segment(turned), direct)
    assert segment.way.startswith("PyTorch")
    assert labels.shape == turned.GetSize()[::-1]
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2}


@pytest.fixture(scope="module")
def small(weights):
    """lungmask with a smaller network of its architecture that finds all labels, and ours with the same network."""
    from lungmask import LMInferer
    from lungmask.resunet import UNet

    logging.getLogger("lungmask").setLevel(logging.WARNING)
    torch.manual_seed(1)
    network = UNet(n_classes=3, padding=True, depth=5, wf=1, up_mode="upsample", batch_norm=True).eval()
    with torch.inference_mode():
        network.last.weight.data *= 20
        network.last.bias.data -= network(torch.rand(1, 1, 256, 256)).mean((0, 2, 3))
    theirs = LMInferer(modelpath=str(weights), force_cpu=True, tqdm_disable=True)
    theirs.model = network
    return theirs, Lungmask(network, CPU, "fp32")


@pytest.mark.parametrize(
    ("code", "shape", "kind"),
    [
        ("LPS", (16, 32, 32), np.int16),
        ("RAS", (9, 200, 300), np.float32),
        ("LAI", (5, 64, 512), np.int32),
        ("PSR", (12, 40, 30), np.float64),
        ("SRA", (1, 300, 260), np.int16),
        ("oblique", (6, 130, 600), np.int16),
    ],
)
def test_labels_are_lungmasks_in_any_orientation_shape_and_type(small, code, shape, kind):
    theirs, ours = small
    hu = make_phantom(np.random.default_rng(2), (16, 64, 64), diseased=True).ct
    zoomed = ndimage.zoom(hu, np.divide(shape, hu.shape), order=1) if shape[0] > 1 else hu[8:9]
    ct = sitk.GetImageFromArray(zoomed.astype(kind))
    if code == "oblique":
        ct.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.5, 2.0).GetMatrix())
    else:
        ct = sitk.DICOMOrient(ct, code)
    expected = theirs.apply(ct)
    np.testing.assert_array_equal(ours(ct), expected)
    assert {1, 2} & set(np.unique(expected))


def _one_line(match, **arguments):
    with pytest.raises(VolumeError, match=match) as caught:
        load_lungmask(device=CPU, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_weights(weights, tmp_path):
    half = tmp_path / "half.pth"
    half.write_bytes(weights.read_bytes()[:100_000])
    text = tmp_path / "page.pth"
    text.write_text("<html>404</html>")
    empty = tmp_path / "empty.pth"
    empty.touch()
    flipped = tmp_path / "flipped.pth"  # in the middle of a tensor: torch alone loads it
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    flipped.write_bytes(content)
    for path in (half, text, empty, flipped):
        _one_line(path.name, weights=path)
    _one_line("no such file", weights=tmp_path / "missing.pth")


@pytest.mark.fault("NaN or Inf in weights")
def test_weights_with_nan(weights, tmp_path):
    state = torch.load(weights)
    state["last.bias"][1] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    _one_line(r"nan\.pth: NaN or Inf in its entry 'last.bias'", weights=tmp_path / "nan.pth")


@pytest.mark.fault("another architecture, missing")
def test_weights_of_another_network(tmp_path):
    other = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(4, 3).state_dict(), other)
    _one_line(r"other\.pth.*another network", weights=other)
    lobes = tmp_path / "lobes.pth"
    torch.save(_network(6).state_dict(), lobes)
    _one_line(r"lobes\.pth.*6 classes", weights=lobes)
    for content in ([1, 2], {}, {"a": 3}, {"a": torch.tensor(1.0)}):
        torch.save(content, other)
        _one_line(r"other\.pth", weights=other)


def test_models_of_lobes_are_rejected():
    assert "R231" in _one_line("LTRCLobes", model="LTRCLobes")


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.fault("a pickle that would")
@pytest.mark.parametrize("forced", [False, True])
def test_malicious_weights_run_nothing(tmp_path, monkeypatch, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    bait = tmp_path / "bait"
    plain, legacy, archive = (tmp_path / f"{name}.pth" for name in ("plain", "legacy", "archive"))
    plain.write_bytes(pickle.dumps({"last.bias": _Payload(bait)}))
    torch.save({"last.bias": _Payload(bait)}, legacy, _use_new_zipfile_serialization=False)
    torch.save({"last.bias": _Payload(bait)}, archive)
    for path in (plain, legacy, archive):
        assert "never run" in _one_line(path.name, weights=path)
    assert not bait.exists()


@pytest.mark.fault("lungmask's weights out")
def test_without_weights_and_network_both_remedies_are_named(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise URLError("[Errno -3] Temporary failure\nin name resolution")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lungmask_model, "urlopen", refuse)
    message = _one_line("cannot be downloaded")
    assert "--weights FILE" in message
    assert "--lungs threshold" in message


def test_weights_in_the_cache_are_used_and_checked(monkeypatch, tmp_path):
    cached = tmp_path / "checkpoints" / "unet_r231-d5d2fc3d.pth"
    cached.parent.mkdir()
    cached.write_text("not weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    _one_line("unet_r231")
