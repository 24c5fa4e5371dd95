"""Cutting and packing: what holds for every network on every device."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.errors import ConfigError
from pimcal.placement import Limits, MatrixShape, place

SHAPES = st.lists(
    st.builds(
        MatrixShape,
        name=st.just("layer"),
        groups=st.integers(1, 4),
        rows=st.integers(1, 20),
        cols=st.integers(1, 20),
        row_unit=st.sampled_from([1, 3, 9]),
    ),
    min_size=1,
    max_size=5,
)
LIMITS = st.builds(
    Limits,
    tiles=st.none() | st.integers(1, 6),
    rows=st.none() | st.integers(1, 12),
    cols=st.none() | st.integers(3, 12),
    references=st.integers(0, 2),
)


@given(SHAPES, LIMITS)
def test_every_matrix_cell_is_held_exactly_once(shapes, limits):
    for placed in place(shapes, limits):
        shape = placed.shape
        cells = Counter(
            (block.group, row, col)
            for block in placed.blocks
            for row in range(block.start, block.stop)
            for col in range(block.first, block.last)
        )
        assert cells == Counter({(g, r, c): 1 for g in range(shape.groups) for r in range(shape.rows)
                                 for c in range(shape.cols)})  # fmt: skip
        assert placed.cells == len(cells)


@given(SHAPES, LIMITS)
def test_blocks_of_one_load_never_overlap_and_stay_inside_their_tile(shapes, limits):
    taken = defaultdict(set)
    for placed in place(shapes, limits):
        for block in placed.blocks:
            bottom = block.tile_row + block.stop - block.start
            right = block.tile_col + block.last - block.first
            assert limits.tiles is None or block.tile < limits.tiles
            assert limits.rows is None or bottom <= limits.rows
            assert limits.cols is None or right <= limits.cols - limits.references
            cells = {(r, c) for r in range(block.tile_row, bottom) for c in range(block.tile_col, right)}
            assert not cells & taken[block.load, block.tile]
            taken[block.load, block.tile] |= cells


@given(SHAPES, LIMITS)
def test_loads_follow_the_order_of_the_layers(shapes, limits):
    loads = [block.load for placed in place(shapes, limits) for block in placed.blocks]

    assert loads == sorted(loads)
    assert set(loads) == set(range(len(set(loads))))


@given(SHAPES, st.builds(Limits, tiles=st.none(), rows=st.none() | st.just(8), cols=st.none() | st.just(8)))
def test_with_tiles_without_number_each_layer_has_its_own_and_all_fit_at_once(shapes, limits):
    placed = place(shapes, limits)

    assert {p.loads for p in placed} == {(0,)}
    tiles = [tile for p in placed for tile in p.tiles]
    assert tiles == list(range(len(tiles)))


@given(SHAPES)
def test_an_unbounded_device_holds_each_layer_in_one_tile(shapes):
    for placed in place(shapes, Limits(None, None, None)):
        assert len(placed.tiles) == 1
        assert len(placed.blocks) == placed.shape.groups


def test_rows_are_cut_between_input_channels_where_a_channel_fits():
    (placed,) = place([MatrixShape("conv", 1, 45, 4, row_unit=9)], Limits(None, 20, None))

    assert [(block.start, block.stop) for block in placed.blocks] == [(0, 18), (18, 36), (36, 45)]


def test_rows_are_cut_inside_a_channel_where_none_fits():
    (placed,) = place([MatrixShape("conv", 1, 18, 4, row_unit=9)], Limits(None, 8, None))

    assert [(block.start, block.stop) for block in placed.blocks] == [(0, 8), (8, 16), (16, 18)]


def test_rows_are_cut_inside_a_channel_where_whole_channels_need_more_pieces():
    (placed,) = place([MatrixShape("conv", 1, 36, 4, row_unit=9)], Limits(None, 16, None))

    assert [(block.start, block.stop) for block in placed.blocks] == [(0, 16), (16, 32), (32, 36)]


@given(rows=st.integers(1, 40), cols=st.integers(1, 10), unit=st.sampled_from([1, 3, 9]), tile_rows=st.integers(1, 20))
def test_a_layer_that_fits_is_placed_whatever_its_kernel(rows, cols, unit, tile_rows):
    limits = Limits(-(-rows // tile_rows) * -(-cols // 4), tile_rows, 4)  # no more tiles than plain cuts need

    assert place([MatrixShape("conv", 1, rows, cols, row_unit=unit)], limits)


def test_whole_channels_are_given_up_where_only_that_makes_a_layer_fit():
    # 8 rows are 4 + 4, each with a tile of its own, or 6 + 2: the two groups' rests share the third tile
    (placed,) = place([MatrixShape("conv", 2, 8, 4, row_unit=4)], Limits(3, 6, 4))

    assert placed.tiles == (0, 1, 2)
    assert {(block.start, block.stop) for block in placed.blocks} == {(0, 6), (6, 8)}


def test_a_layer_that_opens_a_load_of_its_own_may_be_cut_inside_channels_too():
    first, second = place([MatrixShape("fc", 1, 6, 4), MatrixShape("conv", 2, 8, 4, row_unit=4)], Limits(3, 6, 4))

    assert (first.loads, second.loads) == ((0,), (1,))
    assert second.tiles == (0, 1, 2)


def test_layers_share_the_tiles_of_a_small_device():
    first, second = place([MatrixShape("a", 1, 4, 3), MatrixShape("b", 1, 4, 3)], Limits(1, 4, 6))

    assert first.tiles == second.tiles == (0,)
    assert first.loads == second.loads == (0,)
    assert second.blocks[0].tile_col == 3


def test_a_network_larger_than_the_device_takes_turns():
    placed = place([MatrixShape("a", 1, 4, 4), MatrixShape("b", 1, 4, 4), MatrixShape("c", 1, 4, 4)], Limits(2, 4, 4))

    assert [p.loads for p in placed] == [(0,), (0,), (1,)]


def test_a_layer_larger_than_the_whole_device_goes_on_in_further_loads():
    before, large, after = place(
        [MatrixShape("a", 1, 4, 4), MatrixShape("fc", 1, 18, 4), MatrixShape("b", 1, 4, 4)], Limits(2, 4, 4)
    )

    assert before.loads == (0,)
    assert [(block.start, block.load, block.tile) for block in large.blocks] == [
        (0, 1, 1), (4, 1, 0), (8, 2, 1), (12, 2, 0), (16, 3, 1)
    ]  # fmt: skip
    assert [(block.load, block.tile) for block in after.blocks] == [(3, 0)]


def test_a_load_begins_with_the_tile_that_the_one_before_it_did_not_need():
    first, second, third = place(
        [MatrixShape("a", 1, 8, 4), MatrixShape("b", 1, 8, 4), MatrixShape("c", 1, 12, 4)], Limits(3, 4, 4)
    )

    assert [block.tile for placed in (first, second, third) for block in placed.blocks] == [0, 1, 2, 0, 1, 2, 0]
    assert [placed.loads for placed in (first, second, third)] == [(0,), (1,), (2,)]


@given(SHAPES, LIMITS)
def test_a_layer_takes_several_loads_only_where_it_does_not_fit_an_empty_device(shapes, limits):
    for placed in place(shapes, limits):
        (alone,) = place([placed.shape], limits)
        assert len(placed.loads) == len(alone.loads)


def test_reference_columns_count_against_the_device():
    shapes = [MatrixShape("fc", 1, 4, 8)]

    assert place(shapes, Limits(2, 4, 4))[0].loads == (0,)
    assert place(shapes, Limits(2, 4, 4, references=1))[0].loads == (0, 1)


def test_references_that_leave_no_column_are_refused():
    with pytest.raises(ConfigError, match="4 reference columns leave no column free"):
        place([MatrixShape("fc", 1, 4, 1)], Limits(None, 4, 4, references=4))
