"""How long the first call to `fit` takes: building the graph, tracing, and one step, for every loss.

A 2×128 network on two coordinates, batches of 256; every loss and round in a fresh process, since a process that has
trained before has code and kernels warm. Importing and making the model are not counted.

    python benchmarks/first_fit.py [--rounds 3] [--json out.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

LOSSES = {
    "ScoreMatching": {},
    "SlicedScoreMatching": {},
    "DenoisingScoreMatching": {},
    "MultiscaleDenoisingScoreMatching": {"sigmas": [0.1, 0.2, 0.4], "sigma0": 0.1},
    "NoiseConditionalDenoisingScoreMatching": {"sigmas": [0.1, 0.2, 0.4]},
}


def measure(name):
    """Seconds of the first `fit` with that loss, in this process."""
    import keras

    import tfp_ebm as ebm

    x = ebm.datasets.two_moons(256, seed=0)
    loss = getattr(ebm.losses, name)(**LOSSES[name])
    if loss.gives_condition:
        inputs = [keras.Input((2,)), keras.Input((1,))]
        h = keras.layers.Concatenate()(inputs)
        for _ in range(2):
            h = keras.layers.Dense(128, activation="silu")(h)
        network = keras.Model(inputs, keras.layers.Dense(1)(h))
    else:
        network = ebm.networks.mlp([2], units=[128, 128], seed=0)
    model = ebm.EnergyModel(network)
    model.adapt(x)
    start = time.perf_counter()
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(x, batch_size=256, epochs=1, verbose=0)
    return time.perf_counter() - start


def main():
    """Runs every loss in processes of its own and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--measure", choices=LOSSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.measure))
        return
    seconds = {}
    for name in LOSSES:
        command = [sys.executable, __file__, "--measure", name]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(options.rounds)]
        seconds[name] = [float(run.stdout.split()[-1]) for run in runs]
        print(f"{name:40s} median {statistics.median(seconds[name]):5.2f} s, worst {max(seconds[name]):5.2f} s")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"seconds": seconds}, file, indent=2)


if __name__ == "__main__":
    main()
