import pytest
import torch

from evaluation.predict import autocast


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
