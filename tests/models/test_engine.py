import logging
import os
import subprocess
import sys

import pytest
import torch

from models import Segmenter, engine
from models.engine import Engine, precision_of_lungs
from models.layers import place

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gasnet"


@pytest.fixture
def segmenter():
    torch.manual_seed(4)
    return place(Segmenter(4), CPU).eval()


def volume(*shape):
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def conversions(monkeypatch):
    made, convert = [], engine._convert
    monkeypatch.setattr(engine, "_convert", lambda network, x: made.append(tuple(x.shape)) or convert(network, x))
    return made


@torch.no_grad()
def test_the_mask_of_openvino_is_that_of_pytorch_at_any_multiple_of_4(segmenter, monkeypatch):
    made, network = conversions(monkeypatch), Engine(segmenter)
    for shape, count in (((12, 80, 64), 2), ((4, 32, 32), 2), ((20, 16, 40), 2), ((20, 16, 40), 1)):
        torch.set_num_threads(count)  # the fixture of all tests sets it back
        expected, found = segmenter(volume(*shape)), network(volume(*shape))
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)
        far = expected.abs() > 5e-5
        assert torch.equal((found > 0)[far], (expected > 0)[far])
        assert 0.01 < (found > 0).float().mean() < 0.99
    assert network.way == f"OpenVINO {engine.version('openvino')} in float32"
    assert [shape[2:] for shape in made] == [(12, 80, 64), (4, 32, 32), (20, 16, 40)]


@torch.no_grad()
def test_a_second_process_does_not_convert_and_a_damaged_file_is_replaced(segmenter, own_cache, monkeypatch):
    made, x = conversions(monkeypatch), volume(4, 16, 16)
    expected = Engine(segmenter)(x)
    (kept,) = own_cache.iterdir()
    content = kept.read_bytes()
    assert torch.equal(Engine(segmenter)(x), expected)
    assert len(made) == 1
    for damage in (b"", content[:-9] + bytes([content[-9] ^ 64]) + content[-8:]):
        kept.write_bytes(damage)
        assert torch.equal(Engine(segmenter)(x), expected)
    assert len(made) == 3
    with torch.no_grad():
        segmenter.predict.bias += 1
    torch.testing.assert_close(Engine(segmenter)(x), expected + 1, atol=2e-4, rtol=1e-4)
    assert len(list(own_cache.iterdir())) == 2


@torch.no_grad()
@pytest.mark.parametrize("home", ["/dev/null", None])
def test_without_a_folder_to_write_to_the_network_stays_in_memory(segmenter, home, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME")
    if home is None:
        monkeypatch.setattr(engine.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setenv("HOME", home)
    network, x = Engine(segmenter), volume(4, 16, 16)
    torch.testing.assert_close(network(x), segmenter(x), atol=2e-4, rtol=1e-4)
    assert network.way.startswith("OpenVINO")
    assert not caplog.records


@torch.no_grad()
def test_where_openvino_is_missing_or_fails_pytorch_computes_and_one_line_says_so(segmenter, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    x = volume(4, 16, 16)
    network = Engine(segmenter)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_run", lambda compiled, x: (_ for _ in ()).throw(RuntimeError("no\nmemory")))
        for _ in range(2):
            assert torch.equal(network(x), segmenter(x))
        assert network.way == f"PyTorch {engine.version('torch')} in float32"
        (record,) = caplog.records
        assert record.getMessage() == "OpenVINO failed (no memory); PyTorch computes instead"
        patched.setattr(engine, "_run", lambda compiled, x: torch.zeros_like(x))
        assert torch.equal(Engine(segmenter)(x), segmenter(x))
        assert "differ from PyTorch's" in caplog.text
    caplog.clear()
    engine._openvino.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    try:
        assert torch.equal(Engine(segmenter)(x), segmenter(x))
        assert torch.equal(Engine(segmenter)(x), segmenter(x))
    finally:
        engine._openvino.cache_clear()
    (record,) = caplog.records
    assert record.getMessage().startswith("OpenVINO cannot be imported")


@torch.no_grad()
def test_bfloat16_is_used_when_it_is_asked_for_where_a_cpu_has_it_and_never_by_default(segmenter, monkeypatch):
    x = volume(8, 32, 32)
    exact, network = segmenter(x), Engine(segmenter, "bf16")
    rounded = (network(x) - exact).abs().max() / exact.abs().max()
    if network.way.endswith("in bfloat16"):
        assert 1e-4 < rounded < 0.1
    else:  # OpenVINO takes float32 on CPUs without AVX-512
        assert network.way.endswith("in float32")
        assert rounded < 1e-4
    cases = ((True, False, True), (False, True, True), (False, True, False), (False, False, True))
    for (amx, avx512, openvino), expected in zip(cases, ("bf16", "bf16", "fp32", "fp32"), strict=True):
        monkeypatch.setattr(engine, "computes_bfloat16", lambda device, amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda avx512=avx512: {"avx512_bf16": avx512})
        monkeypatch.setattr(engine, "_openvino", lambda there=openvino: engine if there else None)
        assert precision_of_lungs("auto", CPU) == expected
        assert precision_of_lungs("fp32", CPU) == "fp32"
    assert precision_of_lungs("auto", torch.device("cuda")) == "fp16"


def test_nothing_is_reported_to_the_makers_of_openvino():
    code = "import sys; from models import engine; engine._openvino(); print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "None\n"
