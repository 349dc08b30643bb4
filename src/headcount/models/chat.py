"""Conversations as a model's chat template writes them, and whether a model expects them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any
from weakref import finalize

from transformers import PreTrainedTokenizerBase

from headcount.errors import InputError

#: Seconds that one conversation may take; real templates take milliseconds.
_SECONDS = 10.0
_SECONDS_TO_START = 120.0
#: Characters of a prompt, many times what a model reads.
MAX_CHARACTERS = 10_000_000

#: What the name of a model that expects chat has in it.
_WORDS = r"[-_. ](?:inst|instruct|chat|assistant|it|sft|dpo|rlhf|rlvr)(?:[-_. ]|$)"
_SAYS_SO = re.compile(f"instruct|chat|assistant|{_WORDS}", re.IGNORECASE)
#: In a folder above, which may have any name (its owner's, say), only as a word that follows others.
_SAYS_SO_ABOVE = re.compile(_WORDS, re.IGNORECASE)
#: Folders and files whose names say where or which version something is, not what: main, checkpoint-500, model-Q4_K_M.gguf.
_PLACE_WORD = (
    "(?:snapshots?|main|master|final|last|latest|best|models?|hf|safetensors|gguf|weights|merged|outputs?|export|out|"
    "checkpoints?|ckpts?|epoch|steps?|global|iter|iteration|run|version|v|i?q|k|s|m|x?l|b|b?fp?|int)"
)
_PLACE = re.compile(rf"[0-9a-f]{{7,64}}|[\W\d_]*(?:{_PLACE_WORD}(?:[\W\d_]+{_PLACE_WORD})*)?[\W\d_]*", re.IGNORECASE)


class ChatTemplate:
    """A tokenizer's chat template, rendered in a process of its own within limits of time and memory.

    Args:
        tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[str] | None = None
        self._end: finalize[..., Any] | None = None

    def render(
        self, conversation: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, **options: Any
    ) -> str:
        """The conversation as text; without a generation prompt its last message is left open, as in lm-eval.

        Args:
            conversation: messages, each with ``role`` and ``content``.
            add_generation_prompt: end with the beginning of an answer.
            options: variables of the template.

        Raises:
            InputError: the template cannot be parsed, refuses the conversation, or takes too long or too much memory.
        """
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        own = type(self._tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        try:
            if own:  # no Jinja
                return self._tokenizer.apply_chat_template(list(conversation), tokenize=False, **how, **options)  # pyright: ignore
            template = self._tokenizer.get_chat_template()
        except Exception as error:
            raise _failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        variables = {**self._tokenizer.special_tokens_map, **options}
        request = {"conversations": [[dict(message) for message in conversation]], "chat_template": template}
        answer = json.loads(self._ask(json.dumps(request | how | variables, default=str)))
        if "error" in answer:
            raise _failed(answer["error"])
        if len(answer["text"]) > MAX_CHARACTERS:
            raise _failed(
                f"it makes {len(answer['text']):,} characters of one conversation, more than {MAX_CHARACTERS:,}"
            )
        return answer["text"]

    def close(self) -> None:
        """End the process; the next conversation starts another."""
        if self._end is not None:
            self._end()
            self._process = self._end = None

    def _ask(self, request: str) -> str:
        if self._process is None:
            # Isolated from the working folder, and with the modules of this process.
            paths = os.pathsep.join(filter(None, sys.path))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "headcount.models.chat_process"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", env=os.environ | {"PYTHONPATH": paths},
            )  # fmt: skip
            self._end = finalize(self, _end, self._process)
            if not self._line(_SECONDS_TO_START):
                self.close()
                raise InputError("The process that renders chat templates does not start. Use --no-chat-template.")
        assert self._process.stdin is not None
        with suppress(OSError):  # it ended, and so does what it answers
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        answer = self._line(_SECONDS)
        if not answer:
            self.close()
            raise _failed(f"it takes longer than {_SECONDS:.0f} seconds, or too much memory, for one conversation")
        return answer

    def _line(self, seconds: float) -> str:
        """The next line of the process; empty if it ended, or was ended because the time was over."""
        assert self._process is not None
        assert self._process.stdout is not None
        timer = Timer(seconds, self._process.kill)
        timer.start()
        try:
            return self._process.stdout.readline()
        finally:
            timer.cancel()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def _failed(reason: str) -> InputError:
    return InputError(
        f"The model's chat template cannot be used: {reason.rstrip('.')}. Leave it off with --no-chat-template "
        "(chat_template=False), or mend it in the tokenizer's files."
    )


def expects_chat(model: str, tokenizer: PreTrainedTokenizerBase) -> tuple[bool, str]:
    """Whether a model expects its chat template, and why: it has one and its name says so.

    Base models may carry a template too (Qwen2.5), so the name decides, as in lm-eval.

    Args:
        model: its hub id or path. In a path, folders that only say where or which version something is (``snapshots/…`` of
            the hub's cache, ``checkpoint-500``, ``main``) are passed over for the name above them.
        tokenizer: the model's.
    """
    if not getattr(tokenizer, "chat_template", None):
        return False, "its tokenizer has none"
    path = os.path.expanduser(model)
    parts = Path(os.path.abspath(path) if os.path.exists(path) else path).parts
    name = next((part for part in reversed(parts) if not _PLACE.fullmatch(part)), model)
    above = name != parts[-1] and not name.startswith("models--")  # the hub's cache: models--owner--name
    name = name.rpartition("--")[2]
    says_so = bool((_SAYS_SO_ABOVE if above else _SAYS_SO).search(name))
    return says_so, f"the name {name!r} {'says' if says_so else 'does not say'} that it expects one"
