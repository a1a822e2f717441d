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
from tfspark.records.errors import BadRecord, MalformedMessage
from tfspark.records.example import Feature, Kind, Record, RecordType, parse
from tfspark.records.files import ReadOptions, RecordFile, find, open_records, spread
from tfspark.records.framing import MAX_RECORD_BYTES, RecordReader
from tfspark.records.inference import Observer, Seen

SAMPLED_FILES = 16
SAMPLED_RECORDS = 1000
SHOWN_CHARACTERS = 60


def add_parser(verbs: Any) -> None:
    """Add the command ``records`` to the commands of ``tfspark``."""
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
        raise argparse.ArgumentTypeError(f"must be >= 1, got {n}")
    return n


def _record_type(text: str) -> RecordType:
    for t in RecordType:
        if t.value.lower() == text.lower():
            return t
    raise argparse.ArgumentTypeError(f"must be one of {', '.join(t.value for t in RecordType)}, got {text!r}")


def _files(options: argparse.Namespace) -> list[RecordFile]:
    files = [f for path in options.paths for f in find(path)]
    if not files:
        raise TFSparkError(f"{' '.join(options.paths)}: no files found")
    return files


def _read_options(options: argparse.Namespace) -> ReadOptions:
    return ReadOptions(not getattr(options, "no_verify_checksum", False), options.max_record_bytes)


@contextmanager
def _located(reader: RecordReader) -> Iterator[None]:
    """Add the file and the position to the error of a malformed message."""
    try:
        yield
    except MalformedMessage as e:
        raise reader.fault(e.message, e.hint) from e


class _BadFiles:
    """Collects the errors of bad files, so that the other files are still read."""

    def __init__(self) -> None:
        self.errors: list[tuple[RecordFile, TFSparkError]] = []

    @contextmanager
    def noting(self, file: RecordFile) -> Iterator[None]:
        """Collect the error of a file and continue."""
        try:
            yield
        except TFSparkError as e:
            self.errors.append((file, e))

    def plain(self) -> list[dict[str, Any]]:
        """Return the errors as values for JSON; ``record`` is None if the error is not about one record."""
        return [
            {"file": f.name, "record": e.record, "offset": e.offset, "reason": e.reason}
            if isinstance(e, BadRecord)
            else {"file": f.name, "record": None, "offset": None, "reason": e.message}
            for f, e in self.errors
        ]

    def complain(self) -> int:
        """Print the errors to standard error and return the exit code."""
        for _, e in self.errors:
            sys.stderr.write(f"tfspark: {e}\n")
        return 1 if self.errors else 0


def _schema(options: argparse.Namespace) -> int:
    observer = Observer()
    bad = _BadFiles()
    files = _files(options)
    for file in files if options.full else spread([f for f in files if f.size], options.files):
        with bad.noting(file), open_records(file, _read_options(options)) as reader:
            for data in itertools.islice(reader, None if options.full else options.records):
                with _located(reader):
                    observer.add(_parsed(data, options.record_type))
    types = _types(observer, options.record_type, bad)
    rows = [(name, types.get(name), observer.seen[name]) for name in sorted(observer.seen)]
    if options.json:
        features = [
            {"name": n, "type": t, "records": s.records, "fewest": s.fewest, "most": s.most} for n, t, s in rows
        ]
        struct = f"struct<{','.join(f'{n}:{t}' for n, t in types.items())}>"
        _json({"records": observer.records, "schema": struct, "features": features, "bad": bad.plain()})
    else:
        _table(
            ["feature", "Spark type", "records", "values", "for example"],
            [
                (n, t or "no list", _number(s.records), _range(s.fewest, s.most), _shorten(_shown(_example(s))))
                for n, t, s in rows
            ],
            f"{_number(observer.records)} records of {_number(len(files))} files",
        )
    return bad.complain()


def _parsed(data: bytes, record_type: RecordType) -> Record:
    """Parse a record; a ByteArray record becomes one feature."""
    if record_type is RecordType.BYTE_ARRAY:
        return Record({"byteArray": Feature(Kind.BYTES, [data])})
    return parse(data, record_type)


def _types(observer: Observer, record_type: RecordType, bad: _BadFiles) -> dict[str, str]:
    if record_type is RecordType.BYTE_ARRAY:
        return {"byteArray": "binary"}
    types = observer.types()
    if observer.records and not types and not bad.errors:
        others = "ByteArray" if record_type is RecordType.SEQUENCE_EXAMPLE else "SequenceExample or ByteArray"
        raise TFSparkError(
            f"None of {_number(observer.records)} records has a feature.", f"Try --record-type {others}."
        )
    return types


def _example(seen: Seen) -> Any:
    return None if seen.example is None else [_value(v) for v in seen.example]


def _head(options: argparse.Namespace) -> int:
    left = options.n
    bad = _BadFiles()
    for file in _files(options):
        if not left:
            break
        with bad.noting(file), open_records(file, _read_options(options)) as reader:
            for data in itertools.islice(reader, left):
                left -= 1
                with _located(reader):
                    record = _parsed(data, options.record_type)
                values: dict[str, Any] = {n: _plain(f) for n, f in record.features.items()}
                values |= {n: [_plain(f) for f in fs] for n, fs in record.lists.items()}
                if options.record_type is RecordType.BYTE_ARRAY:
                    values = {"byteArray": _value(data)}
                if options.json:
                    _json(values)
                else:
                    rows = [(n, _shorten(_shown(values[n]))) for n in sorted(values)]
                    title = f"{file.name}, record {_number(reader.record)}, {_number(len(data))} bytes"
                    _table(["feature", "values"], rows, title)
    return bad.complain()


def _count(options: argparse.Namespace) -> int:
    counts = []
    bad = _BadFiles()
    for file in _files(options):
        with bad.noting(file), open_records(file, _read_options(options)) as reader:
            while reader.skip():
                pass
            counts.append((file, reader.record))
    total = sum(n for _, n in counts)
    if options.json:
        found = [{"file": f.name, "records": n, "bytes": f.size} for f, n in counts]
        _json({"records": total, "files": found, "bad": bad.plain()})
    else:
        rows = [(f.name, _number(n), _number(f.size)) for f, n in counts]
        _table(["file", "records", "bytes"], rows, f"{_number(total)} records in {_number(len(counts))} files")
    return bad.complain()


def _verify(options: argparse.Namespace) -> int:
    bad = _BadFiles()
    records = nbytes = 0
    files = _files(options)
    for file in files:
        with bad.noting(file), open_records(file, _read_options(options)) as reader:
            for data in reader:
                with _located(reader):
                    parse(data, options.record_type)
                records += 1
                nbytes += len(data)
    faults = bad.plain()
    if options.json:
        _json({"files": len(files), "records": records, "bytes": nbytes, "bad": faults})
    else:
        if faults:
            rows = [(f["file"], _optional(f["record"]), _optional(f["offset"]), f["reason"]) for f in faults]
            _table(["file", "record", "offset", "what is wrong"], rows, "The first bad record of each bad file")
        said = f"{_number(records)} records ({_number(nbytes)} bytes) of {_number(len(files))} files are good"
        _console().print(said, highlight=False)
    return 1 if faults else 0


def _number(n: int) -> str:
    """Format a number: with separators in a terminal, plain elsewhere."""
    return f"{n:,}" if sys.stdout.isatty() else str(n)


def _optional(n: int | None) -> str:
    return "" if n is None else str(n)


def _plain(feature: Feature) -> Any:
    return None if feature.kind is None else [_value(v) for v in feature.values]


def _value(v: Any) -> Any:
    """Return a value for JSON: bytes that are not UTF-8 as base64, NaN and infinities by name."""
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
        return f"<{_number(len(base64.b64decode(values['base64'])))} bytes>"
    return repr(values)


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _range(fewest: int | None, most: int) -> str:
    return "" if fewest is None else str(most) if fewest == most else f"{fewest} to {most}"


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def _console() -> Any:
    from rich.console import Console

    # Lines are not wrapped if the output is not a terminal.
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000, highlight=False)


def _printable(cell: str) -> str:
    """Escape line breaks, tabs and terminal control characters, because names come from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cell)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = [[_printable(cell) for cell in row] for row in rows]
    title = _printable(title)
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
