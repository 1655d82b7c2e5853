"""What a failure means: the whole table."""

from __future__ import annotations

import pytest

from pi_relay.lifecycle import (
    Stage,
    connection_failure,
    leads_back,
    of_an_exchanger,
    send_as_denied,
    unexpected,
    what_it_means,
)
from pi_relay.model import Failure, Reply, Scope

R, M, H, A = Scope.RECIPIENT, Scope.MESSAGE, Scope.NEXT_HOP, Scope.ACCOUNT
S = Stage
OPENING = (S.CONNECT, S.TLS, S.GREETING, S.EHLO)
SPOKEN = (S.MAIL, S.RCPT, S.DATA, S.END_OF_DATA)
EVERY = (*OPENING, S.AUTH, *SPOKEN)

# stages, reply, scope, permanent
TABLE = [
    (EVERY, "421 4.3.2 closing", H, False),
    (OPENING, "454 4.7.0 TLS not available", H, False),
    (OPENING, "554 5.7.1 go away", H, False),
    (OPENING, "550 5.7.1 blocked", H, False),
    ((S.AUTH,), "454 4.7.0 try again", H, False),
    ((S.AUTH,), "432 4.7.12 transition needed", H, False),
    ((S.AUTH,), "535 5.7.8 bad credentials", A, False),
    ((S.AUTH,), "535 bad credentials", A, False),
    ((S.AUTH,), "534 5.7.9 too weak", A, False),
    ((S.AUTH,), "504 5.5.4 unknown mechanism", A, False),
    (EVERY, "530 5.7.0 authentication required", A, False),
    (EVERY, "530 authentication required", A, False),
    (EVERY, "535 5.7.3 unsuccessful", A, False),
    (EVERY, "550 5.7.30 basic authentication is not supported", A, False),
    (EVERY, "554 5.2.252 SendAsDenied", A, False),
    ((S.MAIL,), "550 5.7.0 you may not send", A, False),
    ((S.MAIL,), "432 4.3.2 too many connections", H, False),
    ((S.MAIL,), "450 4.7.1 greylisted", H, False),
    ((S.MAIL,), "451 4.3.0 later", H, False),
    ((S.MAIL,), "452 4.3.1 no space", M, False),
    ((S.MAIL,), "550 5.7.1 sender refused", M, True),
    ((S.MAIL,), "552 5.3.4 too large", M, True),
    ((S.RCPT,), "450 4.2.0 greylisted", R, False),
    ((S.RCPT,), "451 4.3.0 later", R, False),
    ((S.RCPT,), "452 4.5.3 too many recipients", R, False),
    ((S.RCPT,), "550 5.1.1 unknown", R, True),
    ((S.RCPT,), "550 5.7.0 not here", R, True),
    ((S.RCPT,), "552 too many recipients", R, False),
    ((S.RCPT,), "552 5.5.3 too many recipients", R, False),
    ((S.RCPT,), "552 5.2.2 mailbox full", R, True),
    ((S.RCPT,), "552 5.3.4 too large", R, True),
    ((S.RCPT,), "556 5.1.10 null MX", R, True),
    ((S.DATA,), "451 4.3.0 later", M, False),
    ((S.DATA,), "554 5.5.1 no valid recipients", M, True),
    ((S.END_OF_DATA,), "432 4.3.2 thread limit", M, False),
    ((S.END_OF_DATA,), "450 4.7.1 later", M, False),
    ((S.END_OF_DATA,), "452 4.3.1 no space", M, False),
    ((S.END_OF_DATA,), "550 5.7.0 spam", M, True),
    ((S.END_OF_DATA,), "554 5.6.0 malformed", M, True),
    (EVERY, "199 not SMTP", H, False),
    (EVERY, "600 not SMTP", H, False),
    ((S.MAIL, S.RCPT, S.END_OF_DATA), "354 out of place", H, False),
    ((S.DATA,), "250 out of place", H, False),
]


def reply_of(line: str) -> Reply:
    code, _, rest = line.partition(" ")
    first, _, text = rest.partition(" ")
    if first.count(".") == 2:
        return Reply(int(code), first, text, "mx.example")
    return Reply(int(code), "", rest, "mx.example")


@pytest.mark.parametrize(
    ("stage", "line", "scope", "permanent"),
    [(stage, line, scope, permanent) for stages, line, scope, permanent in TABLE for stage in stages],
)
def test_every_row(stage: Stage, line: str, scope: Scope, permanent: bool) -> None:
    reply = reply_of(line)
    assert what_it_means(stage, reply) == Failure(scope, reply, permanent)


@pytest.mark.parametrize("stage", EVERY)
def test_success_is_no_failure(stage: Stage) -> None:
    hoped_for = 354 if stage is Stage.DATA else 250
    assert what_it_means(stage, Reply(hoped_for, "", "ok")) is None


@pytest.mark.parametrize("code", [221, 421, 500, 554])
def test_nothing_said_to_quit_matters(code: int) -> None:
    assert what_it_means(Stage.QUIT, Reply(code, "", "bye")) is None


@pytest.mark.parametrize("stage", EVERY)
def test_only_a_5yz_to_mail_or_later_may_be_for_good(stage: Stage) -> None:
    for code in range(400, 600):
        failure = what_it_means(stage, Reply(code, "", ""))
        assert failure is not None
        if failure.permanent:
            assert code >= 500
            assert stage in SPOKEN
            assert failure.scope in (Scope.RECIPIENT, Scope.MESSAGE)


@pytest.mark.parametrize(
    ("stage", "enhanced_status"),
    [(Stage.CONNECT, "4.4.1"), (Stage.TLS, "4.7.5"), (Stage.END_OF_DATA, "4.4.2")],
)
def test_no_answer_is_the_next_hops_trouble(stage: Stage, enhanced_status: str) -> None:
    failure = connection_failure(stage, "timed out", "mx.example")
    assert failure == Failure(Scope.NEXT_HOP, Reply(421, enhanced_status, "timed out", "mx.example"), False)


def test_send_as_denied_is_told_apart() -> None:
    denied = what_it_means(Stage.END_OF_DATA, Reply(554, "5.2.252", "SendAsDenied"))
    assert denied is not None and send_as_denied(denied)
    refused = what_it_means(Stage.AUTH, Reply(535, "5.7.8", "no"))
    assert refused is not None and not send_as_denied(refused)


def test_our_own_defect_defers_the_message() -> None:
    failure = unexpected(ZeroDivisionError("secret detail"))
    assert (failure.scope, failure.permanent, failure.reply.code) == (Scope.MESSAGE, False, 451)
    assert "secret" not in failure.reply.text


# ── at a recipient's MX host, where we have no account ───────────────────────────────────────────

OF_AN_EXCHANGER = [
    (OPENING, "530 5.7.0 authentication required", H, False),
    (OPENING, "535 5.7.8 go away", H, False),
    ((S.MAIL, S.RCPT), "530 5.7.0 authentication required", R, True),
    ((S.MAIL, S.RCPT), "535 5.7.8 bad credentials", R, True),
    ((S.MAIL,), "550 5.7.0 you may not send", R, True),
    ((S.MAIL, S.RCPT, S.END_OF_DATA), "550 5.7.30 REQUIRETLS support required", R, True),
    ((S.MAIL,), "554 5.2.252 SendAsDenied", R, True),
    ((S.MAIL,), "450 4.7.1 greylisted", H, False),
    ((S.MAIL,), "550 5.7.1 sender refused", M, True),
    ((S.RCPT,), "550 5.1.1 unknown", R, True),
    (EVERY, "421 4.3.2 closing", H, False),
]


@pytest.mark.parametrize(
    ("stage", "text", "scope", "permanent"),
    [(stage, *row) for stages, *row in OF_AN_EXCHANGER for stage in stages],
)
def test_an_exchanger_has_no_account_of_ours(stage: Stage, text: str, scope: Scope, permanent: bool) -> None:
    told = what_it_means(stage, reply_of(text))
    assert told is not None
    meant = of_an_exchanger(told, in_session=stage in SPOKEN)
    assert (meant.scope, meant.permanent) == (scope, permanent)


def test_a_loop_is_ours_to_find_and_nobody_elses_to_claim() -> None:
    found = Failure(A, Reply(451, "4.4.6", "routing loop: mx.example:25 is this relay itself"), False)
    meant = of_an_exchanger(found, in_session=False)
    assert (meant.scope, meant.permanent, meant.reply.enhanced_status) == (R, True, "5.4.6")
    assert leads_back(meant)
    assert not leads_back(Failure(R, Reply(554, "5.4.6", "loops back to myself", "mx.example"), True))
    assert not leads_back(Reply(250, "2.0.0", "ok"))
