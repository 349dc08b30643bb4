"""What the documentation site has beside the files of docs/: pages made from the code, and links out of docs/."""

import inspect
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: A link to a file of the repository that is no page of the site.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?!images/|results/)(?:[\w.-]+/)*[\w.-]*[A-Z\w.-]+)(#[\w-]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, content in (("reference/commands.md", commands()), ("reference/python.md", python())):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ are names of files: the site may be read where the repository is not."""

    def named(link: re.Match[str]) -> str:
        text, path = link[1], link[2]
        if path.startswith("docs/") or files.get_file_from_path(path):
            return link[0]
        return f"{text} (`{path}`)" if text.strip("`") != path else f"`{path}`"

    return _OUTSIDE.sub(named, markdown)


def python() -> str:
    """Every public name, from its docstring."""
    import headcount

    lines = ["# Python", "", "What `import headcount as hc` has, each name imported when it is first used.", ""]
    for name in headcount.__all__:
        value = getattr(headcount, name)
        if inspect.ismodule(value):
            lines += [f"## {name}", "", f"`hc.{name}.…`: {inspect.getdoc(value)}", ""]
            for inner in value.__all__:
                function = getattr(value, inner)
                lines += [f"::: {function.__module__}.{inner}", "    options:", "      heading_level: 3", ""]
        else:
            lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
    return "\n".join(lines)


def commands() -> str:
    """Every command with every option, from the command line itself."""
    from typer.main import get_command

    from headcount.cli.app import add_commands, app

    add_commands()
    lines = [
        "# Every command",
        "",
        "What `headcount COMMAND --help` says. The [guide](../command-line.md) says what for.",
        "",
    ]
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]  (a group)
        arguments = " ".join(_metavar(p) for p in command.params if p.param_type_name == "argument")
        lines += [f"## headcount {name}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["```sh", f"headcount {name} [OPTIONS] {arguments}".rstrip(), "```", ""]
        rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        if rows:
            lines += ["| | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _metavar(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _row(parameter: Any) -> str:
    name = _metavar(parameter)
    if parameter.param_type_name == "option":
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    shown = "" if default is None or callable(default) or default in ((), [], False) else f"`{default}`"
    if parameter.required:
        shown = "required"
    return f"| `{_cell(name)}` | {_cell(parameter.help or '')} | {_cell(shown)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
