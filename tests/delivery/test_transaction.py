"""One transaction with a next hop that does as RFC 5321 says, and with one that refuses at each point."""

from __future__ import annotations

from pathlib import Path

import pytest

from pi_relay.model import FileSpan, Recipient, Reply, StoredMessage
from tests.delivery.office import (
    BODY,
    HEADER,
    Office,
    config,
    deliver_once,
    envelope,
    failure,
    fates,
    large_message,
    smart_host,
    with_office,
)
from tests.support.misbehaving_hop import DROP, HANG, RESET, Act, MisbehavingHop

STEP_BY_STEP = ("SIZE 50000000", "8BITMIME")
A, B, C = "a@elsewhere.example", "b@elsewhere.example", "c@elsewhere.example"


def only(refused: str, reply: str):
    return lambda argument: reply if refused in argument else "250 ok"


@pytest.mark.parametrize("extensions", [("PIPELINING", *STEP_BY_STEP), STEP_BY_STEP])
def test_a_message_arrives_as_it_is_stored(extensions: tuple[str, ...]) -> None:
    with MisbehavingHop(extensions=extensions) as hop:
        report = deliver_once(config(smart_host(hop)), A, B)
    assert fates(report) == ["relayed", "relayed"]
    outcome = report.results[0][1]
    assert outcome == Reply(250, "2.0.0", "taken as 12345", "127.0.0.1")
    (message,) = hop.messages
    assert message.content == HEADER + BODY
    assert message.mail == f"FROM:<scans@office.example> SIZE={len(HEADER + BODY)}"
    assert message.rcpts == [f"TO:<{A}>", f"TO:<{B}>"]
    assert hop.connections[0].ended == "quit"


def test_an_empty_body_and_one_without_a_last_line_end() -> None:
    with MisbehavingHop() as hop:
        deliver_once(config(smart_host(hop)), message=StoredMessage(HEADER, b""))
        deliver_once(config(smart_host(hop)), message=StoredMessage(HEADER, b"no end"))
    assert [message.content for message in hop.messages] == [HEADER, HEADER + b"no end\r\n"]


def test_a_large_header_block_without_a_body(tmp_path: Path) -> None:
    message = StoredMessage(HEADER, FileSpan(str(tmp_path / "m"), 6, 0))
    with MisbehavingHop() as hop:
        report = deliver_once(config(smart_host(hop)), message=message)
    assert fates(report) == ["relayed"]
    assert hop.messages[0].content == HEADER


def test_a_large_message_is_copied_from_its_place_in_the_file(tmp_path: Path) -> None:
    message = large_message(tmp_path / "m", 3_000_000)
    with MisbehavingHop() as hop:
        report = deliver_once(config(smart_host(hop)), message=message)
    assert fates(report) == ["relayed"]
    content = (tmp_path / "m").read_bytes()[6:-5]
    assert hop.messages[0].content == HEADER + content


def test_a_file_that_is_too_short_is_our_own_trouble_and_nothing_is_delivered(tmp_path: Path) -> None:
    message = large_message(tmp_path / "m", 300_000)
    (tmp_path / "m").write_bytes(b"x" * 200_000)
    with MisbehavingHop() as hop:
        report = deliver_once(config(smart_host(hop)), message=message)
    assert fates(report) == ["message transient 451"]
    assert not hop.messages and hop.connections[0].ended == "lost"


def test_a_missing_file_is_our_own_trouble(tmp_path: Path) -> None:
    message = large_message(tmp_path / "m", 300_000)
    (tmp_path / "m").unlink()
    with MisbehavingHop() as hop:
        assert fates(deliver_once(config(smart_host(hop)), message=message)) == ["message transient 451"]
        assert not hop.messages


# ── what was offered ─────────────────────────────────────────────────────────────────────────────


def test_nothing_is_said_that_was_not_offered() -> None:
    mail = envelope(A, body_type="7BIT", smtputf8=True, envid="x", ret="HDRS")
    with MisbehavingHop(extensions=()) as hop:
        report = with_office(config(smart_host(hop)), lambda office: office.send(mail))
    assert fates(report) == ["relayed"]
    assert hop.messages[0].mail == "FROM:<scans@office.example>"


def test_parameters_are_handed_on_where_they_are_offered() -> None:
    mail = envelope(A, body_type="8BITMIME", smtputf8=True, envid="QQ314159", ret="HDRS")
    asked = Recipient("é@elsewhere.example", "utf-8;x", ("SUCCESS", "FAILURE"))
    mail = envelope(
        body_type="8BITMIME", smtputf8=True, envid="QQ314159", ret="HDRS", recipients=(Recipient(A), asked)
    )
    with MisbehavingHop() as hop:
        report = with_office(config(smart_host(hop)), lambda office: office.send(mail))
    assert fates(report) == ["relayed", "relayed"]
    assert report.notify_handed_on == {1}
    size = len(HEADER + BODY)
    sent = hop.messages[0]
    assert (
        sent.mail == f"FROM:<scans@office.example> SIZE={size} BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ314159"
    )
    assert sent.rcpts[1] == "TO:<é@elsewhere.example> NOTIFY=SUCCESS,FAILURE ORCPT=utf-8;x"


def test_without_8bitmime_the_message_fails_and_nothing_is_converted() -> None:
    with MisbehavingHop(extensions=("PIPELINING",)) as first, MisbehavingHop() as second:
        hosts = smart_host(first), smart_host(second, "other")
        report = deliver_once(config(*hosts), body_type="8BITMIME")
    assert fates(report) == ["message permanent 554"] and failure(report).reply.enhanced_status == "5.6.3"
    assert not first.messages and not second.connections


def test_without_smtputf8_the_next_way_is_taken_and_else_it_fails() -> None:
    with MisbehavingHop(extensions=("8BITMIME",)) as first, MisbehavingHop() as second:
        to_both = config(smart_host(first), smart_host(second, "other"))
        assert fates(deliver_once(to_both, "é@elsewhere.example")) == ["relayed"]
        report = deliver_once(config(smart_host(first)), "é@elsewhere.example")
    assert fates(report) == ["message permanent 553"] and failure(report).reply.enhanced_status == "5.6.7"
    assert "MAIL" not in first.verbs() and len(second.messages) == 1


def test_a_path_with_a_line_end_never_becomes_a_command() -> None:
    with MisbehavingHop() as hop:
        report = deliver_once(config(smart_host(hop)), "a@b>\r\nRCPT TO:<evil@elsewhere.example")
    assert fates(report) == ["message transient 451"]
    assert "MAIL" not in hop.verbs()


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────

both_ways = pytest.mark.parametrize("extensions", [("PIPELINING",), ()], ids=["pipelined", "step by step"])


@both_ways
@pytest.mark.parametrize(
    ("key", "reply", "fate"),
    [
        ("MAIL", "550 5.7.1 not you", "message permanent 550"),
        ("MAIL", "552 5.3.4 too big", "message permanent 552"),
        ("MAIL", "452 4.3.1 disk full", "message transient 452"),
        ("MAIL", "450 4.7.1 later", "next_hop transient 450"),
        ("MAIL", "451 4.3.0 later", "next_hop transient 451"),
        ("MAIL", "432 4.3.2 too many connections", "next_hop transient 432"),
        ("MAIL", "530 5.7.0 sign in first", "account transient 530"),
        ("MAIL", "550 5.7.0 not yours", "account transient 550"),
        ("MAIL", "421 4.3.2 closing", "next_hop transient 421"),
        ("RCPT", "550 5.1.1 unknown", "recipient permanent 550"),
        ("RCPT", "450 4.2.0 greylisted", "recipient transient 450"),
        ("RCPT", "452 4.5.3 too many", "recipient transient 452"),
        ("RCPT", "421 4.3.2 closing", "next_hop transient 421"),
        ("RCPT", "354 what", "next_hop transient 354"),
        ("DATA", "451 4.3.0 no", "message transient 451"),
        ("DATA", "554 5.5.1 no", "message permanent 554"),
        ("DATA", "421 4.3.2 closing", "next_hop transient 421"),
        ("DATA", "250 what", "next_hop transient 250"),
        ("DOT", "451 4.7.1 later", "message transient 451"),
        ("DOT", "554 5.7.1 spam", "message permanent 554"),
        ("DOT", "554 5.2.252 SendAsDenied", "account transient 554"),
        ("DOT", "550 5.7.30 basic authentication", "account transient 550"),
        ("DOT", "421 4.3.2 closing", "next_hop transient 421"),
        ("DOT", "354 what", "next_hop transient 354"),
    ],
)  # fmt: skip
def test_a_refusal_means_what_the_table_says(
    extensions: tuple[str, ...], key: str, reply: str, fate: str
) -> None:
    with MisbehavingHop({key: reply}, extensions=extensions) as hop:
        report = deliver_once(config(smart_host(hop)), A, B)
    assert fates(report) == [fate, fate]
    assert not hop.messages


@both_ways
def test_one_refused_recipient_does_not_hurt_the_others(extensions: tuple[str, ...]) -> None:
    script = {
        "RCPT": lambda argument: {"b": "550 5.1.1 no", "c": "450 4.2.1 later"}.get(argument[4], "250 ok")
    }
    with MisbehavingHop(script, extensions=extensions) as hop:
        report = deliver_once(config(smart_host(hop)), A, B, C)
    assert fates(report) == ["relayed", "recipient permanent 550", "recipient transient 450"]
    assert hop.messages[0].rcpts == [f"TO:<{A}>"]


@both_ways
@pytest.mark.parametrize("data", ["354 go ahead", "554 5.5.1 no valid recipients", "503 5.5.1 no"])
@pytest.mark.parametrize("refused", ["RCPT", "MAIL"])
def test_a_session_goes_on_after_a_transaction_without_recipients(
    extensions: tuple[str, ...], data: str, refused: str
) -> None:
    no = "550 5.1.1 no"
    script = {
        refused: [no, no, "250 ok"] if refused == "RCPT" else [no, "250 ok"],
        "DATA": [data, "354 go ahead"] if extensions else "354 go ahead",
    }

    async def use(office: Office) -> tuple[list[str], list[str]]:
        return fates(await office.deliver(A, B)), fates(await office.deliver(C))

    with MisbehavingHop(script, extensions=extensions) as hop:
        first, second = with_office(config(smart_host(hop)), use)
    assert first == ["recipient permanent 550" if refused == "RCPT" else "message permanent 550"] * 2
    assert second == ["relayed"]
    assert len(hop.connections) == 1
    # The lone dot that ends a 354 nobody wanted makes an empty message without recipients at the hop.
    real = [message for message in hop.messages if message.rcpts]
    assert [message.content for message in real] == [HEADER + BODY] and real[0].rcpts == [f"TO:<{C}>"]


def test_a_transaction_left_open_is_reset_before_the_next() -> None:
    async def use(office: Office) -> list[str]:
        await office.deliver(A)
        return fates(await office.deliver(C))

    with MisbehavingHop({"DATA": ["451 4.3.0 no", "354 go ahead"]}) as hop:
        assert with_office(config(smart_host(hop)), use) == ["relayed"]
    assert hop.messages[0].rcpts == [f"TO:<{C}>"]
    assert hop.verbs().count("RSET") == 1 and len(hop.connections) == 1


@both_ways
@pytest.mark.parametrize(
    "reply",
    ["452 4.5.3 too many", "451 4.5.3 too many", "552 5.5.3 too many recipients", "552 enough"],
)
def test_who_was_too_many_goes_in_a_new_transaction(extensions: tuple[str, ...], reply: str) -> None:
    taken_in_this: list[str] = []

    def two_at_most(argument: str) -> str:
        if len(taken_in_this) % 3 == 2:  # two taken, then one refused
            taken_in_this.append("-")
            return reply
        taken_in_this.append(argument)
        return "250 ok"

    with MisbehavingHop({"RCPT": two_at_most}, extensions=extensions) as hop:
        report = deliver_once(config(smart_host(hop)), A, B, C)
    assert fates(report) == ["relayed"] * 3
    assert [len(message.rcpts) for message in hop.messages] == [2, 1]
    assert len(hop.connections) == 1


@pytest.mark.parametrize(
    ("reply", "fate"),
    [("552 5.2.2 mailbox full", "recipient permanent 552"), ("552 5.3.4 too big", "recipient permanent 552"),
     ("452 4.5.3 too many", "recipient transient 452"), ("552 too many", "recipient transient 552")],
)  # fmt: skip
def test_where_no_recipient_is_taken_no_new_transaction_is_made(reply: str, fate: str) -> None:
    with MisbehavingHop({"RCPT": reply}) as hop:
        report = deliver_once(config(smart_host(hop)), A, B)
    assert fates(report) == [fate, fate]
    assert hop.verbs().count("MAIL") == 1


# ── trouble with the connection ──────────────────────────────────────────────────────────────────


@both_ways
@pytest.mark.parametrize("trouble", [DROP, RESET, HANG], ids=["drop", "reset", "hang"])
@pytest.mark.parametrize("key", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_connection_lost_is_the_next_hops_trouble(
    extensions: tuple[str, ...], key: str, trouble: Act
) -> None:
    with MisbehavingHop({key: trouble}, extensions=extensions) as hop:
        report = deliver_once(config(smart_host(hop)), A, B)
    assert fates(report) == ["next_hop transient 421"] * 2
    assert not hop.messages


def test_who_was_refused_before_the_connection_was_lost_stays_refused() -> None:
    script = {"RCPT": only(B, "550 5.1.1 no"), "DOT": DROP}
    with MisbehavingHop(script) as hop:
        report = deliver_once(config(smart_host(hop)), A, B, C)
    assert fates(report) == ["next_hop transient 421", "recipient permanent 550", "next_hop transient 421"]


def test_a_421_in_the_midst_of_recipients_is_for_all_that_were_not_refused() -> None:
    script = {"RCPT": ["250 ok", "550 5.1.1 no", "421 4.3.2 shutting down"]}
    with MisbehavingHop(script) as hop:
        report = deliver_once(config(smart_host(hop)), A, B, C)
    assert fates(report) == ["next_hop transient 421", "recipient permanent 550", "next_hop transient 421"]
    assert failure(report).reply.text == "shutting down" == failure(report, 2).reply.text


@pytest.mark.parametrize("then", ["close", "reset", "hang"])
def test_an_early_refusal_of_the_content_is_heard(then: str, tmp_path: Path) -> None:
    message = large_message(tmp_path / "m", 20_000_000)
    script = {"CONTENT": Act(b"552 5.3.4 larger than you said\r\n", then)}
    with MisbehavingHop(script, content_bytes=100_000) as hop:
        report = deliver_once(config(smart_host(hop)), message=message)
    assert fates(report) == ["message permanent 552"]
    assert failure(report).reply.enhanced_status == "5.3.4"


@pytest.mark.parametrize("trouble", [DROP, RESET, HANG, Act(b"250 2.0.0 thanks already\r\n", "hang")])
def test_trouble_in_the_midst_of_the_content(trouble: Act, tmp_path: Path) -> None:
    message = large_message(tmp_path / "m", 20_000_000)
    with MisbehavingHop({"CONTENT": trouble}, content_bytes=100_000) as hop:
        report = deliver_once(config(smart_host(hop)), message=message)
    assert fates(report) == ["next_hop transient 421"]
    assert not hop.messages


# ── replies that are none ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "said",
    [
        b"hello there\r\n",
        b"25\r\n",
        b"999 no such class\r\n",
        b"250_ok\r\n",
        b"\x00\x01\x02\xff\r\n",
        b"\r\n",
        b"250 " + b"x" * 200_000,
        b"250-" + b"x" * 100 + b"\r\n",
        b"250-more\r\n" * 20_000,
        b"250 ok\r\n250 ok\r\n250 ok\r\n250 and one too many\r\n",
    ],
    ids=["words", "short", "class", "separator", "binary", "empty", "endless", "half", "lines", "too many"],
)
@pytest.mark.parametrize("key", ["MAIL", "DOT"])
def test_nonsense_is_the_next_hops_trouble(key: str, said: bytes) -> None:
    if key == "DOT" and said.startswith(b"250 ok"):
        said = b"354 " + said
    with MisbehavingHop({key: Act(said, "hang")}) as hop:
        report = deliver_once(config(smart_host(hop)), A)
    assert failure(report).scope == "next_hop" and not failure(report).permanent
    assert len(str(failure(report).reply)) < 1200


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        (b"550 5.1.1 no such user\r\n", Reply(550, "5.1.1", "no such user")),
        (b"550-5.1.1 no such user\r\n550-5.1.1 here\r\n550 5.1.1 ask elsewhere\r\n",
         Reply(550, "5.1.1", "no such user here ask elsewhere")),
        (b"550-no status\r\n550 at all\r\n", Reply(550, "", "no status at all")),
        (b"550 4.1.1 wrong class\r\n", Reply(550, "", "4.1.1 wrong class")),
        (b"550\r\n", Reply(550, "", "")),
        (b"550 5.1.1\r\n", Reply(550, "5.1.1", "")),
        (b"550 5.1.10 null MX\n", Reply(550, "5.1.10", "null MX")),
        (b"550 5.1.1 bell\x07 escape\x1b[31m null\x00 \xc3\xa9 \xff\r\n",
         Reply(550, "5.1.1", "bell  escape [31m null  é \ufffd")),
        (b"550 " + b"y" * 5000 + b"\r\n", Reply(550, "", "y" * 1000)),
    ],
)  # fmt: skip
def test_a_reply_is_taken_apart(said: bytes, reply: Reply) -> None:
    with MisbehavingHop({"RCPT": Act(said)}) as hop:
        got = failure(deliver_once(config(smart_host(hop)), A)).reply
    assert (got.code, got.enhanced_status, got.text, got.remote_mta) == (
        reply.code, reply.enhanced_status, reply.text, "127.0.0.1",
    )  # fmt: skip


def test_replies_that_come_in_pieces() -> None:
    script = {
        "MAIL": Act(b"250-2.1.0"),
        "RCPT": Act(b" fine\r\n250 2.1.0 sender\r\n250 2.1.5 recip"),
        "DATA": Act(b"ient\r\n354 g"),
        "CONTENT": Act(b"o\r\n"),
    }
    with MisbehavingHop(script) as hop:
        report = deliver_once(config(smart_host(hop)), A)
    assert fates(report) == ["relayed"]
