"""Models whose states may be rows of a table: the names of its columns, and draws as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.arguments import check_count

if TYPE_CHECKING:
    import pandas


class TableModel:
    """A part of a Keras model that keeps the names of its coordinates and the encoder of the table that they encode.

    Attributes:
      columns: names of the coordinates, saved with the model; None if they have none.
      encoder: the `datasets.TableEncoder` of the table that x encodes, saved with the model; None for plain numbers.
    """

    columns: tuple[str, ...] | None = None
    encoder: Any = None

    def sample_frame(self, num_samples: int, seed: Any) -> pandas.DataFrame:
        """Draws rows as `EnergyDistribution.sample` does, and returns them as a table like the training table.

        Args:
          num_samples: number of rows.
          seed: int or int32[2].

        Returns:
          A `pandas.DataFrame` with the names, the order and the dtypes of the training table: whole numbers are
          rounded, labels are labels, and constant and duplicate columns are there. The rows are complete, also if the
          training table has missing cells. A model of plain numbers has columns of numbers.

        Raises:
          ValueError: if the states are not vectors, or the model is conditional.

        >>> import pandas, tfp_ebm as ebm
        >>> frame = pandas.DataFrame({"size": np.random.default_rng(0).normal(size=60), "unit": "mm"})
        >>> model = ebm.fit_density(frame, minutes=0.02, verbose=0)
        >>> drawn = model.sample_frame(5, seed=1)
        >>> drawn.shape, drawn["unit"].tolist()[:2]
        ((5, 2), ['mm', 'mm'])
        """
        import pandas

        from tfp_ebm.model.distribution import EnergyDistribution  # which is made of models

        check_count("num_samples", num_samples)
        p: Any = EnergyDistribution(self)
        if len(p.event_shape) != 1:
            raise ValueError(f"the states must be vectors to be rows of a table, got {tuple(p.event_shape)}.")
        rows = p.sample(num_samples, seed=seed).numpy()
        if self.encoder is None:
            return pandas.DataFrame(rows, columns=None if self.columns is None else list(self.columns))
        return self.encoder.decode(rows.astype(np.float64))
