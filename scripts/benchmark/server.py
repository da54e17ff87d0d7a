"""The embedded services with the benchmark's data, as a process of their own, which shares no interpreter with what is measured.

    python -m benchmark.server --folder DIR --latency SECONDS --rate BYTES [--objects N]

Prints one line of JSON with the addresses and the token when it is ready, answers each line on standard input with the counts of requests
since the last one, and ends when standard input ends.

The data, below account 123's prefix:

- `type=events/date=2026-11-01/event=big/`: one file of 1 GiB
- `type=events/date=2026-11-01/event=par8/`: 8 files of 256 MiB
- `type=events/date=2026-11-02/event=small/`: 1000 files of 1 MiB
- `type=events/date=2026-11-03/event=wide/`: 10,000 files of 100 bytes
- `type=events/date=2026-11-04/event=purchase/`: 100 Parquet files
- `type=events/date=2026-11-05/event=purchase/`: 24 Parquet files of 32 MB
- `type=decisions/date=*/experiment=*/`: 365 days × 20 experiments × 2 files

With `--objects`, instead of all that, N small files in 500 days × 20 experiments.
"""

import argparse
import datetime
import json
import os
import sys
from collections import Counter
from pathlib import Path

from optfs.demo.services import Services
from optfs.values import MiB

SIZES = {"big": 1024 * MiB, "par8": 256 * MiB, "small": MiB}


def random_file(path: Path, size: int) -> Path:
    """Write a file that doesn't compress, from a seed of 4 MiB and a byte that is turned by 4099 bytes each time."""
    seed = os.urandom(4 * MiB + 1)
    with open(path, "wb") as file:
        left = size
        turn = 0
        while left > 0:
            turn = (turn + 4099) % (4 * MiB)
            file.write((seed[turn:] + seed[:turn])[: min(left, 4 * MiB)])
            left -= 4 * MiB
    return path


def parquet_files(folder: Path, count: int) -> list[Path]:
    """Write files of events, about 1 MiB each, with the columns that an analyst sums."""
    import numpy  # noqa: PLC0415 - only the server needs these
    import pyarrow  # noqa: PLC0415 - as above
    import pyarrow.parquet  # noqa: PLC0415 - as above

    dice = numpy.random.default_rng(1)
    paths = []
    for number in range(count):
        rows = 12_000
        table = pyarrow.table(
            {
                "uuid": [dice.bytes(16).hex() for _ in range(rows)],
                "visitor_id": [dice.bytes(8).hex() for _ in range(rows)],
                "revenue": dice.integers(100, 50_000, rows),
                "value": dice.random(rows),
                "user_agent": [dice.bytes(20).hex() for _ in range(rows)],
            }
        )
        paths.append(folder / f"columns-{number}.parquet")
        pyarrow.parquet.write_table(table, paths[-1], compression="snappy")
    return paths


def large_parquet_file(folder: Path) -> Path:
    """Write a file of 32 MB in one row group: ten columns of 3.2 MB, as far as numbers that don't compress can be events."""
    import numpy  # noqa: PLC0415 - only the server needs these
    import pyarrow  # noqa: PLC0415 - as above
    import pyarrow.parquet  # noqa: PLC0415 - as above

    dice = numpy.random.default_rng(2)
    names = ["uuid", "visitor_id", "session_id", "revenue", "value", "quantity", "timestamp", "process_timestamp", "ip", "tag"]
    table = pyarrow.table({name: dice.random(400_000) for name in names})
    path = folder / "large.parquet"
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False, row_group_size=400_000)
    return path


def fill(services: Services, folder: Path) -> None:
    """Put the data into both buckets."""
    big = random_file(folder / "big", SIZES["big"])
    wide = random_file(folder / "par8", SIZES["par8"])
    small = random_file(folder / "small", SIZES["small"])
    services.put("type=events/date=2026-11-01/event=big/part-0.parquet", big)
    for number in range(8):
        services.put(f"type=events/date=2026-11-01/event=par8/part-{number}.parquet", wide)
    for number in range(1000):
        services.put(f"type=events/date=2026-11-02/event=small/part-{number:04}.parquet", small)
    for number in range(10_000):
        services.put(f"type=events/date=2026-11-03/event=wide/part-{number:05}.parquet", bytes(100))
    for number, path in enumerate(parquet_files(folder, 100)):
        services.put(f"type=events/date=2026-11-04/event=purchase/part-{number:03}.parquet", path)
    large = large_parquet_file(folder)
    for number in range(24):
        services.put(f"type=events/date=2026-11-05/event=purchase/part-{number:03}.parquet", large)
    first = datetime.date(2025, 11, 1)
    for day in range(365):
        date = first + datetime.timedelta(days=day)
        for experiment in range(20):
            for part in range(2):
                services.put(f"type=decisions/date={date}/experiment={9000 + experiment}/part-{part}.parquet", b"0123456789")
        services.put(f"type=decisions/date={date}/_SUCCESS", b"")


def fill_with_many(services: Services, count: int) -> None:
    """Put `count` small objects into S3's bucket, evenly below 500 days × 20 experiments."""
    first = datetime.date(2025, 1, 1)
    for day in range(500):
        for experiment in range(20):
            folder = f"type=decisions/date={first + datetime.timedelta(days=day)}/experiment={9000 + experiment}"
            for part in range(count // 10_000):
                services.put(f"{folder}/part-{part:05}-8d4a1211-90b6-afe6-f263-4ad0ee559c8d.c000.snappy.parquet", b"0123456789")


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--rate", type=int, default=80_000_000)
    parser.add_argument("--objects", type=int, default=0)
    arguments = parser.parse_args()
    services = Services(account="123", gcs=not arguments.objects, latency=arguments.latency, rate=arguments.rate or None, strict=False)
    if arguments.objects:
        fill_with_many(services, arguments.objects)
    else:
        fill(services, arguments.folder)
    with services:
        keys = services.static_keys()
        addresses = {
            "api": services.api_url,
            "s3": services.s3_url,
            "gcs": services.gcs_url,
            "token": services.token,
            "access_key": keys.access_key,
            "secret_key": keys.secret_key,
        }
        print(json.dumps(addresses), flush=True)
        for _ in sys.stdin:
            counts = Counter(entry.kind for entry in services.requests.entries())
            services.requests.clear()
            print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
