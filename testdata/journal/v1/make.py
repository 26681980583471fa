#!/usr/bin/env python3
"""Writes a journal of format version 1 beside itself, from `docs/records.md` and `event.proto` alone.

Nothing of the product is used, so that the format is written down twice; and nothing is random, so that a second run
writes the same bytes. It is not run again once a version has been released with this format: what lies here stands for
journals that people have.
"""

import struct
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
JOURNAL = uuid.UUID("6c6c6d2d-7072-4f78-8079-6a6f75726e61")
BEGIN, END, ADMIN, OF_A_LATER_VERSION = 1, 2, 3, 9


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def event_id(number):
    return uuid.UUID(int=number)


def record(kind, seq, time_us, number, payload):
    before = struct.pack("<IB", len(payload), kind)
    after = struct.pack("<Qq", seq, time_us) + event_id(number).bytes + payload
    return before + struct.pack("<I", crc32c(before + after)) + after


def header(first_seq):
    sealed = b"LLMPJRNL" + struct.pack("<I", 1) + JOURNAL.bytes + struct.pack("<Q", first_seq)
    return sealed + struct.pack("<I", crc32c(sealed))


# --- protobuf ---


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(**fields):
    return b"".join(field(int(name.lstrip("f")), value) for name, value in fields.items())


def begin(number):
    return message(f1=str(event_id(number)), f2="project", f3="token", f4="openai", f9=1_700_000_000_000_000, f10=1)


def exchange(number, **more):
    return message(f1=str(event_id(number)), f3=1, f4="project", f13=200, f14=1, f26=1, **more)


usage = message(f1=1, f3=12, f4=34, f10=b'{"prompt_tokens":12}')
body = message(f1="application/json", f2=9, f4=b'{"a":"b"}')
content = message(f1=2, f2=body, f3=message(f2=70_000, f7="too large for a record"))
admin = message(f1="token.create", f2="management_token", f3="token", f4="token", f6=b'{"id":"token"}')

damaged = bytearray(record(END, 5, 1005, 0xC, exchange(0xC)))
damaged[-3] ^= 0x20

first = [
    header(1),
    record(BEGIN, 1, 1001, 0xA, begin(0xA)),
    record(END, 2, -1002, 0xA, exchange(0xA, f16=usage, f27=message(f1="user", f2="u-1"))),
    record(OF_A_LATER_VERSION, 3, 1003, 0x9, b"\xff\xff"),
    record(BEGIN, 4, 1004, 0xB, begin(0xB)),
    bytes(damaged),
    record(END, 6, 1006, 0xD, b""),
]
second = [
    header(7),
    record(ADMIN, 7, 1007, 0xE, message(f1=str(event_id(0xE)), f2=1, f3=1, f30=admin)),
    # Field 100 is of a later version too.
    record(END, 8, 1008, 0xF, exchange(0xF, f29=content, f100="later")),
    record(END, 9, 1009, 0x10, exchange(0x10))[:20],
]
for first_seq, parts in ((1, first), (7, second)):
    (HERE / f"{first_seq:020}.seg").write_bytes(b"".join(parts))
