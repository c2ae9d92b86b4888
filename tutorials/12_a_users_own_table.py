# %% [markdown]
# # 12. A user's own table
#
# A table from practice has more than numbers: counts, ratings, truth values, labels, empty cells, columns that never
# change, columns that repeat others. One command fits a density to all of it, reports how good the density is, draws
# rows in the kinds of the table, fills its empty cells, and finds rows that are unlikely.
#
# **After this you can**
#
# - fit a density to a file with `python -m tfp_ebm fit`, and correct the kinds of columns that it finds;
# - read the report, and explain what `FAILED` and the exit code 3 mean;
# - draw rows that have the names, the kinds and the labels of your table;
# - fill empty cells by draws given all other cells, and judge the draws by their errors and their intervals;
# - find unlikely rows by their log-likelihood, and do all of this in Python.
#
# The density is that of [tutorial 11](11_densities_of_tables.ipynb). In the terms of the note *Basics of Energy Based
# Models*, it is $p(x) = e^{-E(x)}/Z$ (eqs. 1-3) with $Z = 1$, trained by maximum likelihood (eq. 6).
#
# Prerequisites: tutorial 11; a shell. Reading time about 20 minutes.

# %%
import contextlib
import io
import json
import os
import pathlib
import shlex
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas
from IPython.display import display
from PIL import Image
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

import tfp_ebm as ebm
from tfp_ebm import cli
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, VERMILION, Ledger, size, style

style()
ledger = Ledger()
os.chdir(tempfile.mkdtemp())

# %% [markdown]
# ## The file
#
# So that we can compare with the truth, we write the file ourselves: flats to rent in three cities. The rent grows with
# the area, but at another rate in each city; it falls with the distance from the centre along a curve. A tenth of the
# cells in five columns is then emptied at random. From here on the model sees only the file.

# %%
CITIES = np.array(["Bath", "Leeds", "York"])
EMPTIED = ["city", "area_m2", "rooms", "furnished", "rent"]


def mean_rent(city, area, furnished, distance):
    """The mean of the rent given all else; rents vary around it with a standard deviation of 60."""
    fixed, per_area = np.array([100, 300, 400])[city], np.array([22, 10, 5])[city]
    return fixed + per_area * area + 150 * furnished - 150 * np.log1p(distance)


def flats(count, seed):
    """Rows of the true distribution, as a data frame."""
    rng = np.random.default_rng(seed)
    city = rng.choice(3, count, p=[0.5, 0.3, 0.2])
    area = np.exp(rng.normal(np.log([45.0, 60.0, 75.0])[city], 0.3)).round(3)
    rooms = np.clip(np.rint(area / 22 + rng.normal(0, 0.4, count)), 1, 6).astype(int)
    furnished = rng.random(count) < np.array([0.7, 0.4, 0.2])[city]
    distance = rng.gamma(2.0, 1.5, count).round(3)
    rent = np.maximum(mean_rent(city, area, furnished, distance) + rng.normal(0, 60, count), 50)
    columns = {"city": CITIES[city], "area_m2": area, "rooms": rooms, "furnished": furnished, "distance_km": distance}
    derived = {"distance_miles": distance * 0.621371, "currency": "GBP"}
    return pandas.DataFrame({**columns, "rent": np.rint(rent).astype(int), **derived})


def with_empty_cells(table, share, seed):
    """The table with a share of the cells of five columns emptied at random."""
    rng, table = np.random.default_rng(seed), table.convert_dtypes()
    for name in EMPTIED:
        table[name] = table[name].mask(rng.random(len(table)) < share)
    return table


complete = flats(size(3_000, 600), seed=0)
with_empty_cells(complete, 0.1, seed=1).to_csv("flats.csv", index=False)
print(pathlib.Path("flats.csv").read_text()[:400])

# %% [markdown]
# ## One command
#
# In a shell the command is `python -m tfp_ebm fit flats.csv --missing model --out runs/flats`. Here we call its
# function, so that the notebook starts no other process. With `--missing model`, rows with empty cells are used as they
# are. By default the command refuses empty cells, and names their number and their places; with `--missing drop` it
# leaves their rows out. It prints the held-out log-likelihood of each candidate, then the report.


# %%
def shell(command):
    """Runs a command of `python -m tfp_ebm`, prints what it prints, and returns its exit code."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main(shlex.split(command))
    print(f"$ python -m tfp_ebm {command}\n{printed.getvalue().replace(os.getcwd() + os.sep, '')}")
    return code


exit_code = shell("fit flats.csv --missing model --out runs/flats")
print(f"exit code {exit_code}")

# %% [markdown]
# ## The kinds of the columns
#
# The report names the kind of each column and its treatment. Ratings, truth values and categories have probabilities,
# which sum to 1 over their values; the other columns have a density given all columns before them. Whole numbers of
# many values are spread over their unit cells by uniform noise, and rounded in samples. A constant and a copy of
# another column have no density: they are kept aside, and put back into samples.
#
# If a kind is wrong, give the right one: `--kind rooms=category`. If the file is read wrongly, `--read "sep=';',
# decimal=','"` passes options to pandas.

# %%
report = json.loads(pathlib.Path("runs/flats/report.json").read_text())
for column in report["columns"]:
    print(f"{column['name']:15s} {column['kind']:11s} {column['treatment']}")

# %% [markdown]
# ## The report
#
# A tenth of the rows takes no part in the fit. On them the report compares
#
# - the **log-likelihood** per row, in nats with its standard error, beside a Gaussian, a Gaussian mixture and a kernel
#   density fitted to the same rows. A model that is worse than one of them is of no use;
# - **samples** with these rows: the AUC of a classifier that tries to separate them (0.5: it cannot, 1: it always can),
#   beside that for the samples of the Gaussian mixture;
# - each **column** of samples with the data: the largest difference of the distribution functions, or half the sum of
#   the differences of the frequencies, beside the value that two samples of one distribution have by chance.
#
# The model draws complete rows. For the comparison its samples get empty cells where rows of the file have them. The
# log-likelihood of a row with empty cells is that of the cells that are there.

# %%
held_out = report["held_out"]
references = report["references"]
best = max(references, key=lambda name: references[name]["log_likelihood"])
lead = references[best]["model_minus_reference"]
lead_error = references[best]["model_minus_reference_standard_error"]
print(f"status: {report['status']}; model {held_out['log_likelihood']:.2f} ± {held_out['standard_error']:.2f} nats")
print(f"ahead of the best simple density ({best.replace('_', ' ')}) by {lead:.2f} ± {lead_error:.2f} nats per row")
print(f"AUC {report['two_sample_auc']:.3f}; of the mixture's samples {report['two_sample_auc_of_reference']:.3f}")

# %% [markdown]
# `figure.png` shows the same: the densities compared, each column, the pairs of columns whose dependence differs most,
# and all pairs, with the data below the diagonal and the samples above it. Here it has half of its size.

# %%
display(Image.open("runs/flats/figure.png").reduce(2))

# %% [markdown]
# ## Samples in the kinds of the table
#
# `samples.csv` holds 4000 rows with the columns of the file. `sample` draws more:
# `python -m tfp_ebm sample runs/flats --num 1000 --out more.csv`. The copy and the constant are in their places.

# %%
samples = pandas.read_csv("runs/flats/samples.csv")
print(samples.head(4).to_string())
print(f"miles / km: {(samples.distance_miles / samples.distance_km).round(4).unique()}; {set(samples.currency)}")

# %% [markdown]
# The dependence of a number on a label is what a table of means and standard deviations would lose. Below, rent against
# area, by city, in fresh rows of the true distribution and in samples.

# %% figure="own_table"
fresh = flats(size(4_000, 1_000), seed=2)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharex=True, sharey=True)
for ax, title, table in zip(axes, ("truth", "samples of the model"), (fresh, samples), strict=True):
    for city, color in zip(CITIES, (BLUE, VERMILION, GREEN), strict=True):
        part = table[table.city == city][:400]
        ax.scatter(part.area_m2, part.rent, s=5, color=color, alpha=0.6, label=city, linewidths=0)
    ax.set(xlim=(15, 150), ylim=(0, 2400), xlabel="area, m²", title=title)
axes[0].set_ylabel("rent")
axes[1].legend(markerscale=3)
plt.show()

# %% [markdown]
# The report's comparisons are public functions. Applied to fresh rows of the true distribution, `two_sample_auc`,
# `column_distances` and `worst_pairs` compare 4000 complete rows with 4000
# samples.

# %%
kinds = {column["name"]: column["kind"] for column in report["columns"]}
auc = ebm.evaluation.two_sample_auc(fresh, samples)
distances = ebm.evaluation.column_distances(fresh, samples, kinds)
print(f"AUC {auc.value:.3f} ± {auc.standard_error:.3f}")
print("distances: " + ", ".join(f"{name} {value:.3f}" for name, value in distances.items()))
for pair in ebm.evaluation.worst_pairs(fresh, samples, kinds, count=3):
    print(f"dependence of {pair.first} and {pair.second}: {pair.distance:.3f}")
shares = pandas.DataFrame({"truth": [0.5, 0.3, 0.2], "samples": samples.city.value_counts(normalize=True)[CITIES]})
print(shares.round(3).to_string())

# %% [markdown]
# ## Filling empty cells
#
# `sample --given` fills each empty cell by draws from its distribution given **all** other cells of the row, also those
# later in the order of the columns. One draw is one completed table; the spread of several draws is the uncertainty
# (multiple imputation). We empty a fifth of the cells of new rows, so that the true cells are known, and draw 39 times.

# %%
truth = flats(size(400, 60), seed=3)
with_empty_cells(truth, 0.2, seed=4).to_csv("holes.csv", index=False)
holes = pandas.read_csv("holes.csv")
num_draws = 39
shell(f"sample runs/flats --given holes.csv -n {num_draws} --out filled.csv")
filled = pandas.read_csv("filled.csv")
shown = holes.isna().sum(axis=1).nlargest(2).index
print(holes.loc[shown].to_string())
print(filled.loc[[row * num_draws + draw for row in shown for draw in (0, 1, 2)]].to_string())

# %% [markdown]
# The mean of the draws is the best guess of a number, the commonest draw that of a label. The interval from the second
# to the second-largest of 39 draws holds the true cell with a probability of $36/40 = 90\,\%$ if the draws are right.
#
# scikit-learn's `IterativeImputer` predicts each column by a linear regression on the others. We give it the same rows,
# with the city as three columns of 0 and 1. It can be no better than a linear dependence allows, here one rate for all
# cities. If the rent alone is empty, no method can have a smaller error than 60, the spread around the true mean; on
# the few such rows here, this number itself has a standard error of about 7.


# %%
def as_numbers(table):
    """The columns as numbers, and the city as three columns of 0 and 1."""
    numbers = table[["area_m2", "rooms", "furnished", "distance_km", "rent"]].astype("float64")
    for city in CITIES:
        numbers[city] = (table.city == city).astype("float64").where(table.city.notna())
    return numbers


train, given = as_numbers(pandas.read_csv("flats.csv")), as_numbers(holes)
imputer = IterativeImputer(max_iter=20, random_state=0).fit(train)
linear = pandas.DataFrame(imputer.transform(given), columns=given.columns)
draws = {name: np.sort(filled[name].to_numpy("float64").reshape(len(holes), num_draws)) for name in EMPTIED[1:]}
only_rent = holes.rent.isna() & holes[["city", "area_m2", "furnished"]].notna().all(axis=1)  # rooms do not matter
rows_of = {"area_m2": holes.area_m2.isna(), "rooms": holes.rooms.isna(), "rent": holes.rent.isna()}
errors = {}
for name, rows in {**rows_of, "rent, all else given": only_rent}.items():
    column = name.split(",")[0]
    true = truth[column][rows].to_numpy("float64")
    guesses = {"draws": draws[column][rows].mean(1), "linear": linear[column][rows], "mean": train[column].mean()}
    errors[name] = {key: np.sqrt(np.mean((guess - true) ** 2)) for key, guess in guesses.items()}
print("root mean squared errors of filled cells: of the mean of the draws, of linear regression, of the column's mean")
print(pandas.DataFrame(errors).T.round(2).to_string())

inside = []
for name in ("area_m2", "rent"):  # an interval of a rating holds more than its share
    low, high, true = draws[name][:, 1], draws[name][:, -2], truth[name].to_numpy("float64")
    inside.append(((low <= true) & (true <= high))[holes[name].isna()])
inside = np.concatenate(inside)
print(f"90 % intervals hold {inside.mean():.1%} of {len(inside)} true cells")

rows = holes.city.isna()
guessed = [pandas.Series(row).mode()[0] for row in filled.city.to_numpy().reshape(len(holes), num_draws)]
right, commonest = np.mean((guessed == truth.city)[rows]), np.mean(truth.city[rows] == "Bath")
print(f"city: {right:.0%} of {rows.sum()} right; the commonest city, Bath, is right in {commonest:.0%}")

# %%
rows, true = holes.rent.isna(), truth.rent.to_numpy("float64")
middle = draws["rent"].mean(1)
reach = np.stack([middle - draws["rent"][:, 1], draws["rent"][:, -2] - middle])
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), sharex=True, sharey=True)
axes[0].errorbar(true[rows], middle[rows], reach[:, rows], fmt="o", ms=3, lw=1, color=BLUE)
axes[0].set(title="mean and 90 % of draws", xlabel="true rent", ylabel="filled rent")
axes[1].plot(true[rows], linear.rent[rows], "o", ms=3, color=ORANGE)
axes[1].set(title="IterativeImputer", xlabel="true rent")
for ax in axes:
    ax.axline((800, 800), slope=1, color=BLACK, lw=1, ls=":")
plt.show()

# %% [markdown]
# Both methods assume that a cell is empty for no reason of its own: the chance that it is empty may depend on the
# cells that are there, not on the value that is missing.
#
# ## Unlikely rows
#
# `evaluate` computes the log-likelihood of new rows, beside that of the simple densities, and writes it for each row.
# We plant ten flats whose city was mistyped: 90 m² or more for the rent of York, entered as Bath. Each cell by itself
# is an ordinary one.

# %%
checked = flats(size(1_000, 200), seed=5)
large = checked.index[(checked.city == "York") & (checked.area_m2 > 90)][: size(10, 3)]
checked.loc[large, "city"] = "Bath"
checked.to_csv("new.csv", index=False)
shell("evaluate runs/flats new.csv --out scored.csv")
scored = pandas.read_csv("scored.csv").sort_values("log_prob")
print(scored.head(4).drop(columns=["distance_miles", "currency", "energy"]).to_string())
rank = pandas.Series(np.arange(1, len(scored) + 1), scored.index)[large]
print(f"ranks of the {len(large)} planted rows among {len(scored)}, the least likely first: {sorted(rank)}")

# %% [markdown]
# ## FAILED
#
# A fit can go wrong: too few steps of training, a loss that does not suit the data, chains that do not mix. The files
# are then written all the same, but the report says `FAILED` with the reasons, `status` in `report.json` is "failed",
# and the exit code is 3, so that a script can stop. We cause it by another loss and a single step of training, on two
# columns; with `--quiet`, little more than the reasons is printed.

# %%
complete[["area_m2", "rent"]].to_csv("two.csv", index=False)
short = size("", " --num-samples 400 --burnin 20 --kernel langevin")
failed_code = shell("fit two.csv --loss dsm --steps 1 --quiet --out runs/bad" + short)
print(f"exit code {failed_code}")
failures = json.loads(pathlib.Path("runs/bad/report.json").read_text())["failures"]

# %% [markdown]
# A Gaussian that anybody can fit is as good as this model, and a mixture is better. What to do depends on the reason:
#
# - **less likely than a simple density**: the training was too short, or the loss is for other data. Give more
#   `--minutes` or `--steps`, or leave `--loss` out.
# - **a classifier separates the samples**: often a column has the wrong kind; see the one with the largest distance.
#   Correct it by `--kind`, and look at the worst pairs in `figure.png`.
# - **R-hat of the chains above the limit**: the chains do not cross between modes. Leave `--loss` out: samples are then
#   drawn without chains.
# - **values that are not finite**: look for cells such as 10³⁰ in the file. A code such as −999 for an empty cell is
#   named by `--read "na_values=[-999]"`.
#
# ## The same in Python
#
# The command line stands on public functions:
#
# ```python
# frame = ebm.datasets.load_table("flats.csv", mixed=True)
# model = ebm.fit_density(frame)  # empty cells are missing values; the encoder is model.encoder
# model.sample_frame(1000, seed=0)  # a data frame with the dtypes and labels of `frame`
# ebm.impute(model, frame, num_draws=5)  # five of them, with the empty cells of `frame` filled
# x = model.encoder.encode(frame)  # numbers, NaN for empty cells
# ```
#
# A run can be loaded as well; its encoder is `model.encoder`. The model is an energy like any other, and its density
# in one column given **all** the others follows from $E$ alone, whatever the order of the columns:
# $p(x_i \mid x_{\text{others}}) \propto e^{-E(x)}$ along $x_i$. What is the rent of a furnished flat of 60 m² and three
# rooms, 2 km from the centre, in each city?

# %%
model = keras.models.load_model("runs/flats/model.keras")
encoder = model.encoder
p = ebm.EnergyDistribution(model)
rents = np.arange(0, 2400, 4)
given = {"area_m2": 60.0, "rooms": 3, "furnished": True, "distance_km": 2.0, "rent": rents}
figure, ax = plt.subplots(figsize=(7.2, 3.4))
gaps = []
for number, (city, color) in enumerate(zip(CITIES, (BLUE, VERMILION, GREEN), strict=True)):
    rows = encoder.encode(pandas.DataFrame({"city": city, **given}))
    log_prob = p.log_prob(rows.astype("float32")).numpy()
    density = np.exp(log_prob - log_prob.max())
    density /= np.trapezoid(density, rents)
    true_mean = mean_rent(number, 60.0, 1, 2.0)
    true_density = np.exp(-0.5 * ((rents - true_mean) / 60) ** 2) / (60 * np.sqrt(2 * np.pi))
    mean = np.trapezoid(rents * density, rents)
    spread = np.sqrt(np.trapezoid((rents - mean) ** 2 * density, rents))
    gaps.append(0.5 * np.trapezoid(np.abs(density - true_density), rents))
    print(f"{city:6s} rent {mean:5.0f} ± {spread:3.0f}; truth {true_mean:5.0f} ±  60; total variation {gaps[-1]:.3f}")
    ax.plot(rents, density, color=color, label=city)
    ax.plot(rents, true_density, color=BLACK, lw=1, ls=":")
ax.set(xlabel="rent", ylabel="density", title="Rent given all other cells; dotted: the truth")
ax.legend()
plt.show()

# %% [markdown]
# ## The numbers beside the truth

# %%
ledger.equal("exit code of the fit", exit_code, 0, 0)
ledger.at_least("log-likelihood above the best simple density, nats", lead, size(0.3, -0.5))
ledger.at_most("AUC, samples against fresh rows", auc.value, size(0.56, 0.8))
ledger.at_most("largest distance of a column", max(distances.values()), size(0.06, 0.2))
ledger.at_most("frequencies of cities, largest error", (shares.samples - shares.truth).abs().max(), size(0.04, 0.15))
error = errors["rent, all else given"]["draws"]
ledger.at_most("error of rents given all else (60 for the truth)", error, size(75, 150))
ratio = error / errors["rent, all else given"]["linear"]
ledger.at_most("the same, draws / linear regression", ratio, size(0.7, 1.2))
ratio = errors["rent"]["draws"] / errors["rent"]["linear"]
ledger.at_most("error of all filled rents, draws / linear regression", ratio, size(0.95, 1.2))
ledger.equal("share of true cells in 90 % intervals", inside.mean(), 0.9, size(0.08, 0.3))
ledger.at_most("planted rows: the highest rank", max(rank), size(30, 150))
ledger.equal("exit code of the bad fit", failed_code, 3, 0)
ledger.at_least("reasons in its report", len(failures), 1)
ledger.at_most("rent given all other cells, total variation", max(gaps), size(0.3, 0.9))
ledger.close()
