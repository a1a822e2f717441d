"""The main job's own parts; `make demo` runs all of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import flights

FLIGHT = {
    **{"year": 2013, "month": 3, "day": 9, "hour": 23, "origin": "JFK", "time_hour": "2013-03-10T04:00:00Z"},
    **{
        "sched_dep_time": 2330,
        "sched_arr_time": 145,
        "carrier": "B6",
        "dest": "SJU",
        "tailnum": "N1",
        "distance": 1598,
    },
}


@pytest.fixture(scope="module")
def tables(spark: Any) -> dict[str, Any]:
    delays = [(15.0, "JFK"), (14.0, "JFK"), (None, "JFK"), (15.0, "EWR")]
    rows = [{**FLIGHT, "arr_delay": d, "origin": o} for d, o in delays]
    weather = {"origin": "JFK", "time_hour": FLIGHT["time_hour"], "year": 1, "month": 1, "day": 1, "hour": 1}
    weather |= {n: float(i) for i, n in enumerate(("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"))}
    weather |= {"precip": 0.5, "pressure": 1000.0, "visib": 9.0}
    plane = {"tailnum": "N1", "year": 2003.0, "seats": 150, "engines": 2, "model": "A320"}
    frames = {"flights": rows, "weather": [weather, weather], "planes": [plane]}
    frames["airports"] = [{"faa": "LAX", "lat": 33.9, "lon": -118.4, "alt": 126}]
    schemas = {"flights": ", ".join(f"{k} {'long' if isinstance(v, int) else 'string'}" for k, v in FLIGHT.items())}
    schemas["flights"] += ", arr_delay double"
    return {n: spark.createDataFrame(r, schemas.get(n)) for n, r in frames.items()}


def test_features(tables: dict[str, Any]) -> None:
    rows = flights.features(tables).orderBy("origin", flights.LABEL).collect()
    assert [(r.origin, r.late) for r in rows] == [("EWR", 1.0), ("JFK", 0.0), ("JFK", 1.0)]
    jfk, ewr = rows[2], rows[0]
    assert (jfk.departure, jfk.arrival, jfk.duration) == (23 * 60 + 30, 105, 135)
    assert (jfk.day_of_year, jfk.weekday, jfk.plane_age, jfk.plane_model) == (68, "7", 10.0, "A320")
    assert jfk.precip == 0.5 and ewr.precip is None
    assert jfk.dest_lat is None
    assert set(jfk.asDict()) == {"day", flights.LABEL, *flights.NUMBERS, *flights.CATEGORIES, flights.HASHED}


def test_no_day_is_in_both_splits(spark: Any) -> None:
    days = spark.range(365).selectExpr("date_add(date'2013-01-01', int(id)) as day", "id")
    train, test = flights.split(days)
    ids = [{r.id for r in part.collect()} for part in (train, test)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 365
    assert 40 < len(ids[1]) < 110


def test_the_model_takes_the_columns_as_they_are(tables: dict[str, Any]) -> None:
    import tensorflow as tf

    df = flights.features(tables)
    known = flights.describe(df)
    assert known["rows"] == 3 and known["late"] == 2.0
    assert known["vocabulary"]["origin"] == ["EWR", "JFK"]
    means = {n: m if m is not None else 0.0 for n, m in known["mean"].items()}
    variances = {n: v or 1.0 for n, v in known["variance"].items()}
    model = flights.build_model({**known, "mean": means, "variance": variances})
    row = df.na.fill(means).first().asDict()
    inputs = {n: tf.constant([[row[n]]]) for n in [*flights.NUMBERS, *flights.CATEGORIES, flights.HASHED]}
    probability = model(inputs).numpy()
    assert probability.shape == (1, 1) and np.all((probability > 0) & (probability < 1))


def test_the_command_line() -> None:
    assert flights.parse(["--workers", "3"]).workers == 3
    with pytest.raises(SystemExit):
        flights.parse(["--help"])
