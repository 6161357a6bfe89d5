"""Shared by the commands: parsers, presets, the boundary for errors, progress bars. Imports no PyTorch."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from amortized.files import PROJECT, check_text
from amortized.untrusted import reason_of, short

PRESETS = PROJECT / "configs"
TRACEBACK = "--traceback"  # an option of every command; or the variable AMORTIZED_TRACEBACK=1
MAX_SENTENCE = 2000  # characters of a message
# Not the user's mistake: the same command may work later. Others (a missing file, no permission) are.
MACHINE_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
REMEDIES = {
    errno.ENOSPC: "make room, then run the same command again",
    errno.EDQUOT: "make room, then run the same command again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose another path, or change its permissions",
    errno.EPERM: "choose another path, or change its permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


class Parser(argparse.ArgumentParser):
    """A parser whose help shows the description as it is, and whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument ([^:]+): (?=must |is |contains )", r"\1 ", message)
        _exit(self.prog, f"{message} (see --help)", 2)


def parser_for(prog: str, description: str | None) -> Parser:
    """The parser of a command; add its arguments and pass it to `run_command`."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument(TRACEBACK, action="store_true", help="show where in the program an error occurred")
    return parser


def run_command(
    parser: Parser,
    run: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    *,
    interrupted: int = 1,
) -> int:
    """Parse the arguments and `run` the command inside the boundary; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with one_sentence_errors(parser.prog, arguments, interrupted=interrupted):
        return run(parse(parser, arguments)) or 0
    return 0


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments; KEY=VALUE may stand before and after options."""
    # argparse cannot do that together with subcommands.
    has_subcommands = any(isinstance(one, argparse._SubParsersAction) for one in parser._actions)
    parse = parser.parse_args if has_subcommands else parser.parse_intermixed_args
    return parse([one for one in arguments if one != TRACEBACK])


def preset_paths() -> list[Path]:
    """The presets in configs/, sorted by folder; configs/launch has files for launchers instead."""
    paths = [path for path in PRESETS.rglob("*.yaml") if PRESETS / "launch" not in path.parents]
    return sorted(paths, key=lambda path: (path.parent, path.name))


def list_presets() -> str:
    """A list of the presets in configs/, each with the first line of its head comment."""
    lines, paths = ["presets:"], preset_paths()
    width = max(len(str(path.relative_to(PRESETS))) for path in paths)
    for path in paths:
        head = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
        lines.append(f"  configs/{path.relative_to(PRESETS)!s:<{width}} {head}")
    return "\n".join(lines)


def check_readable(preset: str | Path, overrides: Sequence[str]) -> None:
    """Raise ConfigError for a preset that cannot be read or an override that is malformed.

    Takes milliseconds: call it before importing the configs, and with them PyTorch, which takes seconds.
    """
    from amortized.config.presets import parse_overrides, read_presets

    read_presets(Path(preset))
    parse_overrides(overrides)


# ---- the boundary ---------------------------------------------------------------------------------


@contextmanager
def one_sentence_errors(
    name: str, arguments: Sequence[str] | None = None, *, interrupted: int = 1
) -> Iterator[None]:
    """Context: the boundary of a command. Whatever goes wrong is one sentence on stderr and an exit status.

    2            a mistake of the user: in a setting, an option or a file
    1            training stopped, a process was lost, memory or disk ran out, an error of the program
    interrupted  Ctrl-C or SIGTERM; training uses 75, at which schedulers start it again, and obeys SIGUSR1

    With `--traceback` among the arguments (None: those of the process), or AMORTIZED_TRACEBACK=1, the
    traceback is printed first. With many processes only one prints.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no terminal's encoding stops a message
    names = ("SIGINT", "SIGTERM", *(["SIGUSR1"] if interrupted != 1 else []))
    with _raise_on([getattr(signal, one) for one in names if hasattr(signal, one)], interrupted) as signals:
        unwritable = None
        try:
            _check_arguments(arguments)
            yield
            unwritable = _flush_output()
            if unwritable is not None:
                raise unwritable
        except BaseException as error:
            signals.leaving = True
            gone = isinstance(unwritable or _flush_output(), BrokenPipeError) or _reader_is_gone()
            if gone and isinstance(error, (BrokenPipeError, SystemExit)):
                sys.exit(1)  # `| head`: its reader has what it wanted
            if isinstance(error, SystemExit):
                raise
            if TRACEBACK in arguments or os.environ.get("AMORTIZED_TRACEBACK") == "1":
                traceback.print_exception(error)
            if signals.received or isinstance(error, KeyboardInterrupt):
                _exit_interrupted(name, signals.received, interrupted)
            status, sentence = _judge(error)
            _exit(name, sentence, status)


@dataclass
class _Signals:
    received: list[int]
    leaving: bool = False  # the boundary is reached: nothing waits for a thread any more


@contextmanager
def _raise_on(numbers: Sequence[int], status: int) -> Iterator[_Signals]:
    """Context: the signals raise KeyboardInterrupt; once the boundary is reached, they end the process.

    A library may turn the exception into another one, so the signals received count, not its type.
    """
    signals, previous = _Signals([]), {}

    def interrupt(number: int, frame: object) -> None:
        if signals.leaving:
            os._exit(status)
        signals.received.append(number)
        raise KeyboardInterrupt

    for number in numbers:
        with suppress(ValueError):  # not the main thread: the application handles signals itself
            previous[number] = signal.signal(number, interrupt)
    try:
        yield signals
    finally:
        if not signals.received:  # else threads may still run at the exit, which a second Ctrl-C ends
            for number, handler in previous.items():
                signal.signal(number, handler)


def _check_arguments(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            check_text(argument)
        except ValueError as error:
            raise ValueError(f"the argument {short(argument)} {str(error).partition(':')[0]}") from None


def _flush_output() -> OSError | None:
    """Flush stdout while an error can be reported; returns the error, after which the text is dropped."""
    if sys.stdout is None or sys.stdout.closed:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):  # else the interpreter tries again at its exit, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    with suppress(AttributeError, OSError, ValueError):  # Windows, no stdout, or not a file
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _judge(error: BaseException) -> tuple[int, str]:
    """The exit status and sentence of an error; no sentence if another process prints it."""
    if isinstance(error, MemoryError) and "torch" not in sys.modules:
        return 1, "out of memory"
    if "torch" in sys.modules:  # raised before PyTorch is imported: do not import it now
        from amortized.memory_errors import out_of_memory_message
        from amortized.monitoring import TrainingStopped
        from amortized.parallel import PeerLost, ReportedByAnotherRank

        if isinstance(error, ReportedByAnotherRank):
            return error.status, ""
        if sentence := out_of_memory_message(error):
            return 1, sentence
        if isinstance(error, (TrainingStopped, PeerLost)):
            return 1, str(error)
    if isinstance(error, OSError):
        return _judge_os_error(error)
    if isinstance(error, ValueError) and str(error).strip():
        return 2, str(error)
    if type(error).__name__ == "SafetensorError":
        full = "No space left" in str(error)
        return (
            (1, f"cannot write weights: {error}") if full else (2, f"a file of weights is damaged: {error}")
        )
    if isinstance(error, ImportError) and error.name:
        package = error.name.partition(".")[0]
        return (
            1,
            f"the package {package} cannot be imported ({error}): install it, or install this project again",
        )
    text = " ".join(str(error).split())
    short_text = text if len(text) <= 300 else f"{text[:297]}..."
    what = f"{type(error).__name__}: {short_text}" if text else type(error).__name__
    return 1, f"unexpected error ({what}): please report it with the output of {TRACEBACK}"


def _judge_os_error(error: OSError) -> tuple[int, str]:
    files = " -> ".join(
        short(name) for name in (error.filename, error.filename2) if isinstance(name, (str, Path))
    )
    remedy = REMEDIES.get(error.errno or 0)
    sentence = f"{files}: {reason_of(error)}" if files else f"the system reports: {reason_of(error)}"
    status = 1 if error.errno in MACHINE_FAILED or not files else 2
    return status, f"{sentence}; {remedy}" if remedy else sentence


def _exit_interrupted(name: str, received: Sequence[int], status: int) -> NoReturn:
    reason = signal.Signals(received[0]).name if received else "Ctrl-C"
    reason = "Ctrl-C" if reason == "SIGINT" else reason
    again = "; run the same command to resume" if status != 1 else ""
    if os.environ.get("RANK", "0") == "0":  # a launcher sends a signal to all of its processes
        _print_error(f"{name}: stopped by {reason}{again}")
    sys.exit(status)


def _exit(name: str, message: str, status: int) -> NoReturn:
    sentence = " ".join(message.split())
    if len(sentence) > MAX_SENTENCE:
        sentence = f"{sentence[: MAX_SENTENCE - 100]} ... {sentence[-90:]}"
    if sentence:
        _print_error(f"{name}: error: {sentence}")
    sys.exit(status)


def _print_error(line: str) -> None:
    for bar in list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())):
        bar.close()  # else the line would continue the bar's
    with suppress(OSError, ValueError):  # stderr is closed: the status remains
        print(line, file=sys.stderr, flush=True)


def progress_bar(label: str, *, quiet: bool) -> Callable[[int, int], None]:
    """A function `show(done, total)` that draws a progress bar on stderr, from its first call on."""
    from tqdm import tqdm

    bars: list[tqdm] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(desc=label, total=total, unit="prompt", disable=quiet))
        bars[0].update(done - bars[0].n)
        if done == total:
            bars[0].close()

    return show
