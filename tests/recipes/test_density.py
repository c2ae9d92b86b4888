"""`fit_density`: what it returns, how it splits and stacks, what it refuses."""

import keras
import numpy as np
import pandas
import pytest
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.recipes import density, density_candidates, density_rows, density_small, density_training


def table(rows, seed):
    """Three columns on scales of 1, 1000 and .01, the second a parabola of the first, the third of a heavy tail."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=rows)
    second = 1000.0 * (first**2 + 0.5 * rng.normal(size=rows))
    return np.stack([first, second, 0.01 * rng.standard_t(2.5, size=rows)], -1)


def log_density(x):
    second = stats.norm.logpdf(x[:, 1] / 1000.0, x[:, 0] ** 2, 0.5) - np.log(1000.0)
    return stats.norm.logpdf(x[:, 0]) + second + stats.t.logpdf(x[:, 2] / 0.01, 2.5) + np.log(100.0)


@pytest.fixture(scope="module")
def fitted():
    x = table(2000, 0)
    x[7, 2] = 1e30  # one cell that must not spoil the rest
    return ebm.fit_density(x, minutes=0.1, seed=1, verbose=0)


@pytest.mark.slow
def test_it_is_a_density_better_than_its_parts(fitted):
    """KL of 5000 new rows below .15 nat, standard error .01; the Gaussian is more than .5 away."""
    x = table(5000, 1)
    p = ebm.EnergyDistribution(fitted)
    gap = log_density(x) - p.log_prob(x.astype("float32")).numpy()
    assert gap.mean() < 0.15
    stack = fitted.candidates["stack"][0]  # may lose a trace to weights that are kept off zero and parts left out
    assert all(stack >= value - 0.02 for value, _ in fitted.candidates.values())
    assert fitted.candidates["gaussian"][0] < stack - 0.5
    samples = p.sample(5000, seed=2).numpy()
    for column in range(3):
        assert stats.ks_2samp(samples[:, column], x[:, column]).statistic < 0.05


@pytest.mark.slow
def test_the_model_is_saved_with_all_its_parts(fitted, tmp_path):
    fitted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = table(20, 3).astype("float32")
    np.testing.assert_array_equal(loaded.energy(x), fitted.energy(x))
    assert float(loaded.log_normalizer) == 0.0


@pytest.mark.slow
def test_small_tables_and_seeds():
    """Fewer rows than a batch: finite samples, no worse than the Gaussian on the rows held out.

    Without `minutes` the clock ends nothing, and the same seed gives the same bits.
    """
    x = np.random.default_rng(0).normal(size=(12, 1))
    model, again = (ebm.fit_density(x, verbose=0) for _ in range(2))
    assert not model.cut_by_clock and again.candidates == model.candidates
    assert model.candidates["stack"][0] >= model.candidates["gaussian"][0] - 0.02
    assert np.isfinite(ebm.EnergyDistribution(model).sample(50, seed=0)).all()


def test_nodes_grow_where_the_normaliser_needs_them():
    """A flat energy needs 128 nodes, and one that is nearly a step more."""
    y = np.random.default_rng(0).normal(size=(50, 1)).astype("float32")
    network = ebm.networks.autoregressive([1], units=[8], num_functions=64, seed=0)
    bias = np.zeros(network.trunk.last.bias.shape)
    assert density.settle_nodes(network, y) <= 1e-3 and network.num_nodes[1] == 128
    bias[32] = 300.0
    network.trunk.last.bias.assign(bias)
    assert density.settle_nodes(network, y) <= 1e-3 and network.num_nodes[1] == 512
    assert network.get_config()["num_nodes"] == (64, 512)


def test_equal_rows_are_on_one_side():
    x = np.repeat(np.random.default_rng(0).normal(size=(100, 2)), 3, 0)
    train, held_out = density_rows.split_rows(x, 0.2, seed=0)
    assert sorted([*train, *held_out]) == list(range(300)) and len(held_out) >= 50
    assert not set(map(tuple, x[train])) & set(map(tuple, x[held_out]))


def mixed_table(rows, seed):
    """A category of three, a number around a centre of its own for each, and a boolean that depends on the number."""
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=rows)
    number = np.array([-20.0, 0.0, 30.0])[group] + 5.0 * rng.normal(size=rows)
    answer = rng.random(rows) < 1.0 / (1.0 + np.exp(-number / 10.0))
    return np.stack([group, number, answer], -1).astype(np.float64)


def mixed_log_prob(x):
    chance = 1.0 / (1.0 + np.exp(-x[:, 1] / 10.0))
    normal = stats.norm.logpdf(x[:, 1], np.array([-20.0, 0.0, 30.0])[x[:, 0].astype(int)], 5.0)
    return -np.log(3.0) + normal + np.log(np.where(x[:, 2] == 1.0, chance, 1.0 - chance))


def mean_gaps(samples, x):
    """Differences of the mean of column 1 in each group of column 0, in standard deviations of the column."""
    gaps = [samples[samples[:, 0] == k, 1].mean() - x[x[:, 0] == k, 1].mean() for k in range(3)]
    return np.abs(gaps) / x[:, 1].std()


@pytest.mark.long
@pytest.mark.parametrize("has_gaps", [False, True])
def test_columns_of_values_and_missing_cells(has_gaps, monkeypatch):
    """KL of 3000 new rows below .1 nat, standard error .02; shares of the groups within three standard errors.

    Planted: samples whose groups are shuffled.
    """
    monkeypatch.setattr(density_candidates, "_MIN_NETWORKS", 1)  # each is compiled by itself
    monkeypatch.setattr(density_small, "_MIN_FOLDS", 2)
    x = mixed_table(1000, 0)
    if has_gaps:
        x[np.random.default_rng(1).random(x.shape) < 0.1] = np.nan
    model = ebm.fit_density(x, kinds={0: [0, 1, 2], 2: [0, 1]}, minutes=0.03, seed=1, verbose=0)
    p, new = ebm.EnergyDistribution(model), mixed_table(3000, 1)
    assert (mixed_log_prob(new) - p.log_prob(new.astype("float32"))).numpy().mean() < 0.1
    samples = p.sample(3000, seed=2).numpy()
    shares = np.array([(samples[:, 0] == k).mean() for k in range(3)])
    assert np.abs(shares - 1.0 / 3.0).max() < 3.0 * np.sqrt(2.0 / 9.0 * (1.0 / 3000.0 + 1.0 / 1000.0))
    assert mean_gaps(samples, new).max() < 0.1
    samples[:, 0] = np.random.default_rng(0).permutation(samples[:, 0])
    assert mean_gaps(samples, new).max() > 0.5


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros((2, 2)), "at least 10 rows"),
        (np.column_stack([np.arange(20.0), np.ones(20)]), "columns 1 are constant"),
        (np.repeat(np.random.default_rng(0).normal(size=(20, 1)), 2, 1), "columns 1 equal earlier ones"),
        (np.full((20, 2), np.nan), "empty columns"),
        (np.full((20, 2), np.inf), "finite"),
        (np.zeros((20, 2, 2)), "constant|shape"),
    ],
)
def test_refusals(x, match):
    with pytest.raises(ValueError, match=match):
        ebm.fit_density(x)


@pytest.mark.long
@pytest.mark.parametrize(("num_rows", "kept"), [(2010, ["autoregressive_1"]), (110, [])])
def test_an_interrupt_keeps_the_best_so_far(num_rows, kept, monkeypatch):
    """Ctrl-C at the third judgement of the first network: the candidates so far are stacked, with a warning.

    Of a small table, whose networks are cross-validated, these are the simple densities.
    """
    judge, count = density_training.Trainer._mean_energy, iter(range(100))

    def interrupted(self, z, weights):
        if next(count) == 2:
            raise KeyboardInterrupt
        return judge(self, z, weights)

    monkeypatch.setattr(density_training.Trainer, "_mean_energy", interrupted)
    x = table(num_rows, 0)
    with pytest.warns(UserWarning, match="interrupted"):
        model = ebm.fit_density(x, verbose=0)
    assert [name for name in model.candidates if name.startswith("autoregressive")] == kept
    assert model.cut_by_clock and np.isfinite(model.energy(x.astype("float32"))).all()


@pytest.mark.long
def test_a_data_frame_is_encoded(monkeypatch, tmp_path):
    """Columns of all kinds; the encoder is in the file of the model."""
    monkeypatch.setattr(density_candidates, "_MIN_NETWORKS", 1)
    x = mixed_table(400, 0)
    frame = pandas.DataFrame({"group": np.array(["a", "b", "c"])[x[:, 0].astype(int)], "number": x[:, 1]})
    frame["year"], frame.loc[::9, "number"] = 2024, np.nan
    model = ebm.fit_density(frame, minutes=0.02, verbose=0)
    assert model.columns == ("group", "number") and model.encoder.allows_missing
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    samples = loaded.encoder.decode(ebm.EnergyDistribution(loaded).sample(50, seed=0))
    assert list(samples.columns) == ["group", "number", "year"] and set(samples["group"]) <= set("abc")
