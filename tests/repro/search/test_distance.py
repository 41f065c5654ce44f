"""Which seeds are still to be sampled."""

from repro.search.distance import lacking


def test_pieces_hold_what_no_shard_has_and_end_where_shards_do() -> None:
    assert lacking(range(4, 20), [], 8) == [range(4, 8), range(8, 16), range(16, 20)]
    assert lacking(range(0, 24), [range(0, 4), range(10, 12)], 8) == [
        range(4, 8),
        range(8, 10),
        range(12, 16),
        range(16, 24),
    ]
    assert lacking(range(2, 4), [range(0, 8)], 8) == []
