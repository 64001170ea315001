"""Read models: what people and programs want to see of a campaign, as values.

Everything here is pure and made of the fold (`aiopt.replay`) and of events. The command line, the
export and reports print these values, and none of them computes its own.
"""

from aiopt.plain import short, to_json
from aiopt.views.advice import advice
from aiopt.views.audit import (
    AblationRow,
    AuditView,
    ClaimRow,
    ShrunkenRow,
    audit_view,
    left_out,
)
from aiopt.views.budget import BudgetView, ChargeRow, budget_view
from aiopt.views.calibration import CalibrationRow, CalibrationView, calibration_view
from aiopt.views.campaign import (
    CandidateRow,
    ExperimentView,
    Summary,
    baseline_failed,
    candidate_row,
    candidate_table,
    experiment_view,
    is_finished,
    summary,
)
from aiopt.views.causal import CausalView, CreditRow, causal_view
from aiopt.views.comparison import RuleRow, RulesView, compare_rules
from aiopt.views.effects import EffectView, effect_view, estimates, primary_effects
from aiopt.views.evidence import (
    EvidenceRow,
    evidence_digest,
    evidence_lines,
    evidence_table,
    mechanism_flags,
    profiles_of,
    result_row,
    scalar_text,
)
from aiopt.views.pareto import ParetoRow, ParetoView, pareto_view
from aiopt.views.progress import ProgressView, progress_view
from aiopt.views.tables import (
    GateRow,
    LookRow,
    PairRow,
    StageRow,
    gate_table,
    look_table,
    pair_table,
    stage_table,
)

__all__ = [
    "AblationRow",
    "AuditView",
    "BudgetView",
    "CalibrationRow",
    "CalibrationView",
    "CandidateRow",
    "CausalView",
    "ChargeRow",
    "ClaimRow",
    "CreditRow",
    "EffectView",
    "EvidenceRow",
    "ExperimentView",
    "GateRow",
    "LookRow",
    "PairRow",
    "ParetoRow",
    "ParetoView",
    "ProgressView",
    "RuleRow",
    "RulesView",
    "ShrunkenRow",
    "StageRow",
    "Summary",
    "advice",
    "audit_view",
    "baseline_failed",
    "budget_view",
    "calibration_view",
    "candidate_row",
    "candidate_table",
    "causal_view",
    "compare_rules",
    "effect_view",
    "estimates",
    "evidence_digest",
    "evidence_lines",
    "evidence_table",
    "experiment_view",
    "gate_table",
    "is_finished",
    "left_out",
    "look_table",
    "mechanism_flags",
    "pair_table",
    "pareto_view",
    "primary_effects",
    "profiles_of",
    "progress_view",
    "result_row",
    "scalar_text",
    "short",
    "stage_table",
    "summary",
    "to_json",
]
