"""An export as Optimizely's documentation and published samples show it, made up from a seed.

Algorithm: a pool of visitors with their attributes is made once; each file takes rows from it and gets identifiers and times of its own.
The same arguments give the same keys and rows, and with the same pyarrow the same bytes.

Columns are those of real files (all optional): decisions and events share identity, time and attributes; `date`, `experiment` and `event`
exist in the path only. One row group a file, Snappy. The parts of a day and type come from one job and share its UUID, as Spark names them.
"""

import datetime
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from optfs.errors import ConfigError

EVENT_NAMES = (
    "purchase",
    "NULL",  # events without a name
    "Main_Nav_javascript%3Avoid(0);",  # the percent sign stands in the key itself
    "Add to cart",
    "signup",
    "Página vista",
    "a+b & c",
)
BROWSERS = ("Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0", "Mozilla/5.0 (iPhone) Mobile/15E148", "okhttp/4.12.0")
POOL = 1000  # visitors; decisions and events share them, so that they can be joined
DAY_MS = 86_400_000
END = datetime.date(2026, 6, 30)  # the last day unless told otherwise: fixed, so that the export is the same each time


@dataclass(frozen=True, slots=True)
class Plan:
    """What to generate.

    Attributes:
        days: how many, up to `end_date`; the last one is still incomplete.
        experiments: how many have decisions each day.
        events: how many names of events each day has.
        rows: of a file, on average.

    """

    days: int = 30
    experiments: int = 20
    events: int = 20
    rows: int = 100
    seed: int = 1
    end_date: datetime.date = END
    account: str = "123"


@dataclass(frozen=True, slots=True)
class Part:
    """One object.

    Attributes:
        key: below the account's prefix.
        rows: how many a Parquet file has; 0 of `_SUCCESS`.
        revenue: sum of the column `revenue`, cents.

    """

    key: str
    data: bytes = field(repr=False)
    rows: int = 0
    revenue: int = 0


def parts(plan: Plan) -> Iterator[Part]:
    """Yield each object with what is in it, day by day.

    Raises:
        ConfigError: pyarrow isn't installed.

    """
    maker = _Maker(plan)
    for back in reversed(range(plan.days)):
        yield from maker.day(plan.end_date - datetime.timedelta(days=back), complete=back > 0)


def event_names(count: int) -> list[str]:
    """Return the first `count` names of events, the irregular ones first."""
    return [*EVENT_NAMES, *(f"event_{number}" for number in range(count))][:count]


class _Maker:
    def __init__(self, plan: Plan) -> None:
        try:
            import pyarrow  # noqa: PLC0415 - only the demo needs it, and it takes long to import
            import pyarrow.parquet  # noqa: PLC0415 - as above
        except ImportError as error:
            raise ConfigError("generating an export needs pyarrow: pip install 'optfs[demo]'") from error
        self._arrow: Any = pyarrow
        self._plan = plan
        self._decisions, self._events = _schemas(pyarrow)
        self._visitors = self._pool()

    def day(self, date: datetime.date, *, complete: bool) -> Iterator[Part]:
        """Yield one day's objects, `_SUCCESS` last."""
        plan = self._plan
        partitions = {
            "decisions": [f"experiment={9_300_000_000 + 1117 * number}" for number in range(plan.experiments)],
            "events": [f"event={name}" for name in event_names(plan.events)],
        }
        for kind, names in partitions.items():
            rng = random.Random(f"{plan.seed} {kind} {date}")  # noqa: S311 - reproducible on purpose
            job = uuid.UUID(int=rng.getrandbits(128), version=4)
            folder = f"type={kind}/date={date}"
            for number, name in enumerate(names):
                for split in range(2 if number == 0 and date.day % 5 == 0 else 1):  # some partitions have more than one part
                    key = f"{folder}/{name}/part-{number + split * len(names):05d}-{job}.c000.snappy.parquet"
                    yield self._part(key, rng, date, name.partition("=")[2])
            if complete:
                yield Part(f"{folder}/_SUCCESS", b"")

    def _part(self, key: str, rng: random.Random, date: datetime.date, name: str) -> Part:
        decisions = key.startswith("type=decisions/")
        count = rng.randint(max(1, self._plan.rows // 2), self._plan.rows * 3 // 2)
        midnight = int(datetime.datetime(date.year, date.month, date.day, tzinfo=datetime.UTC).timestamp() * 1000)
        received = sorted(midnight + rng.randrange(DAY_MS) for _ in range(count))
        shared = self._visitors.take(self._arrow.array([rng.randrange(POOL) for _ in range(count)]))
        columns: dict[str, Any] = {
            **{field: shared.column(field) for field in shared.column_names},
            "uuid": [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)],
            "timestamp": [moment - rng.randrange(5000) for moment in received],
            "process_timestamp": received,
            "session_id": [f"{rng.getrandbits(64):016x}" for _ in range(count)],
            "account_id": [self._plan.account] * count,
            "revision": ["42"] * count,
            "client_engine": ["javascript-sdk"] * count,
            "client_version": ["5.3.0"] * count,
        }
        revenue: list[int | None] = []
        if decisions:
            columns |= self._decision_columns(rng, count, name)
        else:
            revenue = [rng.randrange(100, 20_000) if name == "purchase" else None for _ in range(count)]
            columns |= self._event_columns(rng, count, name, revenue)
        schema = self._decisions if decisions else self._events
        arrays = [_column(self._arrow, columns[field.name], field.type) for field in schema]
        sink = self._arrow.BufferOutputStream()
        self._arrow.parquet.write_table(self._arrow.Table.from_arrays(arrays, schema=schema), sink, compression="snappy")
        return Part(key, sink.getvalue().to_pybytes(), count, sum(cents or 0 for cents in revenue))

    def _decision_columns(self, rng: random.Random, count: int, experiment: str) -> dict[str, Any]:
        return {
            "campaign_id": [str(int(experiment) + 1)] * count,
            "experiment_id": [experiment] * count,
            "variation_id": [str(int(experiment) + rng.choice((2, 3))) for _ in range(count)],
            "is_holdback": [rng.random() < 0.05 for _ in range(count)],
        }

    def _event_columns(self, rng: random.Random, count: int, name: str, revenue: list[int | None]) -> dict[str, Any]:
        bought = name == "purchase"
        return {
            "entity_id": [f"{20_000 + len(name)}"] * count,
            "event_type": ["custom" if name != "NULL" else "view_activated"] * count,
            "event_name": [None if name == "NULL" else name] * count,
            "revenue": revenue,
            "value": [rng.randrange(1000) / 8 if bought else None for _ in range(count)],
            "quantity": [rng.randint(1, 5) if bought else None for _ in range(count)],
            "tags": [[("category", rng.choice(("shoes", "hats")))] if rng.random() < 0.5 else [] for _ in range(count)],
        }

    def _pool(self) -> Any:
        """Return the visitors: the columns that all files share."""
        rng = random.Random(f"{self._plan.seed} visitors")  # noqa: S311 - reproducible on purpose
        fields = {field.name: field for schema in (self._decisions, self._events) for field in schema}
        experiment = [9_300_000_000 + 1117 * rng.randrange(max(1, self._plan.experiments)) for _ in range(POOL)]
        columns = {
            "visitor_id": [f"oeu{rng.randrange(10**12)}r0.{rng.randrange(10**15)}" for _ in range(POOL)],
            "attributes": [
                [{"id": "101", "name": "plan", "type": "custom", "value": rng.choice(("free", "paid"))}] * rng.randrange(3)
                for _ in range(POOL)
            ],
            "experiments": [
                [{"campaign_id": str(id_ + 1), "experiment_id": str(id_), "variation_id": str(id_ + 2), "is_holdback": False}]
                for id_ in experiment
            ],
            "user_ip": [f"198.51.100.{rng.randrange(256)}" for _ in range(POOL)],  # addresses for documentation, RFC 5737
            "user_agent": [rng.choice(BROWSERS) for _ in range(POOL)],
            "referer": [rng.choice((None, "https://shop.example/", "https://shop.example/cart")) for _ in range(POOL)],
        }
        schema = self._arrow.schema([fields[name] for name in columns])
        return self._arrow.table(columns, schema=schema)


def _column(arrow: Any, values: Any, kind: Any) -> Any:
    return values if isinstance(values, arrow.ChunkedArray) else arrow.array(values, kind)


def _schemas(arrow: Any) -> tuple[Any, Any]:
    """Return the columns of decisions and of events, in the order of real files."""
    text, moment = arrow.string(), arrow.timestamp("ms", tz="UTC")
    attributes = arrow.list_(arrow.struct([(name, text) for name in ("id", "name", "type", "value")]))
    names = ("campaign_id", "experiment_id", "variation_id")
    identity = [("uuid", text), ("timestamp", moment), ("process_timestamp", moment)]
    identity += [(name, text) for name in ("visitor_id", "session_id", "account_id")]
    client = [(name, text) for name in ("user_ip", "user_agent", "referer")]
    sender = [(name, text) for name in ("revision", "client_engine", "client_version")]
    experiments = arrow.list_(arrow.struct([*((name, text) for name in names), ("is_holdback", arrow.bool_())]))
    decisions = [*identity, *((name, text) for name in names), ("attributes", attributes), *client, ("is_holdback", arrow.bool_()), *sender]
    events = [*identity, ("experiments", experiments), ("entity_id", text), ("attributes", attributes), *client]
    events += [("event_type", text), ("event_name", text), ("revenue", arrow.int64()), ("value", arrow.float64())]
    events += [("quantity", arrow.int64()), ("tags", arrow.map_(text, text)), *sender]
    return arrow.schema(decisions), arrow.schema(events)
