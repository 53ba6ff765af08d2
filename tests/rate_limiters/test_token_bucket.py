from hypothesis import given as for_all
from hypothesis import strategies as st

from oneai_middleware.rate_limiters.token_bucket import (
    GRAIN,
    UNITS,
    given,
    refilled,
    remaining,
    resized,
    until_full,
    wait,
)

capacities = st.integers(1, 10**7)
pauses = st.integers(0, 10**15)
steps = st.lists(st.tuples(st.integers(0, 90 * 10**9), st.integers(1, 50)), min_size=1, max_size=60)
# A capacity, and a level that it may have.
buckets = st.builds(
    lambda capacity, share, debt: (capacity, capacity * share - debt),
    capacities,
    st.integers(0, UNITS),
    st.integers(0, 10**15),
)


def walk(capacity, steps):
    """Take greedily at every step; the times and sizes of what was admitted."""
    level, now, admitted = capacity * UNITS, 0, []
    for pause, tokens in steps:
        now += pause
        level = refilled(level, capacity, pause)
        if wait(level, capacity, tokens) == 0:
            level = given(level, capacity, -tokens)
            admitted.append((now, tokens))
    return admitted


@for_all(st.integers(1, 300), steps)
def test_no_window_admits_more_than_a_bucket_and_its_refill(capacity, steps):
    admitted = walk(capacity, steps)
    for first, (start, _) in enumerate(admitted):
        taken = 0
        for end, tokens in admitted[first:]:
            taken += tokens
            assert taken * UNITS <= capacity * UNITS + capacity * (end - start)


@for_all(st.integers(1, 300), st.lists(st.integers(0, 10**11), max_size=20))
def test_a_taker_who_never_waits_gets_exactly_the_law(capacity, pauses):
    level, taken, law = capacity * UNITS, 0, capacity * UNITS
    for pause in pauses:
        # Brim-full is the only time at which anything is lost.
        law = min(law + pause * capacity, taken * UNITS + capacity * UNITS)
        level = refilled(level, capacity, pause)
        while wait(level, capacity, 1) == 0:
            level = given(level, capacity, -1)
            taken += 1
        assert taken == law // UNITS


@for_all(buckets, st.integers(0, 10**7))
def test_the_wait_is_the_first_nanosecond_that_suffices(bucket, tokens):
    capacity, level = bucket
    ns = wait(level, capacity, tokens)
    if ns is None:
        assert tokens > capacity
        return
    assert wait(refilled(level, capacity, ns), capacity, tokens) == 0
    if ns:
        assert wait(refilled(level, capacity, ns - 1), capacity, tokens) == 1


@for_all(buckets, st.lists(pauses, max_size=10))
def test_refilling_in_steps_equals_refilling_at_once(bucket, pauses):
    capacity, level = bucket
    stepwise = level
    for pause in pauses:
        stepwise = refilled(stepwise, capacity, pause)
    assert stepwise == refilled(level, capacity, sum(pauses))


@for_all(buckets, st.integers(-(10**12), 0))
def test_a_clock_that_goes_back_changes_nothing(bucket, pause):
    capacity, level = bucket
    assert refilled(level, capacity, pause) == level


@for_all(buckets, st.integers(0, 10**7))
def test_giving_back_undoes_taking(bucket, tokens):
    capacity, level = bucket
    assert given(given(level, capacity, -tokens), capacity, tokens) == level


@for_all(buckets, st.integers(-(10**7), 10**7))
def test_a_bucket_never_holds_more_than_its_capacity(bucket, tokens):
    capacity, level = bucket
    later = refilled(given(level, capacity, tokens), capacity, 10**18)
    assert later == capacity * UNITS
    assert given(later, capacity, abs(tokens)) == later


@for_all(buckets, capacities)
def test_under_another_limit_a_bucket_holds_the_same_share(bucket, new):
    capacity, level = bucket
    held = resized(level, capacity, new)
    assert held * capacity <= level * new < (held + GRAIN) * capacity
    assert held % GRAIN == 0


@for_all(st.lists(st.integers(1, 300), min_size=2, max_size=4), st.integers(1, 60))
def test_nobody_gains_by_limits_that_change_to_and_fro(limits, seconds):
    """The busiest minute of the highest limit is the most that there is."""
    capacity, taken = limits[0], 0
    level = capacity * UNITS
    for second in range(seconds + 1):
        level = refilled(level, capacity, 10**9 if second else 0)
        for new in limits:
            level, capacity = resized(level, capacity, new), new
            while wait(level, capacity, 1) == 0:
                level = given(level, capacity, -1)
                taken += 1
                if taken % 3 == 0:
                    break
    assert taken * 60 <= max(limits) * (60 + seconds)


@for_all(capacities, st.integers(-(10**15), 0))
def test_under_a_limit_of_0_nothing_is_gained_and_a_debt_stays(new, level):
    assert resized(level, 0, new) == (level or new * UNITS)
    assert resized(new * UNITS + level, new, 0) == 0


@for_all(capacities, capacities)
def test_a_full_bucket_is_full_under_any_limit(capacity, new):
    assert resized(capacity * UNITS, capacity, new) == new * UNITS


@for_all(buckets)
def test_full_is_when_nothing_is_missing(bucket):
    capacity, level = bucket
    pause = until_full(level, capacity)
    assert refilled(level, capacity, pause) == capacity * UNITS
    if pause:
        assert refilled(level, capacity, pause - 1) < capacity * UNITS


@for_all(buckets)
def test_what_remains_are_whole_tokens_that_can_be_taken(bucket):
    capacity, level = bucket
    tokens = remaining(level)
    assert tokens >= 0
    if tokens:
        assert wait(level, capacity, tokens) == 0
    if tokens < capacity:
        assert wait(level, capacity, tokens + 1) > 0


def test_an_empty_bucket_in_debt_under_no_limit_is_never_full_nor_an_error():
    assert wait(-5, 0, 1) is None
    assert until_full(-5, 0) == 0
