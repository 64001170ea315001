"""The facts that a log is made of: frozen values, named in the past tense.

An event holds what was proposed, run, measured, captured or failed, and why. It never holds a
fitness or a rank: those are folds. It holds no clock reading, id or position either: `Log.append`
stamps those, and nothing else does.

Units are in the names or are these: seconds, bytes. A *blob* is the sha256 (64 hex digits) of an
artifact in the blob store. Arms: `A` is the incumbent (in an audit: the baseline), `B` the
candidate.
"""

from typing import Any, Literal, NamedTuple

from attrs import field, frozen

__all__ = [
    "EVENT_TYPES",
    "AblationMeasured",
    "ArtifactBuilt",
    "AuditMeasured",
    "BudgetSpent",
    "CalibrationFailed",
    "CalibrationMeasured",
    "CampaignFinished",
    "CampaignInterrupted",
    "CampaignResumed",
    "CampaignStarted",
    "CandidateProposed",
    "CandidateRejected",
    "Claim",
    "Effect",
    "EnvironmentObserved",
    "Event",
    "EvidenceCaptured",
    "ExperimentFinished",
    "ExperimentStarted",
    "Finding",
    "GateFailed",
    "GatePassed",
    "IncumbentChanged",
    "LayoutBuilt",
    "LevelCharged",
    "LookTaken",
    "MachineUnfit",
    "MeasuringPaused",
    "MechanismChecked",
    "MetricUnreadable",
    "Operator",
    "PairScheduled",
    "PairVoided",
    "PatchPart",
    "PatchRef",
    "PatchShape",
    "PluginUsed",
    "ProcessRef",
    "ProfilerUnavailable",
    "ProposalDeclined",
    "Recorded",
    "RunMeasured",
    "Scalar",
    "SourcePrepared",
    "StageFinished",
    "StageStarted",
    "VerdictReached",
]

JsonObject = dict[str, Any]

Arm = Literal["A", "B"]
Order = Literal["AB", "BA"]
PairPurpose = Literal[
    "check",
    "warmup",
    "calibration",
    "layout",
    "screen",
    "confirm",
    "guard",
    "audit",
    "ablation",
]
StageName = Literal[
    "source", "build", "test", "deploy", "workload", "collect", "teardown", "profile"
]
StageOutcome = Literal["ok", "failed", "timeout", "lost"]
RejectReason = Literal["malformed", "out_of_scope", "does_not_apply", "duplicate", "empty"]
Operator = Literal["propose", "rewrite", "union", "recombine", "add", "drop"]
VerdictKind = Literal[
    "keep", "discard_regression", "discard_no_effect", "inconclusive", "no_change", "invalid"
]
ExperimentPurpose = Literal["baseline", "calibration", "candidate", "audit", "ablation", "profile"]
ExperimentOutcome = Literal["judged", "superseded", "measured", "abandoned"]
LookAction = Literal["pass", "continue", "futile", "cap"]


# ---- values that events are made of ----


@frozen(kw_only=True, slots=True)
class PluginUsed:
    """A plug-in and where it came from."""

    group: str
    name: str
    distribution: str
    version: str


@frozen(kw_only=True, slots=True)
class PatchRef:
    """One patch of a genome; `digest` is the sha256 of its canonical text, and its blob."""

    name: str
    digest: str


@frozen(kw_only=True, slots=True)
class PatchShape:
    """How large a patch is."""

    files: int
    hunks: int
    added: int
    """Lines."""
    removed: int


@frozen(kw_only=True, slots=True)
class PatchPart:
    """A patch that consists of some hunks of another one."""

    digest: str
    origin: str
    """Digest of the whole patch."""
    hunks: tuple[int, ...]
    """Which of its hunks, counted from 0 over all files, ascending."""
    shape: PatchShape


@frozen(kw_only=True, slots=True)
class ProcessRef:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    start_ticks: int
    boot_id: str


@frozen(kw_only=True, slots=True)
class Effect:
    """How candidate and incumbent differ in one metric under one workload.

    `effect`, `low` and `high` are natural logs of cost ratios, positive means the candidate is
    better (ln(A/B) where lower is better, ln(B/A) where higher is); None: no finite bound at this
    number of pairs.
    """

    metric: str
    workload: str
    role: Literal["primary", "guard", "info"]
    direction: Literal["lower", "higher"]
    pairs: int
    effect: float | None
    low: float | None
    high: float | None
    p: float | None = None
    """One-sided p of "not better than the margin" (primary) or of "worse than the margin" (guard).
    """
    state: Literal["improved", "unproved", "held", "broken", "unresolved", "info"] = "info"


@frozen(kw_only=True, slots=True)
class Scalar:
    """One number that a profiler found, with its unit and, where it has one, its interval."""

    value: float
    unit: str
    low: float | None = None
    high: float | None = None


@frozen(kw_only=True, slots=True)
class Claim:
    """What a patch says that it makes cheaper: this function, in this metric."""

    function: str
    """`name`, the end of a qualified name, `file:name`, or one line as `file:line`."""
    metric: str


@frozen(kw_only=True, slots=True)
class Finding:
    """One thing that a profiler says about one place in the code.

    What a person reads first. The scalars of the same evidence hold every number by its name.
    """

    where: str
    """A function or `file:line`."""
    what: str
    """What kind of statement it is: `on-CPU`, `off-CPU L`, `opportunity`, `allocated`, …"""
    scalar: Scalar
    detail: str = ""


# ---- campaign ----


@frozen(kw_only=True, slots=True)
class CampaignStarted:
    """A search over a target began. Everything that a fold needs of its configuration is here."""

    target: str
    target_digest: str
    """sha256 over target.toml and the harness files; a resume under another digest is refused."""
    harness: str
    """Blob: the harness files as a tar, so that an export does not need the target's folder."""
    spec: JsonObject
    """target.toml as loaded."""
    base_commit: str
    base_tree: str
    config: JsonObject
    """Strategy, proposer, mode, budget and their options."""
    rule: str
    rule_version: int
    rule_params: JsonObject
    seed: int
    environment: str
    plugins: tuple[PluginUsed, ...]
    aiopt_version: str


@frozen(kw_only=True, slots=True)
class CampaignResumed:
    """A controller took the campaign over; what its predecessor left running was killed first."""

    processes_killed: int
    aiopt_version: str
    plugins: tuple[PluginUsed, ...] = ()


@frozen(kw_only=True, slots=True)
class CampaignInterrupted:
    """The controller was asked to stop, tore everything down and can be resumed."""

    reason: str


@frozen(kw_only=True, slots=True)
class CampaignFinished:
    """Nothing is left to do: the proposer has no more, or the budget is spent."""

    reason: str


@frozen(kw_only=True, slots=True)
class EnvironmentObserved:
    """What the measuring machine is: kernel, CPU, governor, load, tools. Keys are the backend's."""

    environment: str
    facts: JsonObject


@frozen(kw_only=True, slots=True)
class BudgetSpent:
    """Something that the budget limits was used up by a proposal or an experiment."""

    what: str
    amount: float
    unit: str


# ---- candidates ----


@frozen(kw_only=True, slots=True)
class CandidateProposed:
    """There is a candidate to be tried. `number` counts the proposals of the campaign from 1."""

    number: int
    candidate: str
    genome: tuple[PatchRef, ...]
    parents: tuple[str, ...]
    hypothesis: str
    proposer: str
    """Who wrote the patch that is new in it; empty if the strategy made it of known patches."""
    cost: JsonObject = field(factory=dict)
    claims: tuple[Claim, ...] = ()
    operator: Operator = "propose"
    """How it came about: by a new patch on top of a genome, by one in place of another, by a union
    or recombination of its parents, or by adding or dropping a known patch.
    """
    patch: str | None = None
    """Digest of the patch that is new in it."""
    shape: PatchShape | None = None
    """Of that patch; None if there is none, or it cannot be read."""
    parts: tuple[PatchPart, ...] = ()
    """Patches in its genome that are parts of others."""


@frozen(kw_only=True, slots=True)
class CandidateRejected:
    """The candidate never became an experiment."""

    number: int
    candidate: str
    reason: RejectReason
    detail: str
    duplicate_of: str | None = None
    patch: str | None = None
    """Digest of the patch that does not apply."""
    clashes_with: tuple[str, ...] = ()
    """Digests of patches of the genome without any one of which it would apply."""


@frozen(kw_only=True, slots=True)
class ProposalDeclined:
    """The proposer had nothing to offer for what the strategy asked for."""

    operator: Operator
    proposer: str
    parents: tuple[str, ...]
    genome: tuple[PatchRef, ...]
    """What a patch was to build on."""


@frozen(kw_only=True, slots=True)
class IncumbentChanged:
    """What later candidates are measured against; only a confirmed keep changes it."""

    candidate: str
    genome: tuple[PatchRef, ...]
    tree: str
    experiment: str
    previous: str


# ---- one experiment ----


@frozen(kw_only=True, slots=True)
class ExperimentStarted:
    """The evaluation of one candidate against one incumbent in one environment began."""

    campaign: str
    number: int
    """Of the proposal; 0 for the baseline and an audit. The coin of each pair depends on it."""
    purpose: ExperimentPurpose
    """An audit compares the final source with the baseline, an ablation with the final source but
    for one patch: the arm `A` is then the baseline, or what is left without the patch.
    """
    candidate: str
    genome: tuple[PatchRef, ...]
    tree: str
    incumbent: str
    incumbent_tree: str
    environment: str
    mode: str


@frozen(kw_only=True, slots=True)
class StageStarted:
    """A stage is about to run; logged before, so that its remains can be found and killed."""

    stage: StageName
    attempt: int
    argv: tuple[str, ...]
    timeout: float
    supervisor: ProcessRef | None
    """The process under which everything that the stage starts
    lives; None where the backend has its own way.
    """
    run: str = ""
    """Which run of a pair it belongs to (`screen:mixed:3:0:B`), of a build which neutral rebuild
    it makes (`layout:3`), or empty.
    """
    job: str = ""
    """The name under which a later controller can come back to it; empty where that is not so."""


@frozen(kw_only=True, slots=True)
class StageFinished:
    """A stage is over and nothing that it started is alive."""

    stage: StageName
    attempt: int
    outcome: StageOutcome
    exit_code: int | None
    signal: int | None
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    log: str | None
    """Blob with its output, both streams in order of arrival."""
    dropped_bytes: int = 0
    """Output beyond the cap."""
    strays_killed: int = 0
    """Processes that were still alive when its main process had ended."""
    run: str = ""


@frozen(kw_only=True, slots=True)
class SourcePrepared:
    """The candidate's tree exists on the measuring machine."""

    tree: str
    harness_digest: str


@frozen(kw_only=True, slots=True)
class ArtifactBuilt:
    """What the build produced; equal digests mean that nothing changed."""

    digest: str
    files: int
    incumbent_digest: str | None
    """None when the target names no artifact or the incumbent has not been built."""


@frozen(kw_only=True, slots=True)
class LayoutBuilt:
    """A neutral rebuild is ready to be run: the same source in another layout of its code.

    In the experiment that needs it; those of an incumbent in the calibration, later in the
    campaign's stream.
    """

    candidate: str
    layout: int
    digest: str | None
    """As of `ArtifactBuilt`; None when the target names no artifact."""


@frozen(kw_only=True, slots=True)
class GatePassed:
    """A yes/no check before measuring was passed."""

    gate: str


@frozen(kw_only=True, slots=True)
class GateFailed:
    """A check failed: the candidate is invalid, however fast it may be."""

    gate: str
    detail: str
    log: str | None = None


@frozen(kw_only=True, slots=True)
class PairScheduled:
    """The coin of one pair, logged before the first of its runs."""

    purpose: PairPurpose
    workload: str
    index: int
    attempt: int
    order: Order
    layout: int = 0
    """Which neutral rebuild both arms are (`layout`: which one arm B is); 0 is the plain build."""


@frozen(kw_only=True, slots=True)
class RunMeasured:
    """One execution of the workload: the raw samples, and what the machine was like meanwhile."""

    purpose: PairPurpose
    workload: str
    index: int
    attempt: int
    arm: Arm
    position: int
    """1 or 2: first or second of its pair."""
    metrics: dict[str, tuple[float, ...]]
    texts: dict[str, str]
    covariates: dict[str, float]
    log: str | None


@frozen(kw_only=True, slots=True)
class MetricUnreadable:
    """A metric that the target declares was not printed, or what was printed is no number."""

    metric: str
    found: str
    purpose: PairPurpose
    workload: str
    index: int
    attempt: int
    arm: Arm
    log: str | None
    """Blob of the stage log to look into."""


@frozen(kw_only=True, slots=True)
class PairVoided:
    """A pair does not count, by a rule on the machine's state or
    because it was interrupted, never by its values.
    """

    purpose: PairPurpose
    workload: str
    index: int
    attempt: int
    reason: str
    covariates: dict[str, float] = field(factory=dict)
    rule: Literal["", "steal", "psi", "throttle"] = ""
    """Which rule on the machine's state; empty if a run was cut off or failed."""


@frozen(kw_only=True, slots=True)
class EvidenceCaptured:
    """What one profiler found in runs of its own, which no verdict is made of."""

    profiler: str
    candidate: str
    workload: str
    scalars: dict[str, Scalar]
    stacks: str | None
    """Blob: folded stacks, one `frame;frame;frame count` a line."""
    artifacts: tuple[str, ...]
    """Blobs: what the profiler wrote in each run."""
    stacks_unit: str = "samples"
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """What limits the evidence: lines that were not understood, experiments that were rejected."""
    under_profiler: dict[str, tuple[float, ...]] = field(factory=dict)
    """The target's metrics in those runs: beside those of other runs they say what it costs."""
    covariates: dict[str, float] = field(factory=dict)
    """The machine before the first of those runs, and what moved by the end of the last."""
    tool: str = ""
    """What the profiler's tool says its version is."""


@frozen(kw_only=True, slots=True)
class ProfilerUnavailable:
    """A profiler gave no evidence. `status` says whether it
    could not run, failed or saw too little.
    """

    profiler: str
    candidate: str
    status: Literal["not_available", "failed", "inconclusive"]
    reason: str
    fix: str = ""


@frozen(kw_only=True, slots=True)
class MechanismChecked:
    """A claim, compared with the profiles of incumbent and candidate; no part of the verdict.

    Shares are of the profile, inclusive of what the function calls. `change` is the natural log of
    its cost per unit of work, candidate over incumbent.
    """

    claim: Claim
    profiler: str
    status: Literal["confirmed", "unchanged", "opposite", "not_seen", "not_measured"]
    share_before: Scalar | None = None
    share_after: Scalar | None = None
    change: Scalar | None = None
    detail: str


@frozen(kw_only=True, slots=True)
class CalibrationMeasured:
    """What the incumbent against itself says of one objective or guard under one workload.

    An output of the calibration's pairs, like a verdict: decisions are made from the pairs.
    """

    workload: str
    metric: str
    role: Literal["primary", "guard"] = "primary"
    pairs: int
    sd_pair: float
    """Robust standard deviation of the log ratio of one pair."""
    delta0: float
    """The margin in force: `delta0`, or the layout floor if that is larger; 0 for a guard."""
    mei_eff: float
    """The smallest effect (natural log) that the plan can prove; of a guard the margin."""
    n1: int
    """Pairs of the screen; 0 for a guard."""
    n2: int
    """Pairs of the confirmation, or of the first look at a guard."""
    pairs_for_mei: int
    """Pairs that a proof of the smallest effect of interest would take."""
    autocorrelation: float
    """Of ln(cost) from one run to the next, in the order of time."""
    order_effect_p: float
    layout_sd: float | None = None
    """How much neutral rebuilds differ beyond the noise of pairs; None where there are none."""
    warnings: tuple[str, ...] = ()


@frozen(kw_only=True, slots=True)
class CalibrationFailed:
    """The machine or the workload does not allow a verdict; nothing is judged with it."""

    cause: Literal["order_effect", "layout", "noise"]
    detail: str


@frozen(kw_only=True, slots=True)
class MachineUnfit:
    """Too many pairs were voided by the state of the machine, and waiting did not help."""

    reason: str
    voided: int
    scheduled: int


@frozen(kw_only=True, slots=True)
class MeasuringPaused:
    """Measuring waits for the machine to become fit."""

    reason: str
    seconds: float


@frozen(kw_only=True, slots=True)
class LevelCharged:
    """A candidate is about to be screened: what it may cost of
    the campaign's error budget, never refunded.
    """

    number: int
    """Of the proposal."""
    ordinal: int
    """Counts the candidates that came to be screened, from 1."""
    charged: float
    """Upper bound of the probability that it is kept without being better."""
    spent: float
    left: float
    calibration: str
    """Stream of the calibration that its plan is made from."""


@frozen(kw_only=True, slots=True)
class LookTaken:
    """One look at the pairs of a stage; an output, like the verdict that it leads to."""

    purpose: PairPurpose
    workload: str
    metric: str
    pairs: int
    p: float
    level: float
    """What of the stage's level this look may use; 0 if no outcome could have passed."""
    used: float
    """Of the stage's level, this look included."""
    effect: float
    sd: float
    action: LookAction


@frozen(kw_only=True, slots=True)
class VerdictReached:
    """The decision, with what it was made of; `decide` reproduces it from the events before it.

    Estimates of the stage `confirm` come from pairs that had no part in choosing the candidate;
    those of `screen` are biased by the stopping.
    """

    kind: VerdictKind
    reason: str
    effects: tuple[Effect, ...]
    rule: str
    rule_version: int
    stage: Literal["", "screen", "confirm"] = ""
    """The last stage entered; empty if nothing was measured, or the rule has one stage."""
    p_screen: float | None = None
    p_confirm: float | None = None
    mei_eff: float | None = None
    """The smallest effect (natural log) that could have been proved."""
    pairs_needed: int | None = None
    """If inconclusive: pairs that a proof of the smallest effect of interest would take."""


@frozen(kw_only=True, slots=True)
class AuditMeasured:
    """The final source against the original baseline on fresh pairs: the campaign's result."""

    baseline: str
    final: str
    effects: tuple[Effect, ...]


@frozen(kw_only=True, slots=True)
class AblationMeasured:
    """The final source against what is left of it without one patch."""

    final: str
    without: str
    """Digest of the patch that was left out."""
    separable: bool
    """False if the others do not apply, build or pass their gates without it."""
    detail: str
    effects: tuple[Effect, ...]
    supported: bool | None
    """Whether the patch may still be worth more than the margin; None if it is not separable."""


@frozen(kw_only=True, slots=True)
class ExperimentFinished:
    """Nothing more will be added to this stream."""

    outcome: ExperimentOutcome
    detail: str = ""


Event = (
    CampaignStarted
    | CampaignResumed
    | CampaignInterrupted
    | CampaignFinished
    | EnvironmentObserved
    | BudgetSpent
    | CandidateProposed
    | CandidateRejected
    | ProposalDeclined
    | IncumbentChanged
    | ExperimentStarted
    | StageStarted
    | StageFinished
    | SourcePrepared
    | ArtifactBuilt
    | LayoutBuilt
    | GatePassed
    | GateFailed
    | PairScheduled
    | RunMeasured
    | MetricUnreadable
    | PairVoided
    | EvidenceCaptured
    | ProfilerUnavailable
    | MechanismChecked
    | CalibrationMeasured
    | CalibrationFailed
    | MeasuringPaused
    | MachineUnfit
    | LevelCharged
    | LookTaken
    | VerdictReached
    | AuditMeasured
    | AblationMeasured
    | ExperimentFinished
)

EVENT_TYPES: tuple[type[Event], ...] = Event.__args__
"""Every class of event, in the order of the catalogue."""


class Recorded(NamedTuple):
    """An event in its place in a log. A tuple, for one is made for every event that passes by."""

    seq: int
    stream: str
    version: int
    writer: int
    wseq: int
    recorded_at: str
    """UTC, ISO 8601 with microseconds. For people; no fold reads it."""
    hash: bytes
    event: Event
