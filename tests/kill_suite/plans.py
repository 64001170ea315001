"""What is to happen in one life of a controller, drawn from a seed."""

from random import Random

from attrs import evolve, frozen

__all__ = ["CONTROLS", "DRAWN", "KINDS", "Plan", "draw"]

KINDS = ("time", "event", "append", "spawn", "git", "resume", "double", "two", "finish")
"""Kinds of moments. `double` also kills the supervisors; `two` starts two controllers at once."""

CONTROLS = ("lease", "transaction", "acknowledge", "remains")
"""What a control takes away."""

_EVENTS = (
    "CampaignStarted",
    "CampaignResumed",
    "EnvironmentObserved",
    "CandidateProposed",
    "CandidateRejected",
    "IncumbentChanged",
    "ExperimentStarted",
    "StageStarted",
    "StageFinished",
    "SourcePrepared",
    "ArtifactBuilt",
    "GatePassed",
    "GateFailed",
    "PairScheduled",
    "RunMeasured",
    "PairVoided",
    "CalibrationMeasured",
    "LevelCharged",
    "LookTaken",
    "VerdictReached",
    "AuditMeasured",
    "AblationMeasured",
    "ExperimentFinished",
)
_OF_STAGES = ("CalibrationMeasured", "LevelCharged", "LookTaken", "AblationMeasured")
_POINTS = ("before BEGIN", "after BEGIN", "in INSERT", "before COMMIT", "after COMMIT")
_BROKEN_AT = {"transaction": "in INSERT", "acknowledge": "before COMMIT"}
"""Where a control is caught."""
_WEIGHTS = {
    "time": 5,
    "event": 5,
    "append": 4,
    "spawn": 2,
    "git": 2,
    "resume": 2,
    "double": 2,
    "two": 2,
}


@frozen(kw_only=True)
class Plan:
    """One life: what ends it, and what it lacks."""

    life: int
    kind: str = ""
    """One of `KINDS`; empty: it may live."""
    at: str = ""
    """Types of events, or the point in an append, a spawn, or the clearing of remains."""
    nth: int = 1
    delay: float = 0.0
    """Seconds: after the start for `time`, `double` and `two`, else after the moment."""
    limit: float = 3.0
    """If the moment has not come by then, it is killed from outside."""
    remove_work: bool = False
    """Whether the folder of work that can be deleted at any time is deleted after it."""
    visit: bool = False
    """Whether another process opens the log meanwhile, reads, and closes it."""
    control: str = ""
    """One of `CONTROLS`; empty: nothing is broken."""

    @property
    def inside(self) -> bool:
        """Whether the controller kills itself."""
        return self.kind in ("event", "append", "spawn", "git", "resume", "finish")


DRAWN = tuple(_WEIGHTS)
"""Kinds for any life; `finish` is for the last but one."""


def draw(
    rng: Random,
    life: int,
    *,
    control: str = "",
    kinds: tuple[str, ...] = DRAWN,
    staged: bool = False,
) -> Plan:
    """A moment at random; `staged`: every other event is one that only stages have."""
    (kind,) = rng.choices(kinds, [_WEIGHTS.get(kind, 1) for kind in kinds])
    plan = Plan(
        life=life,
        kind=kind,
        control=control,
        remove_work=rng.random() < 0.08,
        visit=not control and rng.random() < 0.2,
    )
    pause = rng.choice((0.0, 0.0, rng.uniform(0, 0.005), rng.uniform(0, 0.05)))
    match kind:
        case "event":
            at = "|".join(rng.sample(_EVENTS, 4))
            if staged and rng.random() < 0.5:
                at = rng.choice(_OF_STAGES)
            return evolve(plan, at=at, nth=rng.choice((1, 1, 2, 3)), delay=pause)
        case "finish":
            return evolve(plan, at="CampaignFinished", delay=rng.uniform(0, 0.02), limit=180.0)
        case "double" if control:  # when a stage is running, on a busy machine too
            return evolve(plan, delay=rng.uniform(0.5, 2.0))
        case "two" if control:
            return evolve(plan, delay=rng.uniform(1.0, 2.5))
        case "append":
            at = _BROKEN_AT.get(control) or rng.choice(_POINTS)
            most = 3 if at == "in INSERT" else 15
            return evolve(plan, at=at, nth=1 if control else rng.randint(1, most))
        case "spawn":
            at = rng.choice(("after start", "before submit", "after submit"))
            most = 1 if at == "after start" else 5
            return evolve(plan, at=at, nth=rng.randint(1, most), delay=pause)
        case "git":
            return evolve(plan, at="git", nth=rng.randint(1, 6), delay=rng.uniform(0, 0.02))
        case "resume":
            at = rng.choice(("before", "during", "after"))
            return evolve(plan, at=at, delay=rng.uniform(0, 0.015))
        case _:
            return evolve(plan, delay=rng.uniform(0, 1.6))
