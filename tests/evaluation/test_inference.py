import pytest
import torch

from evaluation import inference as predict
from evaluation.inference import autocast
from models import Segmenter
from tests import reference


@pytest.mark.parametrize(
    ("has", "precision", "expected"),
    [
        ({}, "bf16_anywhere", False),
        ({"avx512_f": True, "avx512_bf16": False}, "bf16_anywhere", False),
        ({"avx512_bf16": True}, "bf16_anywhere", True),
        ({"amx_bf16": True}, "bf16_anywhere", True),
        ({"avx512_bf16": True}, "bf16", False),
        ({"avx512_bf16": True}, "fp32", False),
    ],
)
def test_the_cpu_computes_in_bf16_where_it_is_asked_for_and_the_processor_has_it(monkeypatch, has, precision, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    a = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (a @ a).dtype == (torch.bfloat16 if expected else torch.float32)


@pytest.mark.parametrize(("shape", "volumes"), [((16, 32, 32), 2), ((40, 160, 32), 1)])
def test_a_small_scan_goes_through_twice_and_comes_out_the_same(shape, volumes):
    torch.manual_seed(0)
    segmenter = Segmenter(4)
    seen = []
    segmenter.stem.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    scan = reference.wave((1, 1, *shape), 0.2)
    with torch.no_grad():
        found, expected = predict._logits(segmenter, scan), segmenter(scan)
    assert seen == [volumes, 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
