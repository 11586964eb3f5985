"""What every benchmark must do. Inherit `BenchmarkContract` and give the fixtures that it names.

class TestMine(BenchmarkContract):
    kind = "module:Mine"

    @pytest.fixture(scope="class") options, oracle, stranger, broken
"""

from __future__ import annotations

import numpy as np
import pytest

from evaluators.benchmarks.benchmark import BenchmarkError, order_of, score
from evaluators.benchmarks.table import open_benchmark, options_of
from evaluators.models import ModelError

WHOLE = slice(None)


class BenchmarkContract:
    """Tests of the `Benchmark` protocol, on at least 40 distinct rows.

    A metric to be maximised is a share of right answers: the oracle has 1.

    Attributes:
        kind: a key of `BENCHMARKS`, or a dotted path.
    """

    kind: str

    @pytest.fixture(scope="class")
    def options(self, tmp_path_factory):
        """Options as a user writes them."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def oracle(self, tmp_path_factory):
        """A live model that knows the answers."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def stranger(self, tmp_path_factory):
        """A live model that does not."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def broken(self, tmp_path_factory):
        """A live model whose weights are no numbers."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def benchmark(self, options):
        return open_benchmark(self.kind, options)

    def inputs(self, benchmark, split):
        """What the model reads, by item; override if the benchmark has no `rows`."""
        return {repr(row[:-1]) for row in benchmark.rows(split, WHOLE)}

    # -- the tests ---------------------------------------------------------------------------------

    def test_oracle_beats_stranger(self, benchmark, oracle, stranger):
        best = score(benchmark, oracle, "search", WHOLE)
        other = score(benchmark, stranger, "search", WHOLE)
        if benchmark.metric.goal == "minimize":
            assert best.value < other.value
        else:
            assert best.value == 1.0 > other.value

    @pytest.mark.parametrize("split", ["search", "held_out"])
    def test_a_score_is_a_measurement(self, benchmark, stranger, split):
        found = score(benchmark, stranger, split, WHOLE)
        assert found.n == len(found.outcomes) == benchmark.size(split) >= 20
        assert found.outcomes.dtype == np.float32
        assert np.isfinite(found.outcomes).all()
        assert found.standard_error > 0
        assert found.split == split
        assert found.value >= 0
        assert found.value <= 1 or benchmark.metric.goal == "minimize"

    def test_the_same_question_gives_the_same_bits(self, benchmark, options, stranger):
        again = open_benchmark(self.kind, options)
        first = benchmark.outcomes(stranger, "search", WHOLE)
        assert first.tobytes() == again.outcomes(stranger, "search", WHOLE).tobytes()
        assert benchmark.fingerprint("search") == again.fingerprint("search")

    def test_the_seed_sets_the_order(self, benchmark, options):
        other = open_benchmark(self.kind, {**options, "seed": 1})
        assert other.fingerprint("search") != benchmark.fingerprint("search")

    def test_splits_are_disjoint(self, benchmark):
        assert not self.inputs(benchmark, "search") & self.inputs(benchmark, "held_out")
        assert benchmark.fingerprint("search") != benchmark.fingerprint("held_out")

    @pytest.mark.parametrize("split", ["search", "held_out"])
    def test_the_first_n_are_nested(self, benchmark, options, stranger, split):
        short = open_benchmark(self.kind, {**options, "limit": 5, "held_out_limit": 5})
        assert short.size(split) == 5
        first = benchmark.outcomes(stranger, split, slice(0, 5))
        np.testing.assert_allclose(short.outcomes(stranger, split, WHOLE), first, rtol=1e-5)

    def test_a_score_can_grow(self, benchmark, stranger):
        parts = [benchmark.outcomes(stranger, "search", slice(i, i + 5)) for i in (0, 5)]
        joined = np.concatenate(parts)
        whole = benchmark.outcomes(stranger, "search", slice(0, 10))
        np.testing.assert_allclose(joined, whole, rtol=1e-5)
        np.testing.assert_allclose(benchmark.summary(joined), benchmark.summary(whole), rtol=1e-4)

    def test_a_grown_score_is_of_all_its_items(self, benchmark, stranger):
        begun = score(benchmark, stranger, "search", slice(0, 5))
        grown = score(benchmark, stranger, "search", slice(5, 12), begun.outcomes)
        assert grown.n == len(grown.outcomes) == 12
        assert grown.outcomes[:5].tobytes() == begun.outcomes.tobytes()
        assert (grown.value, grown.standard_error) == benchmark.summary(grown.outcomes)
        same = score(benchmark, stranger, "search", slice(5, 5), begun.outcomes)
        assert (same.value, same.n) == (begun.value, 5)

    @pytest.mark.parametrize("split", ["search", "held_out"])
    def test_items_in_any_order(self, benchmark, stranger, split):
        own = order_of(benchmark.size(split), 7)
        assert sorted(own) == list(range(benchmark.size(split)))
        whole = benchmark.outcomes(stranger, split, WHOLE)
        np.testing.assert_allclose(benchmark.outcomes(stranger, split, own), whole[own], rtol=1e-5)
        some = benchmark.outcomes(stranger, split, own[3:7])
        np.testing.assert_allclose(some, whole[own[3:7]], rtol=1e-5)

    def test_the_error_shrinks_with_n(self, benchmark, stranger):
        outcomes = benchmark.outcomes(stranger, "search", WHOLE)
        value, error = benchmark.summary(outcomes)
        same, smaller = benchmark.summary(np.tile(outcomes, 4))
        assert same == pytest.approx(value)
        assert smaller < 0.6 * error  # √4 = 2, and more where no item was hit

    def test_one_item_is_enough(self, benchmark, stranger):
        assert score(benchmark, stranger, "search", slice(3, 4)).standard_error > 0

    def test_no_item_is_an_error(self, benchmark, stranger):
        with pytest.raises(BenchmarkError, match="no item"):
            score(benchmark, stranger, "search", slice(10_000, 10_001))

    def test_a_broken_model_has_no_score(self, benchmark, broken):
        with pytest.raises((BenchmarkError, ModelError), match=r"finite") as caught:
            score(benchmark, broken, "search", slice(2, 8))
        assert len(str(caught.value).splitlines()) == 1

    def test_weights_are_read_every_time(self, benchmark, oracle, stranger):
        """Outcomes follow the weights: nothing of the former candidate is remembered."""
        before = benchmark.outcomes(oracle, "search", WHOLE)
        kept = {name: tensor.clone() for name, tensor in oracle.tensors.items()}
        for name, tensor in oracle.tensors.items():
            tensor.copy_(stranger.tensors[name])
        other = benchmark.outcomes(stranger, "search", WHOLE)
        np.testing.assert_array_equal(benchmark.outcomes(oracle, "search", WHOLE), other)
        for name, tensor in oracle.tensors.items():
            tensor.copy_(kept[name])
        np.testing.assert_array_equal(benchmark.outcomes(oracle, "search", WHOLE), before)

    def test_unknown_options_are_refused(self, options):
        with pytest.raises(ValueError, match="no_such_option"):
            options_of(self.kind).model_validate({**options, "no_such_option": 1})
