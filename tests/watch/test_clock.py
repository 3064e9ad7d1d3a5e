"""The clock: exclusive sections, rates without pauses, goodput over sessions that die, and the table of peaks."""

import json

import pytest

from electra_jax.watch.clock import SECTIONS, Clock, Reached, measure_matmul_peak, stragglers


class Time:
    """Passes only where a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


def run_steps(clock: Clock, time: Time, count: int, *, data_secs: float = 0.5, step_secs: float = 1.5) -> None:
    for _ in range(count):
        with clock.section("data"):
            time.now += data_secs
        with clock.section("step"):
            time.now += step_secs
            clock.count(steps=1, tokens=100, flops=6e9)


def test_a_nested_section_pauses_the_outer_and_no_second_is_lost(time):
    clock = Clock(now=time)
    time.now += 1
    with clock.section("step"):
        time.now += 2
        with clock.section("checkpoint"):
            time.now += 4
            with clock.section("eval"):
                time.now += 8
            time.now += 16
        time.now += 32
    time.now += 64
    secs = clock.secs()
    assert secs == dict.fromkeys(SECTIONS, 0.0) | {"step": 34, "checkpoint": 20, "eval": 8, "other": 65}
    assert clock.wall_secs() == 127


def test_a_section_ends_by_an_exception_too(time):
    clock = Clock(now=time)
    with pytest.raises(KeyError), clock.section("eval"):
        time.now += 3
        raise KeyError
    time.now += 5
    assert (clock.secs()["eval"], clock.secs()["other"]) == (3, 5)


def test_an_unknown_section_is_refused():
    with pytest.raises(ValueError, match="no section 'evall'"), Clock().section("evall"):
        pass


def test_rates_count_data_and_steps_and_leave_pauses_and_the_first_step_out(time):
    clock = Clock(peak_flops_per_sec=10e9, now=time)
    assert clock.rates() is None
    with clock.section("compile"):
        time.now += 50
    run_steps(clock, time, 1, step_secs=100.0)  # compiles
    assert clock.rates() is None
    run_steps(clock, time, 3)
    with clock.section("eval"):
        time.now += 1000
    run_steps(clock, time, 2)
    # 2 s a step of 100 tokens: 3e9 FLOP/s of 10e9.
    assert clock.rates() == pytest.approx((0.5, 50.0, 0.3))
    summary = clock.summary()
    assert summary["clock/tokens_per_sec"] == pytest.approx(50.0)
    assert summary["clock/steps_per_sec"] == pytest.approx(0.5)
    assert summary["clock/mfu"] == pytest.approx(0.3)
    assert summary["clock/tokens"] == 600


def test_more_than_a_measured_peak_is_a_higher_peak(time):
    """The product that measured it ran beside other load. A data sheet's peak stands: more than it would be a wrong count."""
    for is_measured, mfu in ((True, 1.0), (False, 3.0)):
        clock = Clock(peak_flops_per_sec=1e9, now=time)
        clock.peak_is_measured = is_measured
        run_steps(clock, time, 5)
        assert clock.rates().mfu == pytest.approx(mfu)


def test_rates_follow_the_present_speed(time):
    clock = Clock(now=time)
    run_steps(clock, time, 200, data_secs=0.0, step_secs=1.0)
    run_steps(clock, time, 40, data_secs=0.0, step_secs=4.0)
    assert clock.rates().steps_per_sec == pytest.approx(0.25)
    assert clock.rates().mfu is None and "clock/mfu" not in clock.summary()


def test_eta_allows_for_pauses_as_often_as_until_now(time):
    clock = Clock(now=time)
    assert clock.eta_secs(10) is None
    run_steps(clock, time, 10)
    assert clock.eta_secs(30) == pytest.approx(60.0)
    with clock.section("eval"):
        time.now += 4
    with clock.section("checkpoint"):
        time.now += 1
    assert clock.eta_secs(30) == pytest.approx(60.0 * 1.25)


def test_a_resumed_clock_goes_on_counting(time):
    first = Clock(now=time)
    run_steps(first, time, 4)
    saved, last_line = json.loads(json.dumps(first.to_dict())), first.summary()

    time.now += 9999  # nobody's
    second = Clock(now=time)
    with second.section("init"):
        time.now += 7
        second.from_dict(saved)
    second.resumed(4, Reached(4, last_line, 0))
    run_steps(second, time, 6)
    assert (second.steps, second.tokens, second.lost_steps, second.lost_secs) == (10, 1000, 0, 0)
    assert second.secs() == dict.fromkeys(SECTIONS, 0.0) | {"data": 5, "step": 15, "init": 7}
    assert second.summary()["clock/goodput"] == pytest.approx(15 / 27)
    assert second.to_dict()["secs"] == second.secs()


def test_what_died_with_a_session_is_lost_and_lowers_goodput(time):
    clock = Clock(now=time)
    run_steps(clock, time, 4)
    saved = clock.to_dict()  # 8 s, then the checkpoint of step 4
    run_steps(clock, time, 3)
    reached = Reached(7, clock.summary(), 0)  # its last line; then kill -9

    # Each of two more sessions dies before a checkpoint of its own; each first writes down what was lost before it.
    for steps_done in (2, 1):
        clock = Clock(now=time)
        with clock.section("init"):
            time.now += 1
            clock.from_dict(saved)
        clock.resumed(4, reached)
        reached = Reached(4, clock.summary(), 0)
        run_steps(clock, time, steps_done)
        reached = Reached(4 + steps_done, clock.summary(), 0)

    clock = Clock(now=time)
    clock.from_dict(saved)
    clock.resumed(4, reached)
    assert clock.lost_steps == 3 + 2 + 1
    assert clock.lost_secs == pytest.approx(3 * 2 + 1 + 2 * 2 + 1 + 1 * 2)
    summary = clock.summary()
    assert summary["clock/goodput"] == pytest.approx(6 / 22)  # 4 steps of 1.5 s
    assert summary["clock/secs_wall"] == pytest.approx(8 + 14)
    assert summary["clock/secs_lost"] == pytest.approx(14)


def test_a_measured_peak_is_plausible():
    assert 1e8 < measure_matmul_peak(size=256, budget_secs=0.05) < 1e15


def test_own_seconds_leave_out_the_wait_for_the_devices():
    now = [0.0]
    run_clock = Clock(now=lambda: now[0])
    with run_clock.section("data"):
        now[0] += 3
    with run_clock.section("step"), run_clock.waiting():
        now[0] += 5
    with run_clock.section("eval"):
        now[0] += 100
    assert run_clock.own_secs() == 3


def test_a_straggler_is_named_where_it_matters():
    assert stragglers({0: 0.3}, 1.0) == ({}, None)
    metrics, line = stragglers({0: 0.02, 1: 0.03, 3: 0.6, 5: 0.02}, 1.0)  # those which have told one
    assert metrics == {"clock/host_secs_slowest": 0.6, "clock/host_secs_median": 0.02}
    assert "process 3 works 0.600 s" in line and "30.0 x" in line
    assert stragglers(dict(enumerate([0.02, 0.03, 0.05])), 1.0)[1] is None  # a twentieth of a step holds nobody up
    assert stragglers(dict(enumerate([0.5, 0.6, 0.55])), 1.0)[1] is None  # all alike
    assert stragglers({0: 0.0, 1: 0.6}, 0.0)[1]
