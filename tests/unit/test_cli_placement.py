"""`pimcal placement`: what sits where, and what an input costs."""

import pytest

MVMS = [36, 36, 36, 1]  # of each layer for one input: positions of the convolutions, then the linear layer


def test_json_has_a_row_for_each_layer_with_its_cost(lab, pimcal_run):
    found = pimcal_run("placement", *lab.on("ideal", data=False), "--input-shape", "1,6,6", "--json").json
    rows = [(row["name"], row["kind"], row["matrix"], row["mvms"]) for row in found["layers"]]
    matrices = [[1, 9, 8], [1, 72, 8], [1, 72, 8], [1, 72, 4]]
    kinds = ["Conv2d", "Conv2d", "Conv2d", "Linear"]
    assert rows == list(zip(["0", "3", "6", "11"], kinds, matrices, MVMS, strict=True))
    assert (found["mvms"], found["cells"]) == (sum(MVMS), 9 * 8 + 72 * 8 + 72 * 8 + 72 * 4)


def test_small_tiles_multiply_products_as_evaluate_counts_them(lab, pimcal_run):
    tiles = ("-O", "tiles.rows=20", "-O", "tiles.cols=4")
    found = pimcal_run("placement", *lab.on("ideal"), *tiles, "--json").json
    blocks = [2, 8, 8, 4]  # 9, 72, 72, 72 rows over 20; 8, 8, 8, 4 columns over 4
    assert [row["mvms"] for row in found["layers"]] == [b * m for b, m in zip(blocks, MVMS, strict=True)]
    run = pimcal_run("evaluate", *lab.on("ideal"), *tiles, "--images", "10", "--json").json
    assert run["mvms"] == 10 * found["mvms"]


def test_without_an_input_products_are_unknown(lab, pimcal_run):
    options = lab.on("ideal", data=False)
    assert pimcal_run("placement", *options, "--json").json["mvms"] is None
    done = pimcal_run("placement", *options)
    assert done.code == 0
    assert "MVMs for one input" not in done.out


def test_people_get_a_table_and_the_sum(lab, pimcal_run):
    host = ("-O", 'host=["11", "tail"]')
    done = pimcal_run("placement", *lab.on("ideal", data=False), *host, "--input-shape", "1,6,6")
    head, *rows, last = done.out.splitlines()
    assert head.split() == ["layer", "kind", "matrix", "tiles", "cells", "MVMs/input", "MACs"]
    assert rows[0].split() == ["0", "Conv2d", "9", "x", "8", "0", "72", "36", "5.84", "%"]
    assert rows[3].split("  ")[-1].strip() == "host: kept by host pattern '11'"
    assert "host pattern 'tail' matches no layer of this model" in done.out
    assert last == "108 MVMs for one input"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--input-shape", "1,6"), 65, "the model does not take images of shape [1, 6]"),
        (("--input-shape", "3,6,6"), 65, "images of shape [3, 6, 6]: its first layer, 0, takes 1 channels"),
        (("--input-shape", "1,6,x"), 2, "--input-shape '1,6,x' is no shape; write for example 3,32,32"),
        (("--input-shape", "1,-6,6"), 2, "is no shape"),
        (("--input-shape", "0,6,6"), 2, "is no shape"),
        (("--input-shape", ""), 2, "is no shape"),
        (("-O", "tiles.cols=1", "-O", "references.offset=1"), 78, "no column is left for weights"),
        (("-O", 'host=["*"]'), 78, "every layer of the model stays on the host"),
    ],
)
def test_what_cannot_be_placed_is_refused(lab, pimcal_run, options, code, said):
    done = pimcal_run("placement", *lab.on("ideal", data=False), *options)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


def test_turns_are_shown_where_the_network_does_not_fit(lab, pimcal_run):
    small = ["-O", "tiles.rows=36", "-O", "tiles.cols=8", "-O", "tiles.count=1"]
    done = pimcal_run("placement", *lab.on("ideal", data=False), *small)
    head, *rows, last = done.out.splitlines()
    assert head.split() == ["layer", "kind", "matrix", "tiles", "turns", "cells", "MVMs/input"]
    turns = [row.split()[6] for row in rows]  # behind name, kind, rows x columns and tiles
    assert turns == ["0", "1-2", "3-4", "5"]  # the last one's halves stand side by side
    assert last == "1 tiles, 1512 cells used, in 6 turns"
    found = pimcal_run("placement", *lab.on("ideal", data=False), *small, "--json").json
    assert [row["loads"] for row in found["layers"]] == [[0], [1, 2], [3, 4], [5]]


def test_input_shape_and_data_exclude_one_another(lab, pimcal_run):
    done = pimcal_run("placement", *lab.on("ideal"), "--input-shape", "1,6,6")
    assert (done.code, done.out) == (2, "")
    assert "--input-shape or --data, not both" in done.err
