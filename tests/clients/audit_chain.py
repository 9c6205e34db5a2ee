"""Checks the chain of an audit log by its description alone (crates/audit): audit_chain.py LOG VERIFICATION_KEY; prints the lines."""

import hashlib
import hmac
import json
import re
import sys

from check import same

magic, number, key = open(sys.argv[2]).read().split()
same((magic, int(number)), ("sealvol-audit-key-1", 1), "the verification key")
key, before = bytes.fromhex(key), bytes(32)
lines = open(sys.argv[1], "rb").read().split(b"\n")
same(lines.pop(), b"", "the end of the log")
for number, line in enumerate(lines, 1):
    record = json.loads(line)
    same(record["seq"], number, "the number")
    same(record["prev"], before.hex(), f"the hash of the line before {number}")
    body, mac = re.fullmatch(rb'(.*),"mac":"([0-9a-f]{64})"}', line).groups()
    same(mac.decode(), hmac.new(key, body, "sha256").hexdigest(), f"the MAC of line {number}")
    key, before = hmac.new(key, b"sealvol audit log: next key", "sha256").digest(), hashlib.sha256(line).digest()
print(len(lines))
