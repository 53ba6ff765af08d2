from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.rate_limiters.token_bucket import (
    UNITS,
    Bucket,
    full,
    give,
    is_full,
    refill,
    remaining,
    resize,
    take,
    until_full,
    wait,
)

capacities = st.integers(1, 10**7)
steps = st.lists(st.tuples(st.integers(0, 90 * 10**9), st.integers(1, 50)), min_size=1, max_size=60)
buckets = st.builds(
    lambda capacity, share, debt, at: Bucket(capacity, capacity * share - debt, at),
    capacities,
    st.integers(0, UNITS),
    st.integers(0, 10**15),
    st.integers(0, 10**15),
)


def walk(capacity, steps):
    """Take greedily at every step; the times and sizes of what was admitted."""
    bucket, now, admitted = full(capacity, 0), 0, []
    for pause, tokens in steps:
        now += pause
        bucket = refill(bucket, now)
        if wait(bucket, tokens) == 0:
            bucket = take(bucket, tokens)
            admitted.append((now, tokens))
    return admitted


@given(st.integers(1, 300), steps)
def test_no_window_admits_more_than_a_bucket_and_its_refill(capacity, steps):
    admitted = walk(capacity, steps)
    for first, (start, _) in enumerate(admitted):
        taken = 0
        for end, tokens in admitted[first:]:
            taken += tokens
            assert taken * UNITS <= capacity * UNITS + capacity * (end - start)


@given(st.integers(1, 300), st.lists(st.integers(0, 10**11), max_size=20))
def test_a_taker_who_never_waits_gets_exactly_the_law(capacity, pauses):
    bucket, now, taken, law = full(capacity, 0), 0, 0, capacity * UNITS
    for pause in pauses:
        now += pause
        # Brim-full is the only time at which anything is lost.
        law = min(law + pause * capacity, taken * UNITS + capacity * UNITS)
        bucket = refill(bucket, now)
        while wait(bucket, 1) == 0:
            bucket = take(bucket, 1)
            taken += 1
        assert taken == law // UNITS


@given(buckets, st.integers(0, 10**7))
def test_the_wait_is_the_first_nanosecond_that_suffices(bucket, tokens):
    ns = wait(bucket, tokens)
    if ns is None:
        assert tokens > bucket.capacity
        return
    assert wait(refill(bucket, bucket.at + ns), tokens) == 0
    if ns:
        assert wait(refill(bucket, bucket.at + ns - 1), tokens) == 1


@given(buckets, st.lists(st.integers(0, 10**12), max_size=10))
def test_refilling_in_steps_equals_refilling_at_once(bucket, pauses):
    now, stepwise = bucket.at, bucket
    for pause in pauses:
        now += pause
        stepwise = refill(stepwise, now)
    assert stepwise == refill(bucket, now)


@given(buckets, st.integers(-(10**12), 0))
def test_a_clock_that_goes_back_changes_nothing(bucket, pause):
    assert refill(bucket, bucket.at + pause) == bucket


@given(buckets, st.integers(0, 10**7))
def test_giving_back_undoes_taking(bucket, tokens):
    assert give(take(bucket, tokens), tokens) == bucket


@given(buckets, st.integers(-(10**7), 10**7))
def test_a_bucket_never_holds_more_than_its_capacity(bucket, tokens):
    later = refill(give(bucket, tokens), bucket.at + 10**18)
    assert later.level == later.capacity * UNITS
    assert give(later, abs(tokens)) == later


@given(buckets, capacities)
def test_a_smaller_limit_cuts_and_a_larger_one_adds_nothing(bucket, capacity):
    resized = resize(bucket, capacity)
    assert resized.level == min(bucket.level, capacity * UNITS)
    assert (resized.capacity, resized.at) == (capacity, bucket.at)


@given(buckets)
def test_full_is_when_nothing_is_missing(bucket):
    brim = bucket.at + until_full(bucket)
    assert is_full(bucket, brim)
    assert refill(bucket, brim) == full(bucket.capacity, brim)
    if brim > bucket.at:
        assert not is_full(bucket, brim - 1)


@given(buckets)
def test_what_remains_are_whole_tokens_that_can_be_taken(bucket):
    tokens = remaining(bucket)
    assert tokens >= 0
    if tokens:
        assert wait(bucket, tokens) == 0
    if tokens < bucket.capacity:
        assert wait(bucket, tokens + 1) > 0


def test_an_empty_bucket_in_debt_under_no_limit_is_never_full_nor_an_error():
    assert wait(Bucket(0, -5, 0), 1) is None
