"""What submission says to a client that it sends away: one exception, and the replies of more than one place.

Rules: every reply carries an enhanced status (RFC 3463), is plain, and reveals no configuration.
It must not know sockets or what led to a reply.
"""

from __future__ import annotations

from pi_relay.model import Reply


class Refused(Exception):
    """A command is answered with ``reply``; ``reason`` is for the mail log, where it can say more.

    ``about``: the sender, recipient or user name that is refused, for `devices` to word what would mend it.
    """

    def __init__(self, reply: Reply, reason: str = "", *, about: str = "") -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.reason = reason or reply.text
        self.about = about


BARE_CR_OR_LF = Reply(550, "5.6.11", "the message has a line end other than CR LF")
NUL = Reply(550, "5.6.0", "the message has a NUL octet")
MESSAGE_TOO_LARGE = Reply(552, "5.3.4", "the message is larger than this relay or its smart host takes")
HEADER_TOO_LARGE = Reply(552, "5.3.4", "the header of the message is larger than 256 KiB")
LOOP = Reply(554, "5.4.6", "the message has passed more than 50 hosts: it is going in circles")
SEVERAL_FROM = Reply(550, "5.6.0", "the message has more than one From field")

NOT_FROM_HERE = Reply(554, "5.7.1", "this relay does not serve your network")
AUTH_REQUIRED = Reply(530, "5.7.0", "authentication required")
NOT_ALLOWED = Reply(550, "5.7.1", "you may not send through this relay")
SENDER_NOT_ALLOWED = Reply(550, "5.7.1", "you may not send in the name of this sender")
NO_WAY_OUT = Reply(451, "4.3.5", "the relay has no smart host yet: its administrator has to configure one")
RECIPIENT_NOT_ALLOWED = Reply(550, "5.7.1", "this device may not send to this recipient")
NO_ROUTE = Reply(550, "5.7.1", "the relay has no route for this recipient")
FAR_OVER_LIMIT = Reply(450, "4.7.1", "you have sent far more than you may in an hour, try again later")
TOO_MANY_CONNECTIONS = Reply(421, "4.3.2", "too many connections, try again soon")
TOO_MANY_OF_YOURS = Reply(421, "4.7.0", "too many connections from your address")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "too many errors")
NOT_SMTP = Reply(421, "4.7.0", "this is not SMTP")
SHUTTING_DOWN = Reply(421, "4.3.2", "the relay is going down, try again soon")
TOO_SLOW = Reply(421, "4.4.2", "nothing came for too long")
OUR_FAULT = Reply(451, "4.3.0", "the relay has an internal error, try again later")

LINE_TOO_LONG = Reply(500, "5.5.2", "the line is too long")
UNKNOWN_COMMAND = Reply(500, "5.5.1", "command not recognised")
BAD_CHARACTERS = Reply(500, "5.5.2", "control characters are not allowed in a command")
EHLO_FIRST = Reply(503, "5.5.1", "send EHLO first")
MAIL_FIRST = Reply(503, "5.5.1", "send MAIL first")
RCPT_FIRST = Reply(503, "5.5.1", "no recipient was accepted")
NESTED_MAIL = Reply(503, "5.5.1", "a message is already under way")
NO_ARGUMENT = Reply(501, "5.5.4", "this command takes no argument")
ARGUMENT_NEEDED = Reply(501, "5.5.4", "this command needs an argument")
NAME_INVALID = Reply(501, "5.5.4", "a domain or an address literal is needed")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "too many recipients for one message")

PATH_INVALID = Reply(501, "5.1.3", "the address is not well formed")
SENDER_INVALID = Reply(501, "5.1.7", "the sender address is not well formed")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "an address beyond ASCII needs SMTPUTF8")
PARAMETER_INVALID = Reply(501, "5.5.4", "a parameter is not well formed")
PARAMETER_UNKNOWN = Reply(555, "5.5.4", "a parameter is not known here")
NEEDS_TLS = Reply(530, "5.7.10", "REQUIRETLS is for messages that come over TLS")
NO_POSTMASTER = Reply(550, "5.1.1", "no postmaster is configured")

TLS_ALREADY = Reply(503, "5.5.1", "TLS is already in use")
TLS_UNAVAILABLE = Reply(454, "4.7.0", "TLS is not available")
NO_LISTS = Reply(502, "5.5.1", "there are no lists here")
NO_HANDSHAKE = Reply(454, "4.7.0", "the TLS handshake failed")
NO_PROXY_HEADER = Reply(421, "4.7.0", "the PROXY header is missing or not well formed")
TLS_NOT_HERE = Reply(502, "5.5.1", "TLS is not offered here")
AUTH_NOT_HERE = Reply(502, "5.5.1", "authentication is not offered here")
AUTH_NEEDS_TLS = Reply(538, "5.7.11", "authentication needs TLS")
AUTH_ALREADY = Reply(503, "5.5.1", "you are already authenticated")
AUTH_IN_MAIL = Reply(503, "5.5.1", "AUTH is not allowed while a message is under way")
AUTH_UNKNOWN = Reply(504, "5.5.4", "this mechanism is not known here")
AUTH_CANCELLED = Reply(501, "5.7.0", "authentication cancelled")
AUTH_BAD_BASE64 = Reply(501, "5.5.2", "this is not base64")
AUTH_BAD_RESPONSE = Reply(501, "5.5.2", "the response does not fit the mechanism")
AUTH_FAILED = Reply(535, "5.7.8", "user name or password is wrong")
TOO_MANY_GUESSES = Reply(421, "4.7.0", "too many failed authentications")

# They only end what other refusals began, and explain nothing.
CONSEQUENCES = frozenset({TOO_MANY_ERRORS, TOO_MANY_GUESSES})
