"""Edge geometry: anchors, centres, existence; odd distances and distances beyond the grid."""

import pytest
import torch

from amwc_d2.edges import centre_to_anchor, cut_edges, edge_differences, edge_ends, edge_exists

DISTANCES = [1, 2, 3, 5, 8, 40]


@pytest.mark.parametrize("distance", DISTANCES)
def test_difference_moved_to_the_anchor_is_other_end_minus_anchor(distance):
    features = torch.randn(2, 3, 7, 9)
    difference = edge_differences(features, distance)
    anchor, other = edge_ends(features, distance)
    exists = edge_exists(7, 9, [distance])[0]
    for channel in range(3):
        centred = torch.stack([difference[:, channel], difference[:, 3 + channel]], dim=1)
        expected = (other - anchor)[:, channel] * exists
        torch.testing.assert_close(centre_to_anchor(centred, distance), expected)


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_existing_edge_has_a_centre_and_an_anchor(distance):
    ones = torch.ones(1, 2, 7, 9)
    exists = edge_exists(7, 9, [distance])[0]
    assert torch.equal(centre_to_anchor(ones, distance)[0] > 0, exists)
    assert exists[0].sum() == 7 * max(0, 9 - distance)
    assert exists[1].sum() == 9 * max(0, 7 - distance)


def test_horizontal_and_vertical_edge_share_their_centre():
    """Figure 7: an even distance puts both edges' centre on the same cell."""
    features = torch.zeros(1, 1, 9, 9)
    features[0, 0, 4, 6] = 1  # right end of the horizontal edge centred at (4, 4), d = 4
    features[0, 0, 6, 4] = 2  # lower end of the vertical one
    difference = edge_differences(features, 4)
    assert difference[0, 0, 4, 4] == 1
    assert difference[0, 1, 4, 4] == 2


def test_cut_edges_against_a_loop():
    segments = torch.randint(0, 3, (6, 5))
    cut = cut_edges(segments, [1, 3, 7])
    for index, d in enumerate([1, 3, 7]):
        for y in range(6):
            for x in range(5):
                right = x + d < 5 and segments[y, x] != segments[y, x + d]
                below = y + d < 6 and segments[y, x] != segments[y + d, x]
                assert cut[index, 0, y, x] == right
                assert cut[index, 1, y, x] == below
    batched = cut_edges(torch.stack([segments, segments.flip(1)]), [1, 3, 7])
    assert torch.equal(batched[0], cut)
