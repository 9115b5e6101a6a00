"""The `kinotone` command: `kinotone VERB [--recipe FILE] [--dotted.setting VALUE …]`.

Exit code 0: done. 2: the user's mistake, told in one line that names the file or field and the mend. 1: a failure of
ours or of the machine, with its traceback. 130: interrupted; the same command goes on from there.
"""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

DESCRIPTION = "Kinotone: a raw video corpus → a trained joint audio-video foundation model (LTX-2), on Ray."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code."""
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
        print("\nkinotone: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except ValueError as error:
        # What a Ray worker raised is no mistake of the user's: those are found before any worker starts.
        if type(error).__module__.startswith("ray.") or os.environ.get("KINOTONE_TRACEBACK"):
            traceback.print_exc()
            return 1
        return _mistake(str(error))
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _parse(name: str, args: list[str]):
    """The verb's settings: the defaults, the recipe over them, the command line over both."""
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
    for place, arg in enumerate(args):
        if arg == name and place + 1 < len(args):
            return args[place + 1]
        if arg.startswith(name + "="):
            return arg.split("=", 1)[1]
    return None


def _one_line(box: str) -> str:
    """The message inside tyro's box of several lines, as one."""
    lines = [line.strip("│╭╮╰╯─ \n") for line in box.splitlines()]
    rule = next((n for n, line in enumerate(box.splitlines()) if "────" in line and n > 0), len(lines))
    return " ".join(" ".join(line for line in lines[1:rule] if line).split())


def _mistake(text: str) -> int:
    print(f"kinotone: {' '.join(text.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
