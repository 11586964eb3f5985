"""Items: formats, one-line errors, distinct rows, seeded order, disjoint splits."""

from __future__ import annotations

import csv
import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluators.benchmarks.data import (
    Column,
    DataOptions,
    index,
    numbers,
    open_items,
    text,
    texts,
)
from evaluators.benchmarks.rows import DataError, read_rows

ROWS = [{"prompt": f"say {i}", "answer": str(i)} for i in range(20)]
COLUMNS = [Column("prompt", text), Column("answer", text, read_by_model=False)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def items(path, **options):
    return open_items(DataOptions(data=path, **options), COLUMNS)


@pytest.fixture
def jsonl(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


# -- formats ---------------------------------------------------------------------------------------


def write_table(path, delimiter):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["prompt", "answer"])
        writer.writerows([row["prompt"], row["answer"]] for row in ROWS)
    return path


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def zipped(path):
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


@pytest.mark.parametrize(
    "write",
    [
        lambda d: zipped(d / "rows.jsonl"),
        lambda d: write_table(d / "rows.csv", ","),
        lambda d: write_table(d / "rows.tsv", "\t"),
        lambda d: zipped(write_table(d / "rows.TSV", "\t")),
        lambda d: write_parquet(d / "rows.parquet"),
    ],
)
def test_every_format_gives_the_same_items(write, jsonl, tmp_path):
    other = items(str(write(tmp_path)))
    assert other == items(jsonl)
    assert {row[0] for row in other.search + other.held_out} == {r["prompt"] for r in ROWS}


def test_a_hub_name_is_opened_by_datasets(jsonl, tmp_path, monkeypatch):
    # `load_dataset` takes a folder of data files the way it takes a hub name.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS[:12])
    write_jsonl(folder / "test.jsonl", ROWS[12:])
    found = items(str(folder), held_out="test")
    assert {row[0] for row in found.search} == {r["prompt"] for r in ROWS[:12]}
    assert {row[0] for row in found.held_out} == {r["prompt"] for r in ROWS[12:]}


def test_tabs_keep_quotes_and_commas_quote_newlines(tmp_path):
    (tmp_path / "a.tsv").write_text('prompt\tanswer\n"hi\tyes "x"\n')
    (tmp_path / "a.csv").write_text('prompt,answer\n"two\nlines",yes\n\n"x",y\n')
    assert [dict(r) for _, r in read_rows(str(tmp_path / "a.tsv"))] == [
        {"prompt": '"hi', "answer": 'yes "x"'}
    ]
    found = list(read_rows(str(tmp_path / "a.csv")))
    assert found[0][1] == {"prompt": "two\nlines", "answer": "yes"}
    assert found[1][0].endswith("a.csv:5")


# -- errors ----------------------------------------------------------------------------------------

GOOD = '{"prompt": "p", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl: no rows"),
        ("a.jsonl", "\n \n", "a.jsonl: no rows"),
        ("a.jsonl", GOOD + "{oops}\n", "a.jsonl:2: not JSON: .* \\(column 2\\)"),
        ("a.jsonl", GOOD + "\n[1]\n", "a.jsonl:3: found list, expected an object"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not usable JSON: nested too deeply"),
        ("a.jsonl", '{"prompt": "p"}', "a.jsonl:1: no field 'answer'; found prompt"),
        ("a.jsonl", "{}", "a.jsonl:1: no field 'prompt'; found nothing"),
        ("a.jsonl", GOOD + '{"prompt": 7, "answer": "a"}', "a.jsonl:2: prompt: found 7, expected"),
        ("a.jsonl", '{"prompt": null, "answer": "a"}', "found None, expected a non-empty string"),
        ("a.jsonl", '{"prompt": "", "answer": "a"}', "found '', expected a non-empty string"),
        ("a.jsonl", b"\xff\xfe\x00", "a.jsonl: not UTF-8 text"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode())[:-9], "a.jsonl.gz: cannot be read"),
        ("a.csv", "", "a.csv: no rows"),
        ("a.csv", "prompt,answer\n", "a.csv: no rows"),
        ("a.csv", "prompt,answer\np,a\nq\n", "a.csv:3: found 1 cells, expected 2"),
        ("a.csv", 'prompt,answer\n"p,a\n', "a.csv:2: unexpected end of data"),
        ("a.csv", "question,answer\np,a\n", "a.csv:2: no field 'prompt'; found question, answer"),
        ("a.parquet", b"PAR1 not really", "a.parquet: not a Parquet file"),
    ],
)
def test_bad_files_give_one_line_with_the_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        items(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv.gz", "none.parquet"])
def test_missing_files(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: no such file"):
        items(str(tmp_path / name))


def test_a_folder_with_a_file_name(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read"):
        items(str(tmp_path / "a.jsonl"))


def test_a_folder_without_data_is_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="set: data set cannot be opened") as caught:
        items(str(tmp_path / "set"))
    assert len(str(caught.value).splitlines()) == 1


def test_long_values_are_cut_in_messages(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": ["x" * 500], "answer": "a"}])
    with pytest.raises(DataError) as caught:
        items(path)
    assert len(str(caught.value)) < 200 + len(path)


def test_a_check_of_the_whole_row_names_the_place(jsonl):
    def check(row):
        if row[1] == "7":
            raise ValueError("no sevens")

    with pytest.raises(DataError, match=r"rows\.jsonl:8: no sevens"):
        open_items(DataOptions(data=jsonl), COLUMNS, check)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "a.jsonl", "limit": 0}, "limit"),
        ({"data": "a.jsonl", "held_out_share": 1.0}, "held_out_share"),
        ({"data": "a.jsonl", "seed": -1}, "seed"),
        ({"data": "a.jsonl", "subset": "main"}, "`data` is a file"),
        ({"data": "a.jsonl", "held_out": "test"}, "expected a file"),
        ({"data": ""}, "data"),
        ({"data": "a.jsonl", "lmit": 3}, "lmit"),
    ],
)
def test_options_are_strict(options, message):
    with pytest.raises(ValidationError, match=message):
        DataOptions(**options)


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw", "value"), [(0, 0), (3, 3), ("12", 12), (" 4 ", 4)])
def test_index(raw, value):
    assert index(raw) == value


@pytest.mark.parametrize("raw", [-1, "-1", 1.0, True, None, "two", ""])
def test_index_refuses(raw):
    with pytest.raises(ValueError, match="integer"):
        index(raw)


def test_lists_may_be_json_in_table_files():
    assert texts('["a", "b"]') == texts(["a", "b"]) == ("a", "b")
    assert numbers("[[1, 2], [3, 4]]").shape == (2, 2)


@pytest.mark.parametrize("raw", [["a"], "a", [1, 2], None, ["a", ""], '"ab"'])
def test_texts_refuses(raw):
    with pytest.raises(ValueError, match=r"list|string"):
        texts(raw)


@pytest.mark.parametrize("raw", [[[1], [1, 2]], ["a"], [None], [], [1e300], [float("nan")], {}])
def test_numbers_refuses(raw):
    with pytest.raises(ValueError, match="numbers"):
        numbers(raw)


# -- order and splits ------------------------------------------------------------------------------


def test_rows_equal_to_the_model_count_once(tmp_path):
    doubled = [*ROWS, *({**row, "answer": "other"} for row in ROWS), *ROWS]
    found = items(write_jsonl(tmp_path / "a.jsonl", doubled))
    assert sorted(found.search + found.held_out) == sorted(
        (row["prompt"], row["answer"]) for row in ROWS
    )


def test_the_order_depends_on_rows_and_seed_alone(tmp_path, jsonl):
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    other = write_jsonl(tmp_path / "b.jsonl", shuffled)
    assert items(other) == items(jsonl)
    assert items(jsonl, seed=1) != items(jsonl)


def test_limits_are_drawn_and_not_the_first_rows(jsonl):
    found = items(jsonl, limit=5)
    assert {row[0] for row in found.search} != {row["prompt"] for row in ROWS[:5]}
    drawn = {row for seed in range(40) for row in items(jsonl, limit=1, seed=seed).search}
    assert len(drawn) > 10


@given(
    count=st.integers(2, len(ROWS)),
    limits=st.tuples(st.integers(1, 30), st.integers(0, 10)),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 5),
)
def test_splits_are_disjoint_complete_and_nested(tmp_path_factory, count, limits, share, seed):
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "a.jsonl", ROWS[:count])
    limit, more = limits
    held = round(share * count)
    if not 0 < held < count:
        with pytest.raises(DataError, match="too few"):
            items(path, held_out_share=share)
        return
    options = {"seed": seed, "held_out_share": share}
    whole = items(path, **options)
    assert len(whole.held_out) == held
    assert len({*whole.search, *whole.held_out}) == count
    short = items(path, limit=limit, held_out_limit=limit, **options)
    longer = items(path, limit=limit + more, held_out_limit=limit + more, **options)
    assert short.search == longer.search[:limit] == whole.search[:limit]
    assert short.held_out == longer.held_out[:limit] == whole.held_out[:limit]


def test_a_held_out_file(tmp_path):
    search = write_jsonl(tmp_path / "search.jsonl", ROWS[:8])
    held = write_jsonl(tmp_path / "held.jsonl", ROWS[8:])
    found = items(search, held_out=held)
    assert {row[0] for row in found.search} == {row["prompt"] for row in ROWS[:8]}
    assert {row[0] for row in found.held_out} == {row["prompt"] for row in ROWS[8:]}


def test_a_held_out_file_that_shares_rows_is_refused(tmp_path):
    search = write_jsonl(tmp_path / "search.jsonl", ROWS[:8])
    # Another answer to the same prompt is still the same question.
    leak = write_jsonl(tmp_path / "held.jsonl", [{**ROWS[7], "answer": "x"}, *ROWS[6:7], *ROWS[8:]])
    with pytest.raises(
        DataError, match=r"held\.jsonl: shares 2 rows of .*search\.jsonl.*'say [67]'"
    ):
        items(search, held_out=leak)


def test_fingerprints_see_answers_order_and_split(tmp_path, jsonl):
    found = items(jsonl)
    prints = {found.fingerprint("search"), found.fingerprint("held_out")}
    prints |= {
        items(jsonl, seed=1).fingerprint("search"),
        items(jsonl, limit=3).fingerprint("search"),
    }
    changed = [{**row, "answer": row["answer"] + "!"} for row in ROWS]
    prints.add(items(write_jsonl(tmp_path / "c.jsonl", changed)).fingerprint("search"))
    assert len(prints) == 5
    assert items(jsonl).fingerprint("search") == found.fingerprint("search")
