"""Names from strangers as names of files: one that stays in its folder, on every system."""

import re
import unicodedata

_LONGEST = 200  # bytes, of the 255 that file systems allow: extensions and temporary names come on top
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # by Unicode category: control, format, surrogate, line ends
_RESERVED = re.compile(
    r"(con|conin\$|conout\$|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])([. ]|$)", re.IGNORECASE
)  # devices on Windows


def slug(label: str) -> str:
    """A label as the name of a file or folder.

    >>> slug("meta-llama/Llama-3.2-3B"), slug("../etc"), slug("nul.txt")
    ('meta-llama--Llama-3.2-3B', 'etc', '_nul.txt')
    """
    kept = "".join(c if c.isalnum() or c in "._+-" else "-" for c in label.replace("/", "--"))
    kept = kept.strip(".-")
    kept = f"_{kept}" if _RESERVED.match(kept) else kept
    return kept[:100].encode()[:_LONGEST].decode(errors="ignore").rstrip(".-") or "unnamed"


def check_folder_name(name: str) -> str:
    """The name itself, if it names a folder of its own inside any other. Raises ValueError."""
    why = None
    if not name:
        why = "it is empty"
    elif wrong := next((c for c in name if c in '/\\:*?"<>|' or unicodedata.category(c) in _UNSEEN), None):
        why = f"it holds {wrong!r}"
    elif name[0] in ".-~ " or name[-1] in ". ":
        why = "it begins or ends with a dot or a space, or begins with a dash or a tilde"
    elif _RESERVED.match(name):
        why = "Windows keeps it for a device"
    elif len(name.encode()) > _LONGEST:
        why = f"it has more than {_LONGEST} bytes"
    if why:
        raise ValueError(f"{name!r:.80} cannot name a folder: {why}")
    return name
