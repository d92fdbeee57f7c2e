"""Records that share a source are never in two splits."""

from __future__ import annotations

from bitrank_data.corpora.groups import connected, split_groups
from hypothesis import given
from hypothesis import strategies as st

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60, unique=True)


def keys(pair: tuple[int, int]) -> list[str]:
    return [f"claim {pair[0]}", f"page {pair[1]}"]


def test_records_are_connected_through_others() -> None:
    assert connected([(0, 1), (2, 3), (0, 4), (5, 4)], keys) == [[(0, 1), (0, 4), (5, 4)], [(2, 3)]]
    assert connected([1, 2, 1], lambda _: []) == [[1], [2], [1]]


@given(pairs, st.integers(0, 20), st.integers(0, 20))
def test_splits_share_no_key_and_lose_no_record(records, test: int, validation: int) -> None:
    splits = split_groups(connected(records, keys), str, test, validation)
    assert sorted(record for part in splits.values() for record in part) == sorted(records)
    seen = [{key for record in part for key in keys(record)} for part in splits.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert len(splits["test"]) >= min(test, len(records)) or not splits["train"]


@given(pairs, st.randoms())
def test_split_does_not_depend_on_the_order_of_records(records, random_) -> None:
    shuffled = list(records)
    random_.shuffle(shuffled)
    found = []
    for some in (records, shuffled):
        splits = split_groups(connected(some, keys), str, 10, 5)
        found.append({name: set(part) for name, part in splits.items()})
    assert found[0] == found[1]
