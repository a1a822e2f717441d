"""A small corpus for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def write_sentences(path: Path, rows: int, seed: int) -> None:
    """Complaints about two departments, told apart by the word after "the" and nothing else."""
    draw = np.random.default_rng(seed)
    things = {"billing": ["invoice", "refund", "price"], "network": ["router", "cable", "signal"]}
    label = draw.choice(sorted(things), rows)
    text = [
        f"{draw.choice(['Please', 'Kindly', 'Hello,'])} check the {draw.choice(things[which])} {draw.integers(1000)}!"
        for which in label
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"id": np.arange(rows), "text": text, "label": label}).to_parquet(path)
