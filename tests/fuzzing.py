"""Random command lines, and a judge of what the command line makes of them and of damaged files.

Everything follows from a `random.Random`, so that a number names an input. The command line is called in this process,
and is stopped where it would begin to train or to sample: bad inputs must be refused before.
"""

import contextlib
import io
import os
import re
import signal
import string
import warnings

from tfp_ebm.cli import main
from tfp_ebm.cli.options import make_parser

# What no user should read: the words of Python and of libraries about their own insides.
INSIDES = re.compile(
    r"Traceback|NoneType|object has no attribute|index out of range|unsupported operand|not subscriptable|not iterable"
    r"|not callable|unhashable|object is not|positional argument|unexpected keyword|codec can't|KeyError|IndexError"
    r"|AttributeError|AssertionError|RecursionError|recursion depth|Error\(|0x[0-9a-f]{6,}|site-packages|<class '"
    r"|embedded null|cannot fit 'int'|too large to convert|Unable to allocate"
)
_LONGEST_ERROR = 1500
_SECONDS = 60


class Accepted(BaseException):
    """Raised where the command line has accepted its input."""


class TooSlow(BaseException):
    """Raised after a minute."""


# --- the judge -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_early():
    """Lets `fit`, `sample` and `evaluate` raise `Accepted` where they have read and checked everything."""
    from tfp_ebm.cli import evaluate, fit, sample

    split = fit._split

    def after_split(*args):
        split(*args)
        raise Accepted

    def accept(*_, **__):
        raise Accepted

    kept = [(fit, "_split", split), (sample, "draw", sample.draw), (evaluate, "energies_of", evaluate.energies_of)]
    kept.append((sample.recipes, "impute", sample.recipes.impute))
    for module, name, _ in kept:
        setattr(module, name, after_split if name == "_split" else accept)
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


def judged(arguments):
    """Calls the command line; returns "accepted", "refused", or a fault as a sentence that begins with "FAULT"."""
    out, err = io.StringIO(), io.StringIO()

    def alarm(*_):
        raise TooSlow

    previous = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            code = main(arguments)
    except Accepted:
        return "accepted"
    except SystemExit as error:
        return "accepted" if error.code in (0, None) else f"FAULT SystemExit({error.code})"
    except TooSlow:
        return f"FAULT more than {_SECONDS} s"
    except BaseException as error:
        return f"FAULT {type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if code in (0, 3):
        return "accepted"
    return fault_of(err.getvalue()) or "refused"


def fault_of(printed):
    """What is wrong with what was printed for a refused input; empty if nothing is."""
    errors = [line for line in printed.splitlines() if line.startswith("tfp-ebm: error: ")]
    if len(errors) != 1:
        return f"FAULT {len(errors)} lines of errors: {printed[:300]!r}"
    error = errors[0].removeprefix("tfp-ebm: error: ")
    # what stands in quotes is the user's own
    own = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", error)
    found = INSIDES.search(own)
    if found or len(error) > _LONGEST_ERROR or len(error.split()) < 3:
        return f"FAULT unclear ({found[0] if found else f'{len(error)} characters'}): {error[:400]}"
    return ""


# --- command lines -------------------------------------------------------------------------------------------------

_VALUES = (
    *"-1 0 1 2 3 0.5 -0.0 1e9 1e400 1e-400 nan inf -inf é x a=b = x=category sep=';' f(1) **{} [1] ; --out".split(),
    *"99999999999999999999 -99999999999999999999 header=None dtype=1 skiprows=9999 engine='python' nrows=-1".split(),
    *"names=['a','a'] encoding='utf-99' converters={} iterator=True chunksize=2 index_col=99 usecols=[9] \\t".split(),
    *("", " ", "\x00", "x" * 500),
)


def random_command(rng, folder):
    """A command line with options at random, most of them with a wrong value."""
    commands = next(a for a in make_parser()._actions if a.choices and a.dest == "command").choices
    name = rng.choice(list(commands))
    places = [
        str(folder / place) for place in ("table.csv", "array.npy", "no", "a_folder", "run", "a_folder/new", "run.csv")
    ]
    data = rng.choice(
        [*places, "two_moons", "digits", "banana", "/dev/null", "/proc/self/mem", "", "a\0b", "x" * 5000, "-"]
    )
    if rng.random() < 0.4:
        data = places[rng.randrange(2)]
    arguments = [name]
    for action in commands[name]._actions:
        if not action.option_strings:
            if rng.random() < 0.97:
                arguments.append(data if action.dest == "data" or rng.random() < 0.3 else str(folder / "run"))
            continue
        if action.dest == "help" or rng.random() > (0.95 if action.dest == "out" else rng.choice([0.02, 0.12])):
            continue
        arguments.append(rng.choice(action.option_strings))
        if action.nargs == 0:
            continue
        if action.dest == "out":
            others = ["/proc/x/y", "", "\0", str(folder / "o" / "p.csv"), str(folder / "z.xyz")]
            arguments.append(rng.choice([*places, *others, *[str(folder / "fresh" / "run")] * 12]))
        elif action.choices and rng.random() < 0.6:
            arguments.append(rng.choice(list(action.choices)))
        elif rng.random() < 0.5:
            arguments.append(rng.choice(["1", "2", "8", "0.5", "nce", "dsm", "16"]))
        else:
            arguments.append(rng.choice(_VALUES))
    if rng.random() < 0.1:
        odd = rng.choice([*_VALUES, "--" + rng.choice(string.ascii_letters)])
        arguments.insert(rng.randrange(len(arguments) + 1), odd)
    if rng.random() < 0.05:
        rng.shuffle(arguments)
    return arguments


def names_in(folder):
    """All paths in a folder, to see whether something was written."""
    return sorted(os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
