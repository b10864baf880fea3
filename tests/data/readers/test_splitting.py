"""Which images are held out: whole groups, the wanted share, some of each series."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_mrcnn.data.readers import splitting
from tests.data.round_trip import error_of

few = settings(deadline=None, derandomize=True, max_examples=60)
groups = st.lists(st.sampled_from('abcdefgh'), min_size=2, max_size=60)
shares = st.sampled_from([0.5, 0.8, 0.9, 0.99])


@few
@given(groups, shares, st.integers(0, 5))
def test_groups_stay_whole_and_both_sides_have_some(members, share, seed):
    if len(set(members)) < 2:
        assert 'one group' in error_of(lambda: splitting.hold_out_groups(members, share, seed))
        return
    held_out = splitting.hold_out_groups(members, share, seed)
    assert held_out == sorted(set(held_out))
    inside = {members[i] for i in held_out}
    outside = {member for i, member in enumerate(members) if i not in held_out}
    assert inside and outside and not inside & outside
    # Not more than wanted, unless every group alone is more.
    room = (1 - share) * len(members)
    smallest = min(collections.Counter(members).values())
    assert len(held_out) <= max(room + 1e-9, smallest)


@pytest.mark.parametrize('count, share, wanted', [(100, 0.9, 10), (533, 0.9, 53), (5, 0.5, 2)])
def test_images_on_their_own_are_held_out_to_the_share(count, share, wanted):
    names = [f'{i}.png' for i in range(count)]
    chosen = splitting.hold_out_groups(names, share, 0)
    assert len(chosen) == wanted
    assert chosen != splitting.hold_out_groups(names, share, 1)
    # Another order of the same images holds the same ones out.
    names.reverse()
    again = splitting.hold_out_groups(names, share, 0)
    assert {names[i] for i in again} == {f'{i}.png' for i in chosen}


@few
@given(groups, shares, st.integers(0, 5))
def test_some_of_each_group_are_held_out_and_some_are_not(members, share, seed):
    names = [f'{i}.png' for i in range(len(members))]
    held_out = set(splitting.hold_out_of_each(names, members, share, seed))
    counts = collections.Counter(members)
    for group, count in counts.items():
        out = sum(members[i] == group for i in held_out)
        if count > 1:
            assert 1 <= out < count
            assert abs(out - (1 - share) * count) <= 1
    # Those alone in their group count as one group together.
    alone = [i for i, member in enumerate(members) if counts[member] == 1]
    if len(alone) > 1:
        assert 1 <= len(held_out & set(alone)) < len(alone)


@pytest.mark.parametrize(
    'name, series',
    [
        ('iphone_6_012.jpg', 'iphone_6'),
        ('Mate 8 (3).jpg', 'Mate 8'),
        ('pixel/4.jpg', 'pixel'),
        ('pixel-2-xl-17.JPEG', 'pixel-2-xl'),
        ('htc.one.5.png', 'htc.one'),
        ('IMG_0001.jpg', 'IMG'),
        ('galaxy.jpg', 'galaxy'),
        ('17.jpg', ''),
    ],
)
def test_series_of_names(name, series):
    assert splitting.series_of(name) == series
