"""Delivery reports (RFC 3464), taken apart."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage


def report_in(content: bytes) -> EmailMessage:
    """The message, which must be a report."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage) and message.get_content_type() == "multipart/report"
    return message


def fields_of(report: EmailMessage) -> list[dict[str, str]]:
    """The groups of the delivery-status part: of the message, then of each recipient, their names lowered."""
    part = list(report.iter_parts())[1]
    assert part.get_content_type() == "message/delivery-status"
    return [{name.lower(): str(value) for name, value in group.items()} for group in part.get_payload()]  # type: ignore[union-attr]
