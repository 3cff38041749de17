import pytest
import torch

from sepc_zoo.methods.matching import IGNORE, NEGATIVE
from sepc_zoo.methods.sampling import sample

# Images with many positives, few, none, and with hardly anything that counts.
MATCH = torch.full((4, 100), NEGATIVE)
MATCH[0, :60] = 2
MATCH[1, 5:8] = 0
MATCH[2, 50:] = IGNORE
MATCH[3, 4:] = IGNORE
MATCH[3, 0] = 1


def counts(match, count, fraction):
    """Positives and negatives that are drawn from an image, by the words of the paper."""
    positives = min(int(count * fraction), int((match >= 0).sum()))
    return positives, min(count - positives, int((match == NEGATIVE).sum()))


@pytest.mark.parametrize(("count", "fraction"), [(32, 0.5), (16, 0.25), (1, 0.5), (1000, 1.0)])
def test_as_many_are_drawn_as_there_are_up_to_the_fraction(count, fraction):
    torch.manual_seed(0)
    index, drawn = sample(MATCH, count, fraction)
    assert index.shape == drawn.shape
    assert index.shape[1] <= count
    for i, row in enumerate(MATCH):
        chosen = index[i][drawn[i]]
        assert len(chosen.unique()) == len(chosen)
        match = row[chosen]
        found = int((match >= 0).sum()), int((match == NEGATIVE).sum())
        assert found == counts(row, count, fraction)
        assert (match != IGNORE).all()


def test_every_anchor_is_drawn_as_often():
    torch.manual_seed(0)
    drawn = torch.zeros(100)
    for _ in range(2000):
        index, real = sample(MATCH[:1], 30, 0.5)
        drawn[index[0][real[0]]] += 1
    expected = torch.cat([torch.full((60,), 15 / 60), torch.full((40,), 15 / 40)])
    assert (drawn / 2000 - expected).abs().max() < 0.06
