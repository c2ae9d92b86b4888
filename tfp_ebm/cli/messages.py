"""What the command line prints on stderr: one line per message, in the words of the shell."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

# Seconds after which a signal is sent again.
_PAUSE = 0.01


class Terminated(BaseException):
    """Raised where the process is asked to end (SIGTERM), such as by a queue whose time is over."""


@contextlib.contextmanager
def signals_raise() -> Iterator[set[type[BaseException]]]:
    """Raises `Terminated` at SIGTERM, and KeyboardInterrupt at Ctrl-C, inside the context; only the main thread can.

    Yields the set of those that were raised: where a library calls Python from C, as HDF5 does, another exception may
    come of one. A handler of Ctrl-C that is not Python's own stays. What is raised while Python deletes an object is
    ignored by Python, and therefore raised once more.
    """
    raised: set[type[BaseException]] = set()
    if threading.current_thread() is not threading.main_thread():
        yield raised
        return

    def terminate(*_: Any) -> None:
        raised.add(Terminated)
        raise Terminated

    def interrupt(*_: Any) -> None:
        raised.add(KeyboardInterrupt)
        raise KeyboardInterrupt

    handlers = {signal.SIGTERM: terminate}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handlers[signal.SIGINT] = interrupt
    repeated: list[threading.Timer] = []
    print_ignored = sys.unraisablehook

    def repeat(ignored: Any) -> None:
        number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(ignored.exc_type)
        if number not in handlers:
            print_ignored(ignored)
            return
        repeated.append(threading.Timer(_PAUSE, os.kill, (os.getpid(), number)))
        repeated[-1].start()

    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    sys.unraisablehook = repeat
    try:
        yield raised
    finally:
        sys.unraisablehook = print_ignored
        for number in handlers:  # a signal that is sent again comes too late now
            signal.signal(number, signal.SIG_IGN)
        for timer in repeated:
            timer.cancel()
            timer.join()
        for number, handler in previous.items():
            signal.signal(number, handler)


def flag(name: str) -> str:
    """Returns the option that sets an argument.

    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


# Arguments of the package's functions, and the options that set them.
_OPTIONS = {
    "path_or_name": "data",
    "frame": "data",
    "n": "--rows",
    "sep": "--delimiter",
    "num_steps": "--steps",
    "num_burnin_steps": "--burnin",
    "calibration": "--calibration",
    **{
        name: flag(name)
        for name in (
            *("key", "delimiter", "dequantize", "seed", "sigma", "units", "loss", "learning_rate", "fourier_features"),
            *("batch_size", "num_chains", "noise_ratio", "base_width", "step_size", "num_samples"),
        )
    },
}
_LONG_WORD = re.compile(r"\S{300,}")
_ARGUMENT = re.compile(r"`(\w+)`")
_MISSING = re.compile(r"\bmissing='(\w+)'")
_KIND = re.compile(r"\bkinds=\{'(.*?)': '(\w+)'\}")
_CURE = re.compile(r"read it with .*? \(on the command line: (--read \".*?\")\)\.")


def for_the_shell(message: str) -> str:
    """Returns a message with options in the place of arguments, on one line.

    >>> for_the_shell("`batch_size` must be\\na whole number.")
    '`--batch-size` must be a whole number.'
    >>> for_the_shell("Choose missing='drop', or set kinds={'a': 'category'}.")
    "Choose --missing drop, or set --kind 'a=category'."
    """
    message = _KIND.sub(r"--kind '\1=\2'", _MISSING.sub(r"--missing \1", message))
    message = _ARGUMENT.sub(lambda match: f"`{_OPTIONS.get(match[1], match[1])}`", message)
    return " ".join(_CURE.sub(r"pass \1.", message).split())


def say(kind: str, message: Any) -> None:
    """Prints a message of a kind ("error", "warning", "note") on stderr; very long words are cut."""
    text = _LONG_WORD.sub(lambda match: f"{match[0][:80]}…", for_the_shell(str(message)))
    print(f"tfp-ebm: {kind}: {text}", file=sys.stderr, flush=True)


# What needs less memory in each command.
_LESS_MEMORY = {
    "fit": "a smaller --batch-size needs less in training, smaller --num-samples and --num-chains in sampling",
    "sample": "smaller --num-samples and --num-chains need less",
    "evaluate": "files of fewer rows need less",
    "outliers": "files of fewer rows need less",
}


def out_of_memory(error: Exception, command: str) -> str:
    """Returns a message that names the option which lowers the need for memory; empty for other errors.

    >>> out_of_memory(MemoryError(), "sample")
    'out of memory: smaller --num-samples and --num-chains need less.'
    """
    is_known = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
    if not is_known and "RESOURCE_EXHAUSTED" not in str(error):  # XLA's
        return ""
    return f"out of memory: {_LESS_MEMORY[command]}."


def note(options: argparse.Namespace, message: str) -> None:
    """Prints what was decided for the user, unless `--quiet` is given."""
    if not options.quiet:
        say("note", message)


def shows_progress(options: argparse.Namespace) -> bool:
    """Whether to draw progress bars: on a terminal only, since a log file would keep each state of a bar."""
    return not options.quiet and sys.stdout.isatty() and sys.stderr.isatty()


@contextlib.contextmanager
def warnings_on_one_line() -> Iterator[None]:
    """Prints each warning once, by `say`."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of a NaN that our own warnings explain
        warnings.showwarning = lambda message, *_, **__: say("warning", message)
        yield


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Imports TensorFlow without its start-up messages, and drops what is logged below errors."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MPLBACKEND", "Agg")
    if "tensorflow" not in sys.modules:
        # Its libraries write to the file descriptor while they are loaded, before they look at the level.
        descriptor = os.dup(2)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
