import json
import math

import pytest
import torch

from models import Generator, Segmenter
from models.objectives import Networks
from tests import reference
from training.log import RunLog, RunningMeans, discriminator_balance, picture_grid


def test_running_means_are_those_since_the_last_entry():
    means = RunningMeans()
    for value in (1.0, 3.0):
        means.add("joint", {"recons": torch.tensor(value)})
    assert means.take() == {"joint/recons": 2.0}
    assert means.take() == {}


@pytest.mark.fault("what a kill leaves")
@pytest.mark.parametrize(
    "end",
    [
        *("", '{"iterat', '{"iteration": 4, "a": 2}', "\0" * 40, "\xff\xfe\x81", "4\n", "[]\n", "{}"),
        '{"iteration": 4, "a": 2}\n{"iteration": 6, "a": 3}\n{"iterat',
    ],
)
def test_the_end_of_a_log_that_was_cut_off_is_mended_and_what_is_done_again_is_dropped(tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 2, "a": 1}\n' + end.encode("latin-1"))
    log = RunLog(tmp_path, first=4, last=10, progress=False)
    log.scalars(5, {"a": 9.0})
    log.close()
    # Iteration 4 was logged after four iterations, all of which the state of iteration 4 holds.
    kept = [{"iteration": 4, "a": 2}] if '"iteration": 4' in end else []
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert entries == [{"iteration": 2, "a": 1}, *kept, {"iteration": 5, "a": 9.0}]


@pytest.mark.parametrize("heads", [1, 2])
def test_the_balance_is_the_probability_of_the_correct_class(heads):
    # Heads that are right with probability 0.96 and 0.98, whose terms are summed: 0.97 in the mean.
    bce = -math.log(0.97) if heads == 1 else -math.log(0.96) - math.log(0.98)
    found = discriminator_balance({"discriminator/healthy": bce, "discriminator/synthetic": heads * math.log(2)}, heads)
    assert found == pytest.approx({"right/healthy": 0.97, "right/synthetic": 0.5}, abs=1e-4)
    assert discriminator_balance({"joint/adversarial": 1.0}, heads) == {}


def test_the_picture_grid_has_a_row_a_volume_and_four_columns():
    torch.manual_seed(0)
    networks = Networks(Segmenter(2), Generator(2), None)
    image = reference.wave((3, 1, 16, 64, 64), 0.1)
    lung = torch.zeros_like(image)
    lung[..., :32] = 1
    grid = picture_grid(networks, image, lung)
    assert grid.shape == (3, 3 * 66 + 2, 4 * 66 + 2)
    cell = [[grid[0, 2 + 66 * r : 66 + 66 * r, 2 + 66 * c : 66 + 66 * c] for c in range(4)] for r in range(3)]
    lesion = networks.segmenter(image).sigmoid() * lung
    for row in range(3):
        volume, found, synthetic, generated = cell[row]
        torch.testing.assert_close(volume, (image[row, 0, 8] + 1) / 2)
        torch.testing.assert_close(found, lesion[row, 0, 8].detach())
        torch.testing.assert_close(synthetic, found * generated + (1 - found) * volume, atol=1e-5, rtol=0)
        assert 0 <= generated.min() < generated.max() <= 1
