import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.weak_supervision.judgement import judge
from configs.settings import read_settings
from datasets.cohort import Case
from models.objectives import Networks
from tests.volumes import write

SHAPE = (16, 32, 64)
SETTINGS = read_settings(None, [f"IMAGE.SIZE={list(SHAPE)}", "IMAGE.SLICES=16", "IMAGE.NORMALIZATION=window"])


class Brightness(nn.Module):
    """A D that calls bright volumes other."""

    def __init__(self, heads=1):
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.ones(()))
        self.judged_in_training = []

    def forward(self, x):
        self.judged_in_training.append(self.training)
        logit = self.weight * x.mean(dim=(1, 2, 3, 4))[:, None]
        return logit if self.heads == 1 else (-logit, 3 * logit[:, :, None].expand(-1, 1, 4))


def constant(value):
    return lambda x: torch.full_like(x, value)


def case(folder, name, image, lung, lesion):
    image[0, 0, 0] = 0  # a volume is not all the same
    arrays = {"image": image.astype(np.float32), "lung": lung.astype(np.uint8), "lesion": lesion.astype(np.uint8)}
    return Case(name, *(write(folder / f"{name}_{kind}.nii.gz", array) for kind, array in arrays.items()))


@pytest.fixture
def cohort(tmp_path):
    lung, lesion, none = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE)
    lung[:, :16], lesion[:, :4] = 1, 1
    sick = [case(tmp_path, f"s{n}", np.full(SHAPE, level), lung, lesion) for n, level in enumerate((100.0, 200.0))]
    well = [case(tmp_path, f"h{n}", np.full(SHAPE, level), lung, none) for n, level in enumerate((90.0, 150.0))]
    return {"VALID": tuple(sick), "VALIDH": tuple(well)}


@pytest.mark.parametrize("heads", [1, 2])
def test_areas_by_hand(cohort, heads):
    # S finds nothing; G paints black.
    networks = Networks(constant(-100.0), constant(-1.0), Brightness(heads))
    found = judge(networks, cohort, SETTINGS)
    # Brightness of diseased volumes: 100 and 200; of healthy ones: 90 and 150. Black in an eighth of the volume leaves
    # 87.5 and 175, in half of it 50 and 100.
    assert found == {
        "auc/original": 0.75, "auc/synthetic": 0.75, "auc/true_lesion": 0.5, "auc/whole_lung": 0.25,
        "auc/generated": 0.0, "auc/reconstructed": 0.0,
    }  # fmt: skip


def test_nothing_is_judged_without_healthy_scans_and_d_stays_as_it_was(cohort):
    networks = Networks(constant(0.0), constant(0.0), Brightness())
    assert judge(networks, {"VALID": cohort["VALID"]}, SETTINGS) == {}
    assert judge(networks, {"VALIDH": cohort["VALIDH"]}, SETTINGS) == {}
    assert not any(networks.discriminator.judged_in_training)
    assert networks.discriminator.training
