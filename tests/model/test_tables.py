"""Draws of a model as a table in the form of the training table."""

import keras
import numpy as np
import pandas
import pytest

import tfp_ebm as ebm


def table():
    rng = np.random.default_rng(0)
    size = rng.normal(50.0, 9.0, 300)
    return pandas.DataFrame(
        {
            "unit": "mm",
            "count": rng.poisson(np.exp(size / 30)),
            "size": size,
            "kind": np.where(size + rng.normal(size=300) > 50, "big", "small"),
            "twice": 2 * size,
        },
        index=np.arange(300) + 1000,
    )


@pytest.fixture(scope="module")
def model():
    with pytest.warns(UserWarning, match="is kept aside"):
        return ebm.fit_density(table(), minutes=0.02, verbose=0)


@pytest.mark.slow
def test_draws_have_the_form_of_the_training_table(model, tmp_path):
    """Also those of a loaded model, which are the same; columns depend on each other as in the table."""
    frame, drawn = table(), model.sample_frame(500, seed=1)
    assert list(drawn.columns) == list(frame.columns) and (drawn.dtypes == frame.dtypes).all() and len(drawn) == 500
    assert (drawn["unit"] == "mm").all() and set(drawn["kind"]) == {"big", "small"} and (drawn["count"] >= 0).all()
    np.testing.assert_allclose(drawn["twice"], 2 * drawn["size"], rtol=1e-6)
    # 5 standard errors of 500 draws; the means of the kinds are 14 apart, and equal if rows were mixed up
    assert abs(drawn["size"].mean() - frame["size"].mean()) < 5 * 9 / np.sqrt(500)
    means = drawn.groupby("kind")["size"].mean()
    assert 9 < means["big"] - means["small"] < 19
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras").sample_frame(500, seed=1)
    pandas.testing.assert_frame_equal(again, drawn)


@pytest.mark.slow
def test_missing_cells_of_a_table_are_drawn(model):
    """Given cells stay as they are; labels follow the size, absent columns are filled, duplicates are computed."""
    frame = table().head(6).drop(columns=["twice", "count"])
    frame.loc[1000:1002, "kind"] = None
    frame.loc[1003, "size"] = np.nan
    frame.loc[1000:1002, "size"] = [80.0, 20.0, 50.0]
    tables = ebm.impute(model, frame, 40, seed=2)
    assert len(tables) == 40
    for one in tables:
        assert one.index.equals(frame.index) and list(one.columns) == list(table().columns)
        assert one.notna().all(axis=None)
        given = frame.notna()
        assert ((one[frame.columns] == frame) | ~given).all(axis=None)
        np.testing.assert_allclose(one["twice"], 2 * one["size"], rtol=1e-6)
    kinds = pandas.DataFrame([one["kind"] for one in tables])
    assert (kinds[1000] == "big").mean() > 0.9 and (kinds[1001] == "small").mean() > 0.9
    assert 0.1 < (kinds[1002] == "big").mean() < 0.9
    same = ebm.impute(model, frame, 40, seed=2)
    pandas.testing.assert_frame_equal(same[7], tables[7])
    assert any(not one["count"].equals(tables[0]["count"]) for one in tables[1:])


@pytest.mark.slow
def test_plain_numbers_and_other_states():
    base = ebm.fit_base(np.random.default_rng(0).normal(size=(100, 2)), dtype="float32")
    model = ebm.composition.mixture([base], [1.0]).energy_model
    assert model.sample_frame(3, seed=0).shape == (3, 2)
    model.columns = ("a", "b")
    assert list(model.sample_frame(3, seed=0)) == ["a", "b"]
    images = ebm.EnergyModel(ebm.networks.convnet([4, 4, 1], filters=[2]))
    with pytest.raises(ValueError, match="vectors"):
        images.sample_frame(3, seed=0)
