"""Starts ranks in no time: what they import is imported once, here, and each of them is a fork.

Reads one training a line (the words of a command, as JSON) and prints the process ids of its two ranks; when both
have ended, their exit codes. Without a launcher: a rank that is left alone has to end by itself.
"""

import json
import os
import socket
import sys

import torch

import pipeline.stages.train  # noqa: F401 - before the forks
from pipeline.__main__ import main


def fork(rank: int, port: int, command: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in words.items()}, MASTER_ADDR="127.0.0.1")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    code = 1
    try:
        code = main(command)
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


torch.set_num_threads(1)
for line in sys.stdin:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = [fork(rank, port, json.loads(line)) for rank in range(2)]
    sys.stdout.write(json.dumps(pids) + "\n")
    sys.stdout.flush()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    sys.stdout.write(json.dumps(codes) + "\n")
    sys.stdout.flush()
