import logging
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
from tests.models.test_torch_files import Payload
from tests.volumes import refused

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
    return refused("", lambda: load_lungmask(device=CPU, **arguments), match)


@pytest.mark.fault("NaN or Inf in weights", "a pickle that would")
def test_weights_are_read_as_checkpoints_are(weights, tmp_path):
    path, bait = tmp_path / "weights.pth", tmp_path / "bait"
    state = torch.load(weights)
    nan = state["last.bias"] * float("nan")
    for entry, message in ((nan, "NaN or Inf in its entry 'last.bias'"), (Payload(bait), "never run")):
        torch.save(state | {"last.bias": entry}, path)
        _one_line(rf"weights\.pth: .*{message}", weights=path)
    assert not bait.exists()
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF  # in the middle of a tensor: torch alone loads it
    path.write_bytes(content)
    _one_line(r"weights\.pth", weights=path)
    _one_line("no such file", weights=tmp_path / "missing.pth")


@pytest.mark.fault("another architecture, missing")
def test_weights_of_another_network(tmp_path):
    other = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(4, 3).state_dict(), other)
    _one_line(r"other\.pth: not the weights of lungmask's R231", weights=other)
    lobes = tmp_path / "lobes.pth"
    torch.save(_network(6).state_dict(), lobes)
    _one_line(r"lobes\.pth: not the weights .*models of lobes do not fit", weights=lobes)
    for content in ([1, 2], {}, {"a": 3}, {"a": torch.tensor(1.0)}):
        torch.save(content, other)
        _one_line(r"other\.pth", weights=other)


def test_models_of_lobes_are_rejected():
    assert "R231" in _one_line("LTRCLobes", model="LTRCLobes")


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
