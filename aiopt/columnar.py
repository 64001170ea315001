"""The runs of a log as columns: what re-scoring and notebooks read in place of a million events.

`Gathering` makes them of the events in order, without classes: it reads the few fields that it
needs. `Columns` is what came of it: per run the metrics and small whole numbers, per experiment
what rankings and decisions need. Whatever a fold would refuse or treat in a way of its own, a
`Gathering` refuses with `Unprojectable`; the fold of the events then says what is wrong.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt
import orjson
from attrs import Factory, define, field, frozen

from aiopt.events import ExperimentOutcome, ExperimentPurpose, PairPurpose, PatchRef, VerdictKind
from aiopt.genome import change_name
from aiopt.stats import Floats, Ints

__all__ = [
    "CHUNK",
    "EXPERIMENT",
    "GATES",
    "NEEDED",
    "OUTCOMES",
    "PAIR_PURPOSES",
    "PURPOSES",
    "RUN",
    "TEXTS",
    "VERDICTS",
    "VOID",
    "Chunk",
    "Columns",
    "Gathering",
    "Memo",
    "Names",
    "Tables",
    "TablesInMemory",
    "Unprojectable",
    "joined",
    "made_now",
]

Records = npt.NDArray[np.void]

CHUNK = 4096
"""Runs of a chunk that is full; it never changes then."""

PAIR_PURPOSES: tuple[str, ...] = get_args(PairPurpose)
PURPOSES: tuple[str, ...] = get_args(ExperimentPurpose)
VERDICTS: tuple[str, ...] = get_args(VerdictKind)
OUTCOMES: tuple[str, ...] = get_args(ExperimentOutcome)
GATES = ("", "invalid", "no_change")
"""What a gate has settled before anything was measured."""

RUN: Mapping[str, np.dtype[Any]] = {
    "experiment": np.dtype("<i4"),
    "index": np.dtype("<i4"),
    "attempt": np.dtype("<i4"),
    "answers": np.dtype("<i4"),
    "workload": np.dtype("<i2"),
    "purpose": np.dtype("i1"),
    "arm": np.dtype("i1"),
    "position": np.dtype("i1"),
    "several": np.dtype("i1"),
}
"""Beside its metrics: experiment and workload by their places in the tables of `Columns`, purpose
by its place in PAIR_PURPOSES, arm 0 for A and 1 for B. Equal `answers` mean equal texts; `several`
is 1 if a metric is the median of more than one sample.
"""

EXPERIMENT = np.dtype(
    [
        ("campaign", "<i4"),
        ("purpose", "<i4"),
        ("number", "<i8"),
        ("candidate", "<i4"),
        ("incumbent", "<i4"),
        ("gate", "<i4"),
        ("verdict", "<i4"),
        ("verdict_seq", "<i8"),
        ("calibration", "<i4"),
        ("ordinal", "<i4"),
        ("outcome", "<i4"),
    ]
)
"""Places in tables, as above; -1: none yet. `calibration` is what it was charged with: -1 if it was
not charged, -2 if with none of its campaign. `ordinal` is of its first charge, else 0.
"""

TEXTS = ("stream", "patch", "reason")
"""Names of an experiment; the reason is that of an invalid verdict, else empty."""

VOID = ("experiment", "purpose", "workload", "index", "attempt")
"""What says which pair was voided."""

NEEDED = (
    "ArtifactBuilt",
    "CampaignStarted",
    "ExperimentFinished",
    "ExperimentStarted",
    "IncumbentChanged",
    "GateFailed",
    "LevelCharged",
    "PairVoided",
    "RunMeasured",
    "VerdictReached",
)
"""The types of events that are read."""


class Unprojectable(Exception):
    """The events are not such as a campaign writes: only the fold can tell what they mean."""


@frozen(kw_only=True)
class Chunk:
    """Some runs, one after the other."""

    metrics: tuple[str, ...]
    values: Floats
    """(metrics, runs): medians of the samples; NaN where there are none."""
    runs: Mapping[str, npt.NDArray[Any]]
    """By the names of RUN, one value a run."""

    def __len__(self) -> int:
        return int(self.values.shape[1])

    def metric(self, name: str) -> Floats:
        """One value a run; NaN where it was not measured."""
        if name not in self.metrics:
            return np.full(len(self), np.nan)
        found: Floats = self.values[self.metrics.index(name)]
        return found


def joined(first: Chunk | None, second: Chunk) -> Chunk:
    """The runs of both, with the metrics of both."""
    if first is None:
        return second
    names = tuple(dict.fromkeys((*first.metrics, *second.metrics)))
    values = np.empty((len(names), len(first) + len(second)))
    for row, name in zip(values, names, strict=True):
        np.concatenate([first.metric(name), second.metric(name)], out=row)
    runs = {name: np.concatenate([first.runs[name], second.runs[name]]) for name in RUN}
    return Chunk(metrics=names, values=values, runs=runs)


@define
class Names:
    """Texts by number, in the order in which they came up."""

    texts: list[str] = Factory(list)
    _places: dict[str, int] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._places = {text: place for place, text in enumerate(self.texts)}

    def known(self, text: str) -> int | None:
        """Its place; None: it has not come up."""
        return self._places.get(text)

    def place(self, text: str) -> int:
        """Of a text that may be new."""
        found = self._places.get(text)
        if found is None:
            found = self._places[text] = len(self.texts)
            self.texts.append(text)
        return found


Memo = Callable[[str, Callable[[], npt.NDArray[Any]]], npt.NDArray[Any]]
"""Gives the array of a name: as it was made before of the same log, or made now."""


def made_now(name: str, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """A memo that keeps nothing."""
    return make()


class Tables(Protocol):
    """What is there once an experiment, and not once a run."""

    @property
    def candidates(self) -> Sequence[str]:
        """See `Columns`, here and below."""
        ...

    @property
    def experiments(self) -> Records: ...

    @property
    def texts(self) -> Mapping[str, Sequence[str]]: ...


@frozen(kw_only=True)
class TablesInMemory:
    """See `Tables`."""

    candidates: Sequence[str]
    experiments: Records
    texts: Mapping[str, Sequence[str]]


@frozen(kw_only=True)
class Columns:
    """The runs and experiments of a log, up to the event `last_seq`."""

    last_seq: int
    chunks: tuple[Chunk, ...]
    workloads: tuple[str, ...]
    campaigns: tuple[str, ...]
    """Their streams, in order."""
    began: tuple[int, ...]
    """The `seq` of each campaign's first event."""
    voids: Ints
    """(pairs that do not count, 5), with the columns VOID."""
    tables: Tables
    memo: Memo = made_now
    """For what takes long and depends on nothing but the log."""

    @property
    def candidates(self) -> Sequence[str]:
        """Ids of candidates and incumbents."""
        return self.tables.candidates

    @property
    def experiments(self) -> Records:
        """One record an experiment, of the type EXPERIMENT, in the order in which they began."""
        return self.tables.experiments

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        """By the names of TEXTS, one an experiment."""
        return self.tables.texts

    def __len__(self) -> int:
        """How many runs."""
        return sum(map(len, self.chunks))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that any run has, in the order in which they came up."""
        return tuple(dict.fromkeys(name for chunk in self.chunks for name in chunk.metrics))

    def run(self, name: str) -> npt.NDArray[Any]:
        """One of the columns RUN, of all runs."""
        parts = [chunk.runs[name] for chunk in self.chunks]
        return np.concatenate(parts) if parts else np.empty(0, RUN[name])

    def logs(self, metric: str) -> Floats:
        """Natural logarithms of a metric of all runs; NaN where it is not above 0, or was not
        measured.

        They are those of `math.log`: numpy's may differ in the last digit, from one machine to the
        next too.
        """

        def make() -> Floats:
            values = self[metric]
            positive = values > 0
            safe = np.where(positive, values, 1.0).tolist()
            found = np.fromiter(map(math.log, safe), np.float64, values.size)
            found[~positive] = np.nan
            return found

        found: Floats = self.memo(f"logarithms of {metric}", make)
        return found

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """A metric of all runs, or one of the columns RUN.

        Raises:
            KeyError: no run has it.
        """
        if name in RUN:
            return self.run(name)
        if name not in self.metrics:
            raise KeyError(f"{name!r}; there are {', '.join((*RUN, *self.metrics))}")
        return np.concatenate([chunk.metric(name) for chunk in self.chunks])

    def weighted(self, weights: Mapping[str, float]) -> Floats:
        """The weighted sum of metrics, of every run: a product of matrices, chunk by chunk."""
        found = np.empty(len(self))
        names, vector, at = tuple(weights), np.array([*weights.values()]), 0
        for chunk in self.chunks:
            if names == chunk.metrics:
                values = chunk.values
            else:
                values = np.array([chunk.metric(name) for name in weights])
            end = at + values.shape[1]
            np.dot(vector, values, out=found[at:end])
            at = end
        return found

    def voided(self) -> npt.NDArray[np.bool_]:
        """Of every run whether its pair does not count."""
        if not len(self.voids):
            return np.zeros(len(self), dtype=np.bool_)
        keys = np.column_stack([self.run(name) for name in VOID]).astype(np.int64)
        kind = np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))
        found: npt.NDArray[np.bool_] = np.isin(
            np.ascontiguousarray(keys).view(kind).ravel(),
            np.ascontiguousarray(self.voids).view(kind).ravel(),
        )
        return found

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each run; names are categories.

        Raises:
            PrerequisiteError: pandas is not installed.
        """
        from aiopt.frames import to_pandas

        return to_pandas(self)

    def to_polars(self) -> Any:
        """A DataFrame with a row for each run.

        Raises:
            PrerequisiteError: polars is not installed.
        """
        from aiopt.frames import to_polars

        return to_polars(self)

    def to_arrow(self) -> Any:
        """A Table with a row for each run; names are dictionaries.

        Raises:
            PrerequisiteError: pyarrow is not installed.
        """
        from aiopt.frames import to_arrow

        return to_arrow(self)


# ---- from events ----


def _code(values: Sequence[str], text: str) -> int:
    try:
        return values.index(text)
    except ValueError:
        raise Unprojectable(f"{text!r} is none of {', '.join(values)}") from None


@define
class Gathering:
    """Columns in the making; events are added in the order of the log."""

    last_seq: int = 0
    workloads: Names = Factory(Names)
    answers: Names = Factory(Names)
    campaigns: Names = Factory(Names)
    began: list[int] = Factory(list)
    candidates: Names = Factory(Names)
    streams: Names = Factory(Names)
    experiments: list[list[int]] = Factory(list)
    """Per experiment the fields of EXPERIMENT."""
    patches: list[str] = Factory(list)
    genomes: dict[str, list[dict[str, str]]] = Factory(dict)
    """The patches of candidates that became the incumbent."""
    reasons: list[str] = Factory(list)
    voids: list[tuple[int, ...]] = Factory(list)
    sealed: list[Chunk] = Factory(list)
    """Chunks that became full."""
    tail: Chunk | None = None
    """Runs after those of the sealed chunks, but for the latest."""
    touched: set[int] = Factory(set)
    """Experiments that changed; whoever stores them empties it."""
    _room: int = field(init=False, default=CHUNK)
    _runs: list[tuple[int, ...]] = field(init=False, factory=list)
    _keys: list[tuple[str, ...]] = field(init=False, factory=list)
    _values: list[float] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self._room = CHUNK - (len(self.tail) if self.tail is not None else 0)

    def add(self, seq: int, stream: str, type_name: str, payload: bytes | str) -> None:
        """One event of the types NEEDED, whose payload has the current version.

        Raises:
            Unprojectable: see there.
        """
        try:
            event = orjson.loads(payload)
            place = self.streams.known(stream)
            if type_name == "RunMeasured":
                if place is not None:
                    self._run(place, event)
            else:
                self._add(seq, stream, place, type_name, event)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Unprojectable(f"seq {seq}, {type_name}: {error!r}") from error

    def _add(
        self, seq: int, stream: str, place: int | None, type_name: str, event: dict[str, Any]
    ) -> None:
        if place is not None:
            self.touched.add(place)
            self._of_experiment(seq, place, type_name, event)
        elif type_name == "ExperimentStarted":
            self._begin(stream, event)
        elif type_name == "CampaignStarted":
            if self.campaigns.known(stream) is not None:
                raise Unprojectable(f"seq {seq}: {stream} begins twice")
            self.campaigns.place(stream)
            self.began.append(seq)
        elif type_name == "IncumbentChanged":
            self.genomes[event["candidate"]] = event["genome"]
        elif type_name not in NEEDED:
            raise Unprojectable(f"seq {seq}: {type_name} is unknown")

    def _run(self, place: int, event: dict[str, Any]) -> None:
        metrics: dict[str, list[float]] = event["metrics"]
        try:
            values, several = [sample for (sample,) in metrics.values()], 0
        except ValueError:  # none, or more than one
            values = [median(samples) if samples else math.nan for samples in metrics.values()]
            several = 1
        self._values += values
        texts = event["texts"]
        answers = orjson.dumps(texts, option=orjson.OPT_SORT_KEYS).decode() if texts else ""
        self._keys.append((*metrics,))
        self._runs.append(
            (
                place,
                event["index"],
                event["attempt"],
                self.answers.place(answers),
                self.workloads.place(event["workload"]),
                _PURPOSE[event["purpose"]],
                _ARM[event["arm"]],
                event["position"],
                several,
            )
        )
        if len(self._runs) == self._room:
            self.settle()
            assert self.tail is not None
            self.sealed.append(self.tail)
            self.tail, self._room = None, CHUNK

    def settle(self) -> None:
        """Make `tail` hold the latest runs, too."""
        if not self._runs:
            return
        fresh = _packed(self._runs, self._keys, self._values)
        self.tail = joined(self.tail, fresh)
        self._room = CHUNK - len(self.tail)
        self._runs, self._keys, self._values = [], [], []

    def _begin(self, stream: str, event: dict[str, Any]) -> None:
        campaign = self.campaigns.known(event["campaign"])
        if campaign is None or self.campaigns.known(stream) is not None:
            raise Unprojectable(f"{stream} begins twice, or in no campaign")
        place = self.streams.place(stream)
        self.experiments.append(
            [
                campaign,
                _code(PURPOSES, event["purpose"]),
                event["number"],
                self.candidates.place(event["candidate"]),
                self.candidates.place(event["incumbent"]),
                *(0, -1, 0, -1, 0, -1),
            ]
        )
        before, after = self.genomes.get(event["incumbent"], []), event["genome"]
        self.patches.append(change_name(*([PatchRef(**p) for p in g] for g in (before, after))))
        self.reasons.append("")
        self.touched.add(place)

    def _of_experiment(self, seq: int, place: int, type_name: str, event: dict[str, Any]) -> None:
        row = self.experiments[place]
        match type_name:
            case "PairVoided":
                workload = self.workloads.place(event["workload"])
                purpose = _code(PAIR_PURPOSES, event["purpose"])
                self.voids.append((place, purpose, workload, event["index"], event["attempt"]))
            case "GateFailed":
                row[_GATE] = row[_GATE] or GATES.index("invalid")
            case "ArtifactBuilt":
                if event["digest"] == event["incumbent_digest"]:
                    row[_GATE] = row[_GATE] or GATES.index("no_change")
            case "LevelCharged":
                row[_CALIBRATION] = self._charged(row, event["calibration"])
                row[_ORDINAL] = row[_ORDINAL] or event["ordinal"]
            case "VerdictReached":
                row[_VERDICT], row[_VERDICT_SEQ] = _code(VERDICTS, event["kind"]), seq
                self.reasons[place] = event["reason"] if event["kind"] == "invalid" else ""
            case "ExperimentFinished":
                row[_OUTCOME] = _code(OUTCOMES, event["outcome"])
            case _:
                raise Unprojectable(f"seq {seq}: {type_name} in the stream of an experiment")

    def _charged(self, row: Sequence[int], stream: str) -> int:
        place = self.streams.known(stream)
        if place is None:
            if stream:
                raise Unprojectable(f"charged with {stream}, which has not begun")
            return -2
        return place if self.experiments[place][_CAMPAIGN] == row[_CAMPAIGN] else -2

    def records(self, places: slice = slice(None)) -> Records:
        """Of the type EXPERIMENT."""
        return np.array([tuple(row) for row in self.experiments[places]], dtype=EXPERIMENT)

    def columns(self) -> Columns:
        """What there is so far."""
        self.settle()
        return Columns(
            last_seq=self.last_seq,
            chunks=(*self.sealed, *([self.tail] if self.tail is not None else [])),
            workloads=tuple(self.workloads.texts),
            campaigns=tuple(self.campaigns.texts),
            began=tuple(self.began),
            voids=np.array(self.voids, dtype=np.int64).reshape(-1, len(VOID)),
            tables=TablesInMemory(
                candidates=tuple(self.candidates.texts),
                experiments=self.records(),
                texts=dict(
                    zip(TEXTS, (self.streams.texts, self.patches, self.reasons), strict=True)
                ),
            ),
        )


_PURPOSE = {name: place for place, name in enumerate(PAIR_PURPOSES)}
_ARM = {"A": 0, "B": 1}
_FIELDS: tuple[str, ...] = EXPERIMENT.names or ()
_CAMPAIGN, _GATE, _VERDICT, _VERDICT_SEQ, _CALIBRATION, _ORDINAL, _OUTCOME = map(
    _FIELDS.index,
    ("campaign", "gate", "verdict", "verdict_seq", "calibration", "ordinal", "outcome"),
)


def _packed(
    runs: Sequence[tuple[int, ...]], keys: Sequence[tuple[str, ...]], flat: Sequence[float]
) -> Chunk:
    """Runs that were written down one after the other, as columns."""
    wide = np.array(runs, dtype=np.int64).T
    columns = {}
    for (name, dtype), values in zip(RUN.items(), wide, strict=True):
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise Unprojectable(f"{name}: a number beyond {dtype}")
        columns[name] = values.astype(dtype)
    kinds = dict.fromkeys(keys)
    names = tuple(dict.fromkeys(name for kind in kinds for name in kind))
    if len(kinds) == 1:
        values = np.array(flat, dtype=np.float64).reshape(len(runs), len(names)).T
        return Chunk(metrics=names, values=np.ascontiguousarray(values), runs=columns)
    values = np.full((len(names), len(runs)), np.nan)
    rows = {kind: [names.index(name) for name in kind] for kind in kinds}
    for at, (kind, found) in enumerate(zip(keys, _taken(keys, flat), strict=True)):
        values[rows[kind], at] = found
    return Chunk(metrics=names, values=values, runs=columns)


def _taken(keys: Sequence[tuple[str, ...]], flat: Sequence[float]) -> Iterator[Sequence[float]]:
    at = 0
    for kind in keys:
        yield flat[at : at + len(kind)]
        at += len(kind)
