"""``tfspark records``: look at TFRecord files without Spark and without TensorFlow."""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tfspark.errors import TFSparkError
from tfspark.records.example import Feature, RecordType, parse
from tfspark.records.faults import BadRecord, MalformedMessage
from tfspark.records.files import ReadOptions, RecordFile, find, open_records, spread
from tfspark.records.framing import MAX_RECORD_BYTES, RecordReader
from tfspark.records.inference import Observer

SAMPLED_FILES = 16
SAMPLED_RECORDS = 1000
SHOWN_CHARACTERS = 60


def add_parser(verbs: Any) -> None:
    """Add the command to those of ``tfspark``."""
    parser = verbs.add_parser(
        "records",
        help="schema, head, count and verify of TFRecord files, without Spark",
        description="Look at TFRecord files. PATH is a file, a directory, a glob, or a URI of any of these.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("paths", nargs="+", metavar="PATH")
    common.add_argument("--json", action="store_true", help="print JSON for programs")
    common.add_argument("--max-record-bytes", type=_positive, default=MAX_RECORD_BYTES, metavar="N")
    typed = argparse.ArgumentParser(add_help=False)
    typed.add_argument("--record-type", type=_record_type, default=RecordType.EXAMPLE, metavar="TYPE")
    typed.add_argument("--no-verify-checksum", action="store_true", help="do not check the CRC of the data")

    schema = actions.add_parser("schema", parents=[common, typed], help="features, their Spark types, how many values")
    schema.add_argument("--files", type=_positive, default=SAMPLED_FILES, help="files to look at, evenly spread")
    schema.add_argument("--records", type=_positive, default=SAMPLED_RECORDS, help="records to look at in each")
    schema.add_argument("--full", action="store_true", help="look at all records of all files")
    schema.set_defaults(run=_schema)
    head = actions.add_parser("head", parents=[common, typed], help="the first records")
    head.add_argument("-n", type=_positive, default=5, metavar="N", help="how many; 5 by default")
    head.set_defaults(run=_head)
    actions.add_parser("count", parents=[common], help="the number of records").set_defaults(run=_count)
    verify = actions.add_parser("verify", parents=[common, typed], help="read everything; name the first bad records")
    verify.set_defaults(run=_verify)


def _positive(text: str) -> int:
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {n}")
    return n


def _record_type(text: str) -> RecordType:
    for t in RecordType:
        if t.value.lower() == text.lower():
            return t
    raise argparse.ArgumentTypeError(f"must be one of {', '.join(t.value for t in RecordType)}, not {text!r}")


def _files(options: argparse.Namespace) -> list[RecordFile]:
    files = [f for path in options.paths for f in find(path)]
    if not files:
        raise TFSparkError(f"{' '.join(options.paths)}: there are no files")
    return files


def _read_options(options: argparse.Namespace) -> ReadOptions:
    return ReadOptions(not getattr(options, "no_verify_checksum", False), options.max_record_bytes)


@contextmanager
def _located(reader: RecordReader) -> Iterator[None]:
    """Add to what is wrong with a message where it is."""
    try:
        yield
    except MalformedMessage as e:
        raise reader.fault(e.message, e.hint) from e


def _schema(options: argparse.Namespace) -> int:
    observer = Observer()
    files = _files(options)
    for file in files if options.full else spread([f for f in files if f.size], options.files):
        with open_records(file, _read_options(options)) as reader:
            for data in itertools.islice(reader, None if options.full else options.records):
                with _located(reader):
                    observer.add(parse(data, options.record_type))
    types = observer.types()
    rows = [(name, types.get(name), observer.seen[name]) for name in sorted(observer.seen)]
    if options.json:
        features = [
            {"name": n, "type": t, "records": s.records, "fewest": s.fewest, "most": s.most} for n, t, s in rows
        ]
        struct = f"struct<{','.join(f'{n}:{t}' for n, t in types.items())}>"
        _json({"records": observer.records, "schema": struct, "features": features})
    else:
        _table(
            ["feature", "Spark type", "records", "values", "for example"],
            [
                (n, t or "no list", f"{s.records:,}", _range(s.fewest, s.most), _shorten(_shown(s.example)))
                for n, t, s in rows
            ],
            f"{observer.records:,} records of {len(files):,} files",
        )
    return 0


def _head(options: argparse.Namespace) -> int:
    left = options.n
    for file in _files(options):
        if not left:
            break
        with open_records(file, _read_options(options)) as reader:
            for data in itertools.islice(reader, left):
                left -= 1
                with _located(reader):
                    record = parse(data, options.record_type)
                values: dict[str, Any] = {n: _plain(f) for n, f in record.features.items()}
                values |= {n: [_plain(f) for f in fs] for n, fs in record.lists.items()}
                if options.record_type is RecordType.BYTE_ARRAY:
                    values = {"byteArray": _value(data)}
                if options.json:
                    _json(values)
                else:
                    rows = [(n, _shorten(_shown(values[n]))) for n in sorted(values)]
                    _table(["feature", "values"], rows, f"{file.name}, record {reader.record}, {len(data):,} bytes")
    return 0


def _count(options: argparse.Namespace) -> int:
    counts = []
    for file in _files(options):
        with open_records(file, _read_options(options)) as reader:
            while reader.skip():
                pass
            counts.append((file, reader.record))
    total = sum(n for _, n in counts)
    if options.json:
        _json({"records": total, "files": [{"file": f.name, "records": n, "bytes": f.size} for f, n in counts]})
    else:
        rows = [(f.name, f"{n:,}", f"{f.size:,}") for f, n in counts]
        _table(["file", "records", "bytes"], rows, f"{total:,} records in {len(counts):,} files")
    return 0


def _verify(options: argparse.Namespace) -> int:
    bad: list[BadRecord] = []
    records = nbytes = 0
    files = _files(options)
    for file in files:
        try:
            with open_records(file, _read_options(options)) as reader:
                for data in reader:
                    with _located(reader):
                        parse(data, options.record_type)
                    records += 1
                    nbytes += len(data)
        except BadRecord as e:
            bad.append(e)
    if options.json:
        faults = [{"file": e.path, "record": e.record, "offset": e.offset, "reason": e.reason} for e in bad]
        _json({"files": len(files), "records": records, "bytes": nbytes, "bad": faults})
    else:
        if bad:
            rows = [(e.path, str(e.record), str(e.offset), e.reason) for e in bad]
            _table(["file", "record", "offset", "what is wrong"], rows, "The first bad record of each bad file")
        _console().print(f"{records:,} records ({nbytes:,} bytes) of {len(files):,} files are good", highlight=False)
    return 1 if bad else 0


def _plain(feature: Feature) -> Any:
    return None if feature.kind is None else [_value(v) for v in feature.values]


def _value(v: Any) -> Any:
    """Return what JSON can hold: bytes that are no text as base64, floats that are no numbers as their names."""
    if isinstance(v, bytes):
        try:
            return v.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(v).decode()}
    if isinstance(v, float) and not math.isfinite(v):
        return "NaN" if math.isnan(v) else "Infinity" if v > 0 else "-Infinity"
    return v


def _shown(values: Any) -> str:
    if values is None:
        return ""
    if isinstance(values, list):
        return "[" + ", ".join(_shown(v) for v in values[:20]) + (", ..." if len(values) > 20 else "") + "]"
    if isinstance(values, dict):
        return f"<{len(values['base64']) * 3 // 4} bytes>"
    return repr(_value(values) if isinstance(values, bytes) else values)


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _range(fewest: int | None, most: int) -> str:
    return "" if fewest is None else str(most) if fewest == most else f"{fewest} to {most}"


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def _console() -> Any:
    from rich.console import Console

    # Where nobody looks, lines are not folded.
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000, highlight=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    if not sys.stdout.isatty():
        for row in [header, *rows]:
            sys.stdout.write("\t".join(row) + "\n")
        sys.stdout.write(f"# {title}\n")
        return
    table = Table(title=Text(title), title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    _console().print(table)
