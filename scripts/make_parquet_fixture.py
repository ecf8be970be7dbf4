#!/usr/bin/env python3
"""Parquet files as pyarrow writes them, and their rows as they are to be read.

  python make_parquet_fixture.py [--dir fixtures/parquet]        (needs pyarrow; made with 26.0)

rows.zstd.parquet, rows.snappy.parquet and rows.lz4.parquet hold the same table of all kinds of columns, in several row
groups; rows.jsonl is what each row is in JSON.
"""

import argparse
import datetime
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

NUM_ROWS = 7


def cells(row):
    """A row's values, and what they are in JSON."""
    day = datetime.datetime(2024, 2, 29, 13, 5, row, tzinfo=datetime.timezone.utc)
    has_value = row % 3 != 1
    messages = [{"role": "user", "content": f"Frage {row}: wie heißt das? 🐟"}] * (row % 3)
    yield "id", pa.string(), f"r{row}", f"r{row}"
    yield "question", pa.large_string(), f"Why\n{row}?", f"Why\n{row}?"
    yield "choices", pa.list_(pa.string()), [f"a{row}", "b"][: row % 3], [f"a{row}", "b"][: row % 3]
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    yield "messages", turns, messages, messages
    yield "answer", pa.int64(), 2**53 + row if has_value else None, 2**53 + row if has_value else None
    yield "small", pa.int8(), -row, -row
    yield "unsigned", pa.uint64(), 2**64 - 1 - row, 2**64 - 1 - row
    yield "score", pa.float64(), row / 7, row / 7
    yield "weight", pa.float32(), 0.1, 0.1
    yield "nan", pa.float64(), float("nan"), None
    yield "is_easy", pa.bool_(), row % 2 == 0, row % 2 == 0
    yield "label", pa.dictionary(pa.int32(), pa.string()), "yn"[row % 2], "yn"[row % 2]
    yield "price", pa.decimal128(9, 2), decimal.Decimal(f"{row}.50"), f"{row}.50"
    yield "picture", pa.binary(), bytes([255, row]), ["/wA=", "/wE=", "/wI=", "/wM=", "/wQ=", "/wU=", "/wY="][row]
    yield "day", pa.date32(), day.date(), "2024-02-29"
    yield "time", pa.timestamp("ms", tz="UTC"), day, f"2024-02-29 13:05:0{row}.000 +00:00"
    nested = {"source": {"name": "x", "page": row}} if has_value else None
    kind = pa.struct([("source", pa.struct([("name", pa.string()), ("page", pa.int32())]))])
    yield "meta", kind, nested, nested


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(__file__).parent.parent / "fixtures/parquet")
    folder = parser.parse_args().dir
    rows = [list(cells(row)) for row in range(NUM_ROWS)]
    columns = [
        pa.array([row[place][2] for row in rows], type=kind) for place, (_, kind, *_) in enumerate(rows[0])
    ]
    table = pa.table(columns, names=[name for name, *_ in rows[0]])
    for codec in ["zstd", "snappy", "lz4"]:
        pq.write_table(table, folder / f"rows.{codec}.parquet", compression=codec, row_group_size=3)
    lines = (json.dumps({name: json_value for name, _, _, json_value in row}, ensure_ascii=False) for row in rows)
    (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
