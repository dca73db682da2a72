"""Every bound of the wire that is not a single field's: body sizes, list lengths, times."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# Bodies, after decompression.
ENROLL_BYTES = 64 * KIB
CHECKIN_BYTES = 1 * MIB
POLL_BYTES = 32 * KIB
REPORT_BYTES = 256 * KIB
REPORTS_BYTES = 1 * MIB
LIVE_BYTES = 64 * KIB
ANSWER_BYTES = 4 * MIB
DEPTH = 16

PEM_CHARS = 16 * KIB
CA_PEM_CHARS = 64 * KIB
PAYLOAD_CHARS = 256 * KIB
OUTPUT_BYTES = 64 * KIB
STREAM_BYTES = 64 * KIB
FILE_PIECE_BYTES = 1 * MIB

BATCHES = 500
POINTS_PER_BATCH = 100
EVENTS = 200
ACKS = BATCHES + EVENTS
AGENTS = 200
CORES = 1024
PARTS = 128
GPUS = 32
COMMANDS = 32
IN_FLIGHT = 256
REPORTS = 100
SAMPLES = 60

POLL_WAIT_S = 50
CHECKIN_MIN_S = 10
CHECKIN_MAX_S = 300

# What a database column can hold, and what every JSON reader can.
BIG = 2**63 - 1
