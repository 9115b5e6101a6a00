"""The `kinotone` command: `kinotone VERB [--recipe FILE] [--dotted.setting VALUE …]`.

Exit codes: 0 when the verb is done; 2 for a mistake of the user, reported in one line that names the file or field and
the fix; 1 for any other failure, with its traceback; 130 when interrupted, and the same command resumes.

The help loads neither torch nor Ray: a verb imports its implementation when it runs.
"""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

DESCRIPTION = "Kinotone: a raw video corpus → a trained joint audio-video foundation model (LTX-2), on Ray."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the command line names.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    from jobs.verbs import VERBS

    if not args or args[0] in ("-h", "--help"):
        print(DESCRIPTION, "\n\nusage: kinotone VERB [-h] [--recipe FILE] [--dotted.setting VALUE ...]\n")
        width = max(map(len, VERBS))
        print("\n".join(f"  {name:<{width}}  {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()))
        return 0
    if args[0] not in VERBS:
        return _mistake(f"unknown verb {args[0]!r}; known are {', '.join(VERBS)}")
    try:
        verb = _parse(args[0], args[1:])
    except ValueError as error:
        return _mistake(str(error))

    from jobs.progress import Display

    try:
        with Display() as display:
            verb.run(display)
    except KeyboardInterrupt:
        print("\nkinotone: interrupted; the same command resumes from here", file=sys.stderr)
        return 130
    except ValueError as error:
        # An error of a Ray worker is not the user's mistake: verbs report those before any worker starts.
        if type(error).__module__.startswith("ray.") or os.environ.get("KINOTONE_TRACEBACK"):
            traceback.print_exc()
            return 1
        return _mistake(str(error))
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _parse(name: str, args: list[str]):
    """Return the verb with its settings: from the command line, else from the recipe, else the defaults."""
    import tyro

    from jobs.settings import load_recipe
    from jobs.verbs import VERBS

    verb = VERBS[name]
    chosen = _option(args, "--recipe") or verb.model_fields["recipe"].default
    default = verb.from_recipe(load_recipe(chosen), args)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(verb, prog=f"kinotone {name}", description=verb.__doc__, args=args, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{name}: {_one_line(said.getvalue())} (see kinotone {name} --help)") from None


def _option(args: list[str], name: str) -> str | None:
    """Return VALUE of `name VALUE` or `name=VALUE` among the arguments; None if `name` is not there."""
    for place, arg in enumerate(args):
        if arg == name and place + 1 < len(args):
            return args[place + 1]
        if arg.startswith(name + "="):
            return arg.split("=", 1)[1]
    return None


def _one_line(box: str) -> str:
    """Return the first message in the box that tyro prints for a mistake, as one line without the box."""
    lines = [line.strip("│╭╮╰╯─ \n") for line in box.splitlines()]
    rule = next((n for n, line in enumerate(box.splitlines()) if "────" in line and n > 0), len(lines))
    return " ".join(" ".join(line for line in lines[1:rule] if line).split())


def _mistake(text: str) -> int:
    """Print a mistake of the user to stderr, in one line. Return the exit code 2."""
    print(f"kinotone: {' '.join(text.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
