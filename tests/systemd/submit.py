"""Runs in the machine: submits messages, and says what was answered.

submit.py COUNT: one after the other, each in a session of its own.
submit.py --for SECONDS: without pause for so long; a failed connection is said as "refused".
"""

import smtplib
import sys
import time


def submit(number):
    message = f"From: a@office.example\r\nTo: b@far.example\r\nSubject: {number}\r\n\r\n{number}\r\n"
    with smtplib.SMTP("127.0.0.1", 25, timeout=20) as smtp:
        smtp.ehlo()
        for command in ("MAIL FROM:<a@office.example>", "RCPT TO:<b@far.example>"):
            code, words = smtp.docmd(command)
            if code != 250:
                raise smtplib.SMTPResponseException(code, words)
        code, words = smtp.data(message)
        print(number, code, words.decode(), flush=True)


def for_a_while(seconds):
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        try:
            submit(number)
        except (ConnectionRefusedError, TimeoutError) as problem:
            print(number, "refused", problem, flush=True)
        except (smtplib.SMTPException, OSError) as problem:
            print(number, "broken off", problem, flush=True)


if sys.argv[1] == "--for":
    for_a_while(float(sys.argv[2]))
else:
    for number in range(int(sys.argv[1])):
        submit(number)
