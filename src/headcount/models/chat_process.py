"""A process that renders chat templates: ``python -m headcount.models.chat_process``, requests and answers as lines of JSON.

A template is a program that comes with a checkpoint. Jinja's sandbox keeps it from the machine, but not from looping or
growing without end, which only a process can be kept from that may be killed.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

#: What a template may take beyond what the process takes itself.
MEMORY = 2**28


def answer(line: str) -> dict[str, str]:
    """``text`` or ``error`` for a request: the keyword arguments of transformers' ``render_jinja_template``."""
    try:
        (text,), _ = render_jinja_template(**json.loads(line))
    except MemoryError:
        return {"error": f"it takes more than {MEMORY // 2**20:,} MiB of memory"}
    except Exception as error:  # whatever a template can raise
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {"text": text}


def _limit_memory() -> None:
    """Where the system can (Linux); elsewhere the time alone is bounded."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def main() -> None:
    _limit_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
