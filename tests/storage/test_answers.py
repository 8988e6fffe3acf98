"""The answers cache: found again in bulk, by many processes, after kills, damage and upgrades."""

from __future__ import annotations

import shutil

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraclip.storage.answers import AnswerStore
from paraclip_core.errors import ArtifactError
from tests.kit.generation_rows import answers, filter_results, filtered, key, keys, numbered, rebuild, rows


def test_an_empty_cache_knows_nothing_and_makes_no_folder(store: AnswerStore) -> None:
    completions = store.lookup(keys([1]))
    assert (completions.num_rows, completions.column_names) == (0, ["key", "completions"])
    assert store.stats().rows == store.stats().segments == 0
    table = numbered([1])
    with pytest.raises(ArtifactError, match="lacks the column 'step'"):
        store.append(table.drop_columns(["step"]))
    assert not store.folder.exists()
    with pytest.raises(ArtifactError, match="'step' is int64 instead of int8"):
        store.append(table.set_column(1, "step", pa.array([1])))
    with pytest.raises(ArtifactError, match="'key' has 1 nulls"):
        store.append(table.set_column(0, pa.field("key", pa.binary(16)), pa.array([None], pa.binary(16))))


def test_the_first_answer_counts_whatever_order_the_index_saw(store: AnswerStore) -> None:
    store.append(numbered([1], "first"))
    (name,) = store.parts.names()
    hidden = store.parts.folder / f".{name}"
    (store.parts.folder / name).rename(hidden)
    store.append(numbered([1], "second"))
    later = store.parts.names()[0]
    (store.parts.folder / later).rename(store.parts.folder / later.replace("00000001", "00000002"))
    assert answers(store, [1]) == {1: ["second 1"]}
    hidden.rename(store.parts.folder / name)
    assert answers(store, [1]) == {1: ["first 1"]}
    assert (store.stats().rows, store.stats().keys) == (2, 1)


def test_raw_completions_are_kept_to_the_byte(store: AnswerStore) -> None:
    hostile: list[str | None] = ["", None, "a\0b", "'; DROP TABLE generations; --", "\u202e\U0001f600", "x" * 100_000]
    for _ in range(2):
        store.append(rows([(key(1), hostile), (key(2), [])]))
        assert answers(store, [1, 2]) == {1: hostile, 2: []}
        rebuild(store)
    # The same table twice is one segment.
    assert (store.stats().segments, store.stats().rows) == (1, 2)
    store.append(numbered(range(10, 12), step=2, model="n"))
    groups = [tuple(group.values()) for group in store.stats().groups]
    assert groups == [(1, "m", "paper", 2, 2), (2, "n", "paper", 2, 2)]
    assert store.stats().bytes == sum(p.stat().st_size for p in store.parts.folder.iterdir())


def test_verdicts_come_once_and_whole(store: AnswerStore) -> None:
    store.append_filter_results(pa.concat_tables([filter_results(range(10)), filter_results(range(5), "second")]))
    store.append_filter_results(filter_results(range(8, 12), "third"))
    store.append_filter_results(filter_results(range(3), filters=1))
    expected = [*filter_results(range(10)).to_pylist(), *filter_results([10, 11], "third").to_pylist()]
    expected += filter_results(range(3), filters=1).to_pylist()
    for _ in range(2):
        assert filtered(store) == sorted(expected, key=lambda row: (row["generation"], row["filters"]))
        rebuild(store)
    assert store.stats().filter_results == 15
    with pytest.raises(ArtifactError, match="'filters' is string instead of fixed_size_binary"):
        store.append_filter_results(filter_results([1]).set_column(2, "filters", pa.array(["a"])))


def test_tables_are_joined_with_those_of_a_caller(store: AnswerStore) -> None:
    missing = "SELECT n FROM requests ANTI JOIN cache.generations USING (key) ORDER BY n"
    with duckdb.connect() as con:
        con.register("asked", pa.table({"n": [1, 2, 3], "key": keys([1, 2, 3])}))
        con.execute("CREATE TABLE requests AS FROM asked")
        with store.attached(con):
            assert con.execute(missing).fetchall() == [(1,), (2,), (3,)]
            assert con.execute("SELECT * FROM cache.filter_results").fetchall() == []
        assert not store.folder.exists()
        store.append(numbered([2]))
        store.append_filter_results(filter_results([2]))
        for _ in range(2):
            with store.attached(con):
                con.execute(f"CREATE OR REPLACE TABLE missing AS {missing}")
                assert con.execute("SELECT count(*) FROM cache.filter_results").fetchall() == [(1,)]
        assert con.execute("FROM missing").fetchall() == [(1,), (3,)]
        with store.attached(con), pytest.raises(duckdb.InvalidInputException, match="read-only"):
            con.execute("DELETE FROM cache.generations")


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, duckdb.FatalException])
def test_what_fails_in_a_block_leaves_everything_usable(store: AnswerStore, failure: type[BaseException]) -> None:
    store.append(numbered([1]))
    with duckdb.connect() as con:
        with pytest.raises(failure, match="on the way"), store.attached(con):
            con.execute("BEGIN")
            con.execute("FROM cache.generations")
            raise failure("on the way")
        con.execute("ROLLBACK")
        with pytest.raises(duckdb.BinderException), store.attached(con):
            con.execute("BEGIN")
            con.execute("SELECT nonsense")
        with store.attached(con):
            assert con.execute("SELECT count(*) FROM cache.generations").fetchall() == [(1,)]
    assert answers(store, [1]) == {1: ["answer 1"]}


NUMBERS = st.integers(0, 30)
APPENDS = st.tuples(st.just("append"), st.lists(st.tuples(NUMBERS, st.lists(st.text(max_size=5), max_size=3))))
JUDGES = st.tuples(st.just("judge"), st.lists(st.tuples(st.integers(0, 9), st.text(max_size=5))))
OTHERS = st.tuples(st.sampled_from(["rebuild", "reopen", "refresh", "lookup", "compact"]), st.lists(NUMBERS))
CACHE_ACTIONS = st.lists(APPENDS | JUDGES | OTHERS, max_size=8)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=CACHE_ACTIONS)
def test_it_is_a_dictionary_whose_first_value_stays(actions: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cache")
    store, model, verdict_model = AnswerStore(folder), {}, {}
    for action, argument in actions:
        if action == "append":
            store.append(rows([(key(n), completions) for n, completions in argument]))
            for n, completions in argument:
                model.setdefault(n, completions)
        elif action == "judge":
            store.append_filter_results(
                pa.concat_tables([filter_results([]), *(filter_results([n], text) for n, text in argument)])
            )
            for n, text in argument:
                verdict_model.setdefault(key(n), filter_results([n], text).to_pylist()[0])
        elif action == "lookup":
            assert answers(store, argument) == {n: model[n] for n in argument if n in model}
        elif action == "reopen":
            store.close()
            store = AnswerStore(folder)
        else:
            {"rebuild": rebuild, "compact": AnswerStore.compact, "refresh": AnswerStore.refresh}[action](store)
    assert answers(store, range(31)) == model
    assert store.stats().keys == len(model)
    assert filtered(store) == [verdict_model[k] for k in sorted(verdict_model)]
    shutil.rmtree(folder)
