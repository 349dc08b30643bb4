from hypothesis import given
from hypothesis import strategies as st

from headcount.evaluation.benchmark import Benchmark
from headcount.evaluation.workload import GENERATED, PART_BATCHES, Workload, even_size


def sizes(parts):
    return [len(part) for part in parts]


def test_a_part_is_bounded_by_tokens_policies_and_questions():
    load = Workload(tokens=(10, 10, 10, 50, 200, 10, 10), at_once=100)
    # 10 + 10 + 10 + 50 = 80, and 200 would be too much; 200 is more than a part may be, and a part of its own.
    assert sizes(load.parts(range(7), policies=1, most=256)) == [4, 1, 2]
    # Under three policies 30 + 30 + 30 = 90, 150, 600, 30 + 30.
    assert sizes(load.parts(range(7), policies=3, most=256)) == [3, 1, 1, 2]
    assert sizes(load.parts(range(7), policies=1, most=3)) == [3, 1, 1, 1, 1]  # cut at 3 and 6, too
    assert load.parts([], policies=1, most=3) == []
    # In another order: 200, then 50 + 10 + 10.
    assert load.parts([4, 3, 2, 1], policies=1, most=256) == [range(0, 1), range(1, 4)]


def test_questions_that_generate_stay_in_their_batches():
    load = Workload(tokens=(30,) * 20, at_once=100, together=8)
    assert sizes(load.parts(range(20), policies=1, most=256)) == [8, 8, 4]
    assert sizes(load.parts(range(20), policies=1, most=10)) == [8, 2, 8, 2]
    assert sizes(load.parts(range(20), policies=1, most=2)) == [8, 8, 4]
    assert sizes(Workload(tokens=(6,) * 20, at_once=100, together=8).parts(range(20), policies=1, most=256)) == [16, 4]


@given(
    st.lists(st.integers(1, 60), max_size=40), st.integers(1, 100), st.integers(1, 5), st.integers(1, 9),
    st.integers(1, 9),
)  # fmt: skip
def test_parts_are_every_question_once_in_order(tokens, at_once, together, policies, most):
    load = Workload(tokens=tuple(tokens), at_once=at_once, together=together)
    parts = load.parts(range(len(tokens)), policies=policies, most=most)
    assert [place for part in parts for place in part] == list(range(len(tokens)))
    most = max(most, together)
    for part in parts:
        assert len({place // most for place in part}) == 1
        assert len(part) <= together or policies * sum(tokens[place] for place in part) <= at_once


def test_inputs_of_even_parts():
    assert even_size([10] * 100, at_once=1000, most=256) == 256
    assert even_size([10] * 1000, at_once=1000, most=256) == 64  # 128 · 10 are too many
    assert even_size([10] * 999 + [1000], at_once=1000, most=256) == 64  # one of 16 parts has more
    assert even_size([10] * 99 + [1000], at_once=1000, most=256) == 8  # one of 13 parts, but not of 7
    assert even_size([5000], at_once=1000, most=256) == 1


def test_what_a_question_is_counts(tiny, letters, own_tasks):
    def benchmark(task, **options):
        return Benchmark(tiny(), [task], tokenizer=letters, offline=True, include_path=own_tasks, **options)

    sums = benchmark("sums_a", batch_tokens=16)
    # "sums_a 0+0 =" has 12 letters; " 0", " 1", … share the input with one more, which is read for all of them.
    assert sums.workload() == Workload(tokens=(13,) * 5, at_once=PART_BATCHES * 16)
    assert sum(sums.workload().tokens) == sum(map(len, sums.inputs()))
    # "Spell spell 0+0:" has 16 letters, and up to 5 are generated.
    assert benchmark("spell").workload().tokens == (16 + 5 * GENERATED,) * 3
    assert benchmark("spell").workload().together == 8
