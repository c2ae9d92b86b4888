"""Takes away the disk, the right to write, and bytes of files, and counts what was lost or not said clearly.

Parts: `places` (each thing that is written, on a disk that becomes full at a random byte, in a directory that becomes
read-only, and at a path below a file), `damage` (each thing that is read again, with a byte changed, cut off, emptied
or overwritten at random). Something is *lost* if what was saved before cannot be loaded afterwards, if a file loads
with other values than were saved, or if the work cannot be repeated once the fault is mended. A message is *unclear* if
it does not name the cause.

Full and read-only disks are small file systems in memory, which only root can mount; without it they are left out.

    python benchmarks/reliability/faults.py [--parts places damage] [--tries 20] [--json out.json]
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))

import fuzzing
import keras
import numpy as np
import tensorflow as tf
from kills import model_of, saved_number
from signals import differences, ended, in_fork, started

import tfp_ebm as ebm
from tfp_ebm.callbacks import Backup
from tfp_ebm.mcmc.running import backup, stretches

PARTS = ("places", "damage")
PLACES = ("full disk", "read-only", "below a file")
CAUSES = ("No space left", "Read-only file system", "Not a directory", "cannot be written", "File exists")
FIT = ["--quiet", "--loss", "dsm", "--steps", "202", "--units", "8", "--batch-size", "32", "-n", "20"]
SAMPLER = ["--kernel", "langevin", "--burnin", "5"]
X = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
SAVED = {"save": "model.keras", "save_weights": "a.weights.h5", "export": "saved_model"}


# --- what is written -------------------------------------------------------------------------------------------------


def normal(x):
    """The target of the chains."""
    return -0.5 * tf.reduce_sum(x**2, -1)


def train(folder, epochs, **options):
    """Weights of a training with backups in the folder; none without a folder."""
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0))
    model.compile(keras.optimizers.Adam(1e-3), "denoising_score_matching")
    callbacks = [*options.get("callbacks", ())] + ([] if folder is None else [Backup(folder / "backups", 0.0)])
    model.fit(X, batch_size=16, epochs=epochs, verbose=0, callbacks=callbacks)
    return [weight.numpy() for weight in model.weights]


def chains(folder, stop=None):
    """States of chains with backups after every step; none without a folder. `stop`: the step to be ended after."""
    stretches._SECONDS, backup._SECONDS = 1e-9, 0.0
    reach, count = backup.RunBackup.reach, []

    def counting(self, draws):
        reach(self, draws)
        count.append(1)
        if len(count) == stop:
            raise SystemExit

    backup.RunBackup.reach = counting
    place = None if folder is None else folder / "chains"
    start = tf.constant(X[:3])
    kernel = ebm.mcmc.Adaptive(ebm.mcmc.MALA(0.5))
    options = {"num_results": 8, "num_burnin_steps": 4, "seed": 1, "jit_compile": False, "backup_dir": place}
    try:
        return [ebm.mcmc.sample(normal, start, kernel, **options).states.numpy()]
    except SystemExit:
        return []
    finally:
        backup.RunBackup.reach = reach


def candidates(folder):
    """The log density by `fit_density`, of which each training is kept."""
    x = np.random.default_rng(1).normal(size=(40, 2))
    place = None if folder is None else folder / "candidates"
    model = ebm.fit_density(x, minutes=0.005, verbose=0, backup_dir=place)
    return [model.energy(X[:5]).numpy()]


def write(job, folder, number):
    """Saves a model whose weights hold a number."""
    model = model_of(number)
    if job == "export":
        model.export(folder / SAVED[job], kernel=ebm.mcmc.MALA(0.1), verbose=False)
    else:
        getattr(model, job)(folder / SAVED[job])


def tried(function, *arguments):
    """What a function returns in a process of its own: how it ended, and the faults."""
    result = in_fork(_guarded, function, *arguments)
    return result if len(result) == 2 else ("ended", ["the process ended without a word"])


def _guarded(function, *arguments):
    try:
        return function(*arguments)
    except BaseException:
        return "failed", [traceback.format_exc()[-700:]]


def same(a, b):
    """Whether two lists of arrays are equal."""
    return len(a) == len(b) and all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))


# --- places ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(folder, size="4m"):
    """A small file system in memory at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, free):
    """Leaves so many bytes of a disk."""
    state = os.statvfs(folder)
    with (folder / "filler").open("wb") as file, contextlib.suppress(OSError):
        file.write(b"\0" * max(0, state.f_bavail * state.f_frsize - int(free)))


def take_away(place, folder, rng):
    """Makes a folder unfit to be written; returns the folder to write to, and what mends it."""
    if place == "full disk":
        fill(folder, rng.choice([0.0, rng.uniform(0, 60_000), rng.uniform(0, 300_000)]))
        return folder, (folder / "filler").unlink
    if place == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        return folder, lambda: subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    (folder / "file").write_text("not a directory")
    return folder / "file" / "below", lambda: (folder / "file").unlink()


def clear(text):
    """Whether a message names the cause."""
    return any(cause in text for cause in CAUSES)


def try_saving(job, place, folder, seed):
    """Saves 1, and 2 where it cannot be; the file must then hold 1, or 2 if nothing was raised."""
    write(job, folder, 1)
    target, mend = take_away(place, folder, random.Random(seed))
    faults, said = [], ""
    try:
        write(job, target, 2)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if not clear(said):
            faults.append(f"unclear: {said[:200]}")
    mend()
    number = saved_number(job, folder)
    if number != (1 if said or place == "below a file" else 2):
        faults.append(f"lost: {number} is in the file; {said[:200]}")
    if said and [path for path in folder.iterdir() if path.name.startswith(".")]:
        faults.append("left over")
    write(job, folder, 3)
    return "refused" if said else "written", faults + ["not saved afterwards"] * (saved_number(job, folder) != 3)


class TakeAway(keras.callbacks.Callback):
    """Makes the folder unfit after an epoch of a training."""

    def __init__(self, place, folder, epoch, rng):
        super().__init__()
        self.arguments, self.epoch, self.mend = (place, folder, rng), epoch, lambda: None

    def on_epoch_end(self, epoch, logs=None):
        """See Keras."""
        if epoch == self.epoch:
            _, self.mend = take_away(*self.arguments)


def try_backups(job, place, folder, seed):
    """Trainings, chains and candidates go on with a warning; done again, they have the bits of an undisturbed one."""
    rng, work = random.Random(seed), {"train": lambda at: train(at, 4), "chains": chains, "candidates": candidates}[job]
    truth, faults = work(None), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if job == "train" and place != "below a file":
                last = TakeAway(place, folder, rng.choice([0, 1, 2]), rng)
                found, mend = train(folder, 4, callbacks=[last]), lambda: last.mend()
            else:
                if job == "chains" and place != "below a file":
                    chains(folder, stop=rng.randrange(1, 9))
                target, mend = take_away(place, folder, rng)
                found = work(target)
            if not same(found, truth):
                faults.append("lost: other values")
        except Exception as error:
            found, text = None, f"{type(error).__name__}: {error}"
            if not (clear(text) and "`backup_dir`" in text):
                faults.append(f"unclear: {text[:200]}")
    texts = [str(warning.message) for warning in caught if warning.category is UserWarning]
    faults += [f"unclear: {text[:200]}" for text in texts if not clear(text) and "written" in text]
    mend()
    again = work(folder)
    if not same(again, truth):
        faults.append("lost: other values when repeated")
    return "refused" if found is None else "warned" if texts else "written", faults


def try_command(command, place, folder, seed, data, expected):
    """`fit` and `sample`: one clear line, and the same result once the fault is mended."""
    target, mend = take_away(place, folder, random.Random(seed))
    log = folder.parent / "log"
    name = {"fit": "run", "sample": "x.npy"}[command]

    def arguments(place):
        if command == "fit":
            return ["fit", data, "--out", place / name, *FIT, *SAMPLER]
        return ["sample", expected, "--out", place / name, "--quiet", "-n", "50", *SAMPLER]

    code, text = ended(started(arguments(target), log)), log.read_text(errors="replace")
    faults, done = [], (target / name).exists()
    if code == 2:
        fault = fuzzing.fault_of(text)
        if fault or not clear(text):
            faults.append(f"unclear: {fault or text[-300:]}")
    elif code not in (0, 3) or not done:
        faults.append(f"exit code {code}: {text[-300:]}")
    mend()
    if not done:
        again = ["fit", "--resume", folder / name] if (folder / "run.training").exists() else arguments(folder)
        if (code := ended(started(again, log))) not in (0, 3):
            return "refused", [*faults, f"lost: {code} when repeated: {log.read_text()[-300:]}"]
    where = (target if done else folder) / name
    if command == "fit":
        faults += [f"lost: {one}" for one in in_fork(differences, where, expected)]
    elif not np.array_equal(np.load(where), np.load(expected / "drawn.npy")):
        faults.append("lost: other samples")
    return "written" if done else "refused", faults


def places(options, root):
    """Writes each thing where it cannot be written."""
    data, expected, log = root / "x.npy", root / "expected", root / "log"
    np.save(data, X)
    ended(started(["fit", data, "--out", expected, *FIT, *SAMPLER], log))
    ended(started(["sample", expected, "--out", root / "x2.npy", "--quiet", "-n", "50", *SAMPLER], log))
    shutil.move(root / "x2.npy", expected / "drawn.npy")
    table = []
    for place in PLACES:
        for job in ("save", "save_weights", "export", "train", "chains", "candidates", "fit", "sample"):
            tries = options.tries if place == "full disk" else 2
            endings, faults = collections.Counter(), []
            for number in range(min(tries, 4) if job == "candidates" else tries):
                seed, folder = f"{job}/{place}/{options.seed}/{number}", root / f"{job} {place} {number}" / "disk"
                with disk(folder) if place != "below a file" else contextlib.nullcontext(folder.mkdir(parents=True)):
                    if job in SAVED:
                        ending, found = tried(try_saving, job, place, folder, seed)
                    elif job in ("fit", "sample"):
                        ending, found = try_command(job, place, folder, seed, data, expected)
                    else:
                        ending, found = tried(try_backups, job, place, folder, seed)
                endings[ending] += 1
                faults += [f"{job}, {place}, {number}: {one}" for one in found]
            table.append((f"{place}: {job}", sum(endings.values()), endings, faults))
            report(table[-1])
    return table


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(rng, raw):
    """Bytes with one fault."""
    kind, at = rng.choice(["changed", "cut", "empty", "zeros", "more"]), rng.randrange(max(1, len(raw)))
    if kind == "changed":
        return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    if kind == "zeros":
        return raw[:at] + bytes(min(64, len(raw) - at)) + raw[at + 64 :]
    return {"cut": raw[:at], "empty": b"", "more": raw + b"\0" * 10}[kind]


def try_damage(job, folder, kept, seed):
    """Damages one file, and loads; what loads must have the values that were saved."""
    rng, place = random.Random(seed), folder / "copy"
    shutil.copytree(kept, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    path = rng.choice(files)
    path.write_bytes(damaged(rng, path.read_bytes()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if job in SAVED:
                good = saved_number(job, place) == 1
                if job == "save" and good:
                    good = same(weights_of(place), weights_of(kept))
            else:
                work = {"train": lambda at: train(at, 4), "chains": chains, "candidates": candidates}[job]
                good = same(work(place), work(None))
        except Exception as error:
            return "refused", [] if str(error) else [f"unclear: {type(error).__name__} without words"]
    if not good:
        return "other values", [f"lost: {path.relative_to(place)} loads with other values"]
    return "named, not used" if any("damaged" in str(one.message) for one in caught) else "as it was", []


def weights_of(folder):
    """The weights in a `.keras` file."""
    return [weight.numpy() for weight in keras.saving.load_model(folder / SAVED["save"]).weights]


def prepare(job, kept):
    """Writes what is damaged later."""
    kept.mkdir()
    if job in SAVED:
        write(job, kept, 1)
    else:
        {"train": lambda at: train(at, 2), "chains": lambda at: chains(at, 5), "candidates": candidates}[job](kept)


def damage(options, root):
    """Damages each thing that is read again."""
    table = []
    for job in ("save", "save_weights", "export", "train", "chains", "candidates"):
        kept, endings, faults = root / f"kept {job}", collections.Counter(), []
        in_fork(prepare, job, kept)
        for number in range(min(options.tries, 5) if job == "candidates" else options.tries):
            folder = root / f"damage {job} {number}"
            folder.mkdir()
            ending, found = tried(try_damage, job, folder, kept, f"{job}/{options.seed}/{number}")
            endings[ending] += 1
            faults += [f"{job}, {number}: {one}" for one in found]
            shutil.rmtree(folder)
        table.append((f"damaged: {job}", sum(endings.values()), endings, faults))
        report(table[-1])
    return table


def report(row):
    """Prints a row of the table."""
    name, tried, endings, faults = row
    counts = ", ".join(f"{number} {ending}" for ending, number in sorted(endings.items()))
    print(f"{name:28s} {tried:4d} tried ({counts}), faults {len(faults)}", flush=True)
    for fault in faults:
        print(f"    {fault}", flush=True)


def main():
    """Runs the parts, and prints what was tried and what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    options = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as name:
        for part in options.parts:
            table += globals()[part](options, pathlib.Path(name))
    faults = [fault for row in table for fault in row[3]]
    print(f"{sum(row[1] for row in table)} tried, {len(faults)} faults")
    if options.json:
        rows = [{"name": row[0], "tried": row[1], "endings": row[2], "faults": row[3]} for row in table]
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=1))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
