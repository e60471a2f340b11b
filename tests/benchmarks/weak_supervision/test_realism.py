import numpy as np
import pytest
from scipy import ndimage

from benchmarks.weak_supervision import realism
from benchmarks.weak_supervision.realism import HEALTHY, Texture, as_markdown, half_length, texture
from datasets.phantom.stages import FILLINGS


def test_the_half_length_of_filtered_noise_is_known():
    # White noise filtered with a Gaussian of sigma s has the correlation exp(-d^2 / (4 s^2)): one half at 1.665 s.
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((20, 96, 96)), (0, 2, 2), mode="wrap")
    mask = np.ones(noise.shape, bool)
    assert half_length(noise, mask, (1.0, 1.0)) == pytest.approx(2 * np.sqrt(4 * np.log(2)), rel=0.05)
    assert half_length(noise, mask, (0.5, 0.5)) == pytest.approx(np.sqrt(4 * np.log(2)), rel=0.05)
    # Voxels outside the mask do not count.
    mask[:, :, 48:] = False
    spoilt = np.where(mask, noise, 1e3 * rng.standard_normal(noise.shape))
    assert half_length(spoilt, mask, (1.0, 1.0)) == pytest.approx(2 * np.sqrt(4 * np.log(2)), rel=0.05)
    assert np.isnan(half_length(noise, np.zeros(noise.shape, bool), (1.0, 1.0)))


def test_statistics_by_hand():
    values = np.array([[[0.0, 2.0, 4.0, 100.0]]])
    found = texture(values, np.array([[[True, True, True, False]]]), (1.0, 1.0))
    assert (found.median, found.mean) == (2, 2)
    assert found.sd == pytest.approx((8 / 3) ** 0.5)


def test_the_table_has_the_median_of_lung_and_the_mean_of_lesions():
    lines = as_markdown({HEALTHY: Texture(-750, -700, 130, 3), "mixed": Texture(-1, -350, 160, 2.51)}).splitlines()
    assert lines[2] == "| aerated lung | -750 | -780 to -680 | 130 | 120 to 180 | 3.0 |  |"
    assert lines[3] == "| mixed | -350 |  | 160 |  | 2.5 |  |"


def test_the_command_writes_table_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(realism, "MATRIX", (16, 32, 32))
    assert realism.main([str(tmp_path), "--number", "1", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "realism.md").read_text().strip()
    assert (tmp_path / "realism.md").read_text().count("\n") == 3 + len(FILLINGS)
    assert (tmp_path / "histograms.png").is_file()
