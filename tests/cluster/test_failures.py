"""The first real failure is told from what follows from it."""

from pathlib import Path

import pytest
from torch.distributed import DistNetworkError

from cluster.failures import RankError, choose_first, describe_exception, describe_loss, find_root, render_failure

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"


def caught(raise_it: object) -> BaseException:
    with pytest.raises(BaseException) as info:
        raise_it()  # type: ignore[operator]
    return info.value


def test_a_broken_collective_is_a_consequence_and_an_own_error_is_not() -> None:
    assert describe_exception(0, RuntimeError(GLOO)).is_consequence
    assert describe_exception(0, DistNetworkError("store went away")).is_consequence
    assert not describe_exception(0, RuntimeError("loss is NaN at step 7")).is_consequence
    assert not describe_exception(0, ValueError(GLOO)).is_consequence


def test_the_root_decides_not_the_wrapping() -> None:
    def wrap() -> None:
        try:
            raise RuntimeError(GLOO)
        except RuntimeError as error:
            raise KeyError("step failed") from error

    def break_in_cleanup() -> None:
        try:
            raise KeyError("the cause")
        finally:
            raise RuntimeError(GLOO)

    assert describe_exception(0, caught(wrap)).is_consequence
    assert not describe_exception(0, caught(break_in_cleanup)).is_consequence


def test_find_root_ends_on_a_circle() -> None:
    first, second = KeyError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_root(first) in (first, second)


def test_the_exceptions_reason_and_type_travel() -> None:
    error = OSError("disk")
    error.reason = "full"  # type: ignore[attr-defined]
    described = describe_exception(3, error)
    assert (described.rank, described.error_type, described.reason) == (3, "builtins.OSError", "full")


def test_the_earliest_cause_comes_before_earlier_consequences() -> None:
    early_consequence = RankError(0, 1.0, "x", "closed", is_consequence=True)
    late_cause, cause = RankError(1, 3.0, "x", "b"), RankError(2, 2.0, "x", "a")
    assert choose_first([early_consequence, late_cause, cause]) is cause
    assert choose_first([RankError(1, 2.0, "x", "", is_consequence=True), early_consequence]) is early_consequence


def test_the_message_says_it_once() -> None:
    error = RankError(1, 0.0, "builtins.KeyError", "'row'", traceback_text="Traceback\nKeyError: 'row'\n")
    text = render_failure(error, node_id="abcdef1234", host="h7", log_path="/logs/w.err", num_others=3, running=[0])
    assert text.splitlines() == [
        "Rank 1 failed with builtins.KeyError on node h7 (abcdef12): 'row'",
        "  | Traceback",
        "  | KeyError: 'row'",
        "Log of rank 1 (on h7): /logs/w.err",
        "3 other ranks failed or had to stop as a consequence.",
    ]


def test_a_loss_keeps_the_line_that_says_why() -> None:
    error = RuntimeError("The actor died unexpectedly.\n\tclass_name: Worker\nThe actor is dead because of SIGKILL.")
    assert describe_loss(2, error).message == "The actor is dead because of SIGKILL."


class ExplainedError(Exception):
    explains_itself = True


def test_an_error_that_explains_itself_is_shown_without_its_traceback() -> None:
    def rendered(exception: Exception) -> str:
        try:
            raise exception
        except Exception as caught:
            error = describe_exception(0, caught)
        return render_failure(error, node_id="abcdef0123", host="h", log_path="/log", num_others=1, running=())

    assert "Traceback" in rendered(ValueError("lower the rate"))
    plain = rendered(ExplainedError("lower the rate"))
    assert "Traceback" not in plain and "lower the rate" in plain and "/log" in plain


def test_a_lost_rank_s_last_words_are_quoted_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "worker.err"
    log.write_text(
        "a warning of long before\nFatal Python error: Segmentation fault\n\nThread 0x1 (most recent call):\n"
    )
    error = RankError(1, 0.0, "", "The actor is dead.", is_lost=True)
    places = {"node_id": "abcdef0123", "host": "h", "num_others": 0, "running": ()}
    text = render_failure(error, log_path=str(log), **places)
    assert "  | Fatal Python error: Segmentation fault" in text and "Thread 0x1" in text
    assert "long before" not in text
    assert "Fatal" not in render_failure(error, log_path=str(tmp_path / "elsewhere.err"), **places)
