"""The commands that only read a log: show, log, replay, verify, merge, export."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiopt.log import Log

from .conftest import Finished, invoke


def test_places(finished: Finished) -> None:
    """A log is found by its path, its folder, its target's folder or name."""
    places: list[str | Path] = [
        finished.log,
        finished.log.parent,
        finished.target,
        "toy",
        "targets/toy",
    ]
    assert len({invoke("show", place, "--json").stdout.count("exp-0003") for place in places}) == 1
    wrong = invoke("show", "nothing")
    assert wrong.exit_code == 2
    assert "no log for 'nothing'" in wrong.stderr


def test_show_campaigns(finished: Finished) -> None:
    """The table of candidates, and the audit."""
    text = invoke("show", "toy").stdout
    assert "cmp-0001 toy in local: finished: the proposer has no more" in text
    assert "01-better" in text
    assert "workload main: the smallest gain in cost that can be proved is 3.0 %" in text
    assert "cost ~-50.0 %" in text
    assert "~ an estimate of the screen" in text
    assert "audit (exp-" in text
    assert text == invoke("show", "toy", "cmp-0001").stdout
    found = json.loads(invoke("show", "toy", "--json").stdout)
    assert list(found) == ["log", "campaigns"]
    (campaign,) = found["campaigns"]
    assert campaign["kept"] == ["01-better", "06-scaled"]
    assert campaign["calibration"]["status"] == "measured"
    rows = {row["role"]: row for row in campaign["calibration"]["rows"]}
    assert (rows["primary"]["n1"], rows["primary"]["n2"]) == (7, 8)
    assert rows["guard"]["mei_eff_percent"] == 5.0
    assert len(campaign["audit"]["ablation"]) == 2


def test_show_experiment(finished: Finished) -> None:
    """Hypothesis, gates, effects, pairs, stages, patch."""
    text = invoke("show", "toy", "exp-0003").stdout
    assert "candidate 01-better, keep" in text
    assert "hypothesis: because of 01-better" in text
    assert "gate test: passed" in text
    assert "100 -> 80" in text
    assert "screen:main:6:0:B" in text
    assert "decided in the confirmation, p of the screen 0.0078, p of the confirmation" in text
    assert "provable from 3.0 %, charged 0.0005 of the error budget" in text
    looks = [line.split() for line in text.splitlines() if line.endswith(("continue", "pass"))]
    assert [(line[0], line[3], line[-1]) for line in looks] == [
        ("screen", "4", "continue"),
        ("screen", "6", "continue"),
        ("screen", "7", "pass"),
        ("confirm", "8", "pass"),
    ]
    assert "+80" in text.splitlines()
    found = json.loads(invoke("show", "toy", "exp-0003", "--json").stdout)
    assert found["patch_text"].endswith("-100\n+80\n")
    assert len(found["pairs"]) == 15
    assert [look["action"] for look in found["looks"]] == ["continue", "continue", "pass", "pass"]
    assert (found["stage"], found["charged"], found["needs"]) == ("confirm", 0.0005, None)
    assert {row["outcome"] for row in found["stages"]} == {"ok"}


def test_show_other_experiments(finished: Finished) -> None:
    """Those without a candidate of their own are shown, too, without its patch."""
    assert ": baseline, measured" in invoke("show", "toy", "exp-0001").stdout
    calibration = invoke("show", "toy", "exp-0002").stdout
    assert ": calibration of baseline, measured" in calibration
    assert "pairs differ by  provable" in calibration
    assert "calibration  main      0  " in calibration
    audit = invoke("show", "toy", "exp-0008").stdout
    assert ": audit, measured" in audit
    assert "on top of" not in audit
    ablation = invoke("show", "toy", "exp-0009").stdout
    assert ": ablation, without 01-better, measured" in ablation
    for name in ("exp-0001", "exp-0002", "exp-0008", "exp-0009"):
        found = json.loads(invoke("show", "toy", name, "--json").stdout)
        assert found["patch_text"] is None
        assert bool(found["calibration"]) is (name == "exp-0002")


def test_show_budget(finished: Finished) -> None:
    """What each candidate that was screened cost, and what is promised of the campaign."""
    text = invoke("show", "toy", "--budget").stdout
    assert "at most 0.1 false keeps are expected among 200 candidates; so far 4 were" in text
    assert "screened: at most 0.002" in text
    assert [line.split()[2] for line in text.splitlines() if "0.0005" in line] == [
        "exp-0003",
        "exp-0004",
        "exp-0006",
        "exp-0007",
    ]
    (found,) = json.loads(invoke("show", "toy", "--budget", "--json").stdout)["budgets"]
    assert found["rows"][0]["verdict"] == "keep"
    assert found["left"] == pytest.approx(0.098)
    assert text == invoke("show", "toy", "cmp-0001", "--budget").stdout
    wrong = invoke("show", "toy", "exp-0003", "--budget")
    assert (wrong.exit_code, "belongs to a campaign" in wrong.stderr) == (2, True)


def test_show_stage_log(finished: Finished) -> None:
    """What a stage printed."""
    assert invoke("show", "toy", "exp-0003", "--stage-log", "test").stdout == "tested\n"
    text = invoke("show", "toy", "exp-0003", "--stage-log", "workload").stdout
    assert "== workload screen:main:0:0:B attempt 0: ok\ncost=80\nsize=10\n" in text
    lines = invoke("show", "toy", "exp-0003", "--stage-log", "test", "--json").stdout
    assert json.loads(lines)["text"] == "tested\n"
    assert "it had" in invoke("show", "toy", "exp-0003", "--stage-log", "deploy").stderr
    assert invoke("show", "toy", "--stage-log", "test").exit_code == 2
    assert invoke("show", "toy", "cmp-0001", "--stage-log", "test").exit_code == 2


def test_show_unknown_name(finished: Finished) -> None:
    """Says what there is."""
    result = invoke("show", "toy", "exp-0099")
    assert result.exit_code == 2
    assert "exp-0003" in result.stderr


def test_log_lines(finished: Finished) -> None:
    """One line per event; filters by stream, type and place."""
    lines = invoke("log", "toy").stdout.splitlines()
    with Log.open(finished.log, readonly=True) as log:
        assert len(lines) == log.count()
    assert "CampaignStarted     toy in local, proposer pool, seed 0" in lines[0]
    verdicts = invoke("log", "toy", "--type", "VerdictReached").stdout
    assert "keep: cost +20.0 %" in verdicts
    stream = invoke("log", "toy", "--stream", "exp-0003", "--after", "30").stdout.splitlines()
    assert stream
    assert all(" exp-0003 " in line and int(line.split()[0]) > 30 for line in stream)
    assert invoke("log", "toy", "--stream", "exp-0099").exit_code == 2
    assert invoke("log", "toy", "--type", "Nothing").exit_code == 2


def test_log_json(finished: Finished) -> None:
    """All columns and the payload, one object per line."""
    first = json.loads(invoke("log", "toy", "--json").stdout.splitlines()[0])
    assert list(first) == [
        "seq",
        "stream",
        "version",
        "type",
        "schema_version",
        "writer",
        "wseq",
        "recorded_at",
        "payload",
        "hash",
    ]
    assert first["payload"]["target"] == "toy"


def test_replay(finished: Finished) -> None:
    """Ranking, flips and what is not known."""
    same = invoke("replay", "toy")
    assert "flipped: 0" in same.stdout
    assert "01-better" in same.stdout
    assert "post hoc" not in same.stdout
    more = invoke("replay", "toy", "--rule", "signed-rank", "--set", "pairs=20")
    assert "exp-0003 01-better: keep -> needs more" in more.stdout
    assert "up to 5 more pairs" in more.stdout
    assert "post hoc: rule or parameters were chosen after" in more.stdout
    assert "the histories part at event" in more.stdout
    assert "would have been measured against another incumbent" in more.stdout
    void = invoke("replay", "toy", "--set", "void.psi=0,void.throttle=false")
    assert "void.psi, void.throttle: says what is measured" in void.stdout
    found = json.loads(invoke("replay", "toy", "--weights", "cost=1,size=1", "--json").stdout)
    assert sorted(found) == [
        "campaign",
        "compared_by",
        "decisions",
        "fitness",
        "lacking",
        "log",
        "parts_at",
        "post_hoc",
        "ranking",
        "rechosen",
        "rule",
        "unranked",
        "weights",
    ]
    assert found["rechosen"] is None
    assert found["weights"] == {"cost": 1.0, "size": 1.0}
    assert found["post_hoc"] is True
    assert json.loads(invoke("replay", "toy", "--json").stdout)["post_hoc"] is False


def test_replay_under_another_strategy(finished: Finished) -> None:
    """Greedy always builds on the incumbent; what others would have built on is listed."""
    same = invoke("replay", "toy", "--strategy", "greedy").stdout
    assert "strategy greedy, seed 0: choices: 6, other ones: 0" in same
    assert "elites" not in same
    words = ("--strategy", "map-elites", "--option", "incumbent=0", "--option", "crossover=1")
    edges = ("--edges", "size=0.5,1.5", "--edges", "patches=0,1,2")
    other = invoke("replay", "toy", *words, *edges, "--seed", "3", "--top", "1").stdout
    assert "strategy map-elites, seed 3: choices: 6, other ones: " in other
    assert "the strategies' histories part at event" in other
    assert "more; --top" in other
    assert "elites over size, patches: 2, in 100 % of the cells; QD score" in other
    assert "keeps no archive over the same measures" in other
    found = json.loads(invoke("replay", "toy", *words, *edges, "--json").stdout)["rechosen"]
    assert found["strategy"] == "map-elites"
    assert len(found["changed"]) > 1
    assert found["parts_at"] == found["changed"][0]["seq"]
    assert found["elites"]["elites"] == ["baseline", "exp-0007 06-scaled"]


def test_replay_under_another_strategy_errors(finished: Finished) -> None:
    """Each says what was expected."""
    assert "there are: genetic, greedy, map-elites" in errors_of("--strategy", "clever")
    assert "expected NAME=VALUE as in aiopt.toml" in errors_of("--option", "population")
    assert "'size': expected MEASURE=EDGE,EDGE,…" in errors_of("--edges", "size")
    assert "'size=1': expected MEASURE=EDGE,EDGE,…" in errors_of("--edges", "size=1")
    assert "each measure once" in errors_of("--edges", "size=0,1", "--edges", "size=0,2")
    wrong = errors_of("--strategy", "map-elites", "--edges", "colour=0,1")
    assert "no such measure; there are cost, size" in wrong
    assert "axis size" in errors_of("--strategy", "map-elites", "--edges", "size=2,1")
    assert "without a strategy's options" in errors_of("--rule", "all", "--seed", "1")


def errors_of(*words: str) -> str:
    done = invoke("replay", "toy", *words)
    assert done.exit_code == 2
    return done.stderr


def test_replay_by_another_fitness(finished: Finished) -> None:
    """Scores with their intervals, and who cannot be told apart."""
    assert " 95 % interval " in invoke("replay", "toy").stdout
    by_goals = invoke("replay", "toy", "--fitness", "lexicographic:size,cost=0.05").stdout
    assert "lexicographic:size,cost=0.05  better in all" in by_goals
    assert "+0.00 %, +28.00 %" in by_goals
    home = finished.home / "mine.py"
    home.write_text("def score(ratios):\n    return 1 + min(0.2, ratios['cost'])\n")
    mine = invoke("replay", "toy", "--fitness", f"{home}:score", "--complete").stdout
    assert mine.count("1.2 [1.2, 1.2]") > 1
    assert "~N: the measurements do not tell it apart from place N" in mine
    assert "~1" in mine.splitlines()[4], mine


def test_replay_over_a_grid_of_weights(finished: Finished) -> None:
    """What holds at each of them, and what does not."""
    text = invoke("replay", "toy", "--what-if", "cost,size").stdout
    assert "11 weightings of cost, size" in text
    assert "first at 10 of 11: exp-0007 06-scaled (cost 0.1 to 1, size 0 to 0.9)" in text
    assert "  exp-0003 01-better: keep; not kept at 2 of 11, cost 0 to 0.1, size 0.9 to 1" in text
    assert "exp-0007 before exp-0003: at 10 of 11, always proved" in text
    assert "1 weighting of cost" in invoke("replay", "toy", "--what-if", "cost=2").stdout
    one = invoke("replay", "toy", "--what-if", "cost=1,size=0:0.2:0.1").stdout
    assert "3 weightings" in one
    assert "first at every weighting: exp-0007 06-scaled" in one
    cut = invoke("replay", "toy", "--what-if", "size", "--top", "1", "--set", "mei=0.5").stdout
    assert "everywhere" in cut
    assert "… and 1 more; --top 2 shows all" in cut
    found = json.loads(invoke("replay", "toy", "--what-if", "cost,size", "--json").stdout)
    assert len(found["points"]) == 11
    assert not found["robust"]
    for words, problem in (
        (("--what-if", "cost=1:0:1"), "expected METRIC, or METRIC=FROM:TO:STEP"),
        (("--what-if", "cost=0:1"), "expected METRIC, or METRIC=FROM:TO:STEP"),
        (("--what-if", "cost,cost"), "expected every metric once"),
        (("--what-if", "cost", "--weights", "cost=1"), "--what-if goes over weights itself"),
        (("--what-if", "colour"), "no such metric"),
    ):
        assert problem in errors_of(*words)


def test_show_pareto(finished: Finished) -> None:
    """The front over the primaries, or over what is asked for."""
    text = invoke("show", "toy", "--pareto").stdout
    assert "1 of 5 are the best of something" in text
    assert re.search(r"06-scaled +\+28.00 % \[\+28.00, \+28.00\] +front +keep", text)
    assert re.search(r"01-better .* behind exp-0007 +keep", text)
    assert "not compared: exp-0005: invalid: test: exit 1" in text
    found = json.loads(invoke("show", "toy", "--pareto", "cost,size", "--json").stdout)
    (view,) = found["campaigns"]
    assert view["metrics"] == ["cost", "size"]
    none = invoke("show", "toy", "--pareto", "colour").stderr
    assert "pareto: 1 problem\n  colour: no such metric; there are cost, size" in none
    wrong = invoke("show", "toy", "exp-0003", "--pareto")
    assert "--pareto is of a campaign" in wrong.stderr


def test_replay_names_what_no_profiler_measured(finished: Finished) -> None:
    for option in ("--weights", "--guards"):
        done = invoke("replay", "toy", option, "perf:self_share[f(a, b)]=0.1")
        assert done.exit_code == 2
        assert "perf:self_share[f(a, b)]: not measured in this campaign" in done.stderr


def test_replay_under_all_rules(finished: Finished) -> None:
    """One table: what each would have kept, could not decide, and keeps that were refused."""
    text = invoke("replay", "toy", "--rule", "all").stdout
    assert "6 decisions by two-stage" not in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line[:1].isalpha()}
    assert rows["two-stage"][1:4] == ["2", "0", "0"]
    assert rows["single-run"][1:4] == ["2", "0", "0"]
    assert rows["benchstat"][2] == "2"
    assert "(post hoc)" in text
    words = ("replay", "toy", "--rule", "all", "--json", "--weights", "cost=1")
    found = json.loads(invoke(*words).stdout)
    assert found["post_hoc"] is True
    assert [row["rule"] for row in found["rows"]][:2] == ["two-stage", "signed-rank"]
    assert found["rows"][0]["kept"] == ["01-better", "06-scaled"]
    assert invoke("replay", "toy", "--rule", "all", "--set", "pairs=1").exit_code == 0


def test_replay_errors(finished: Finished) -> None:
    """Unknown rules, metrics, parameters and campaigns; numbers that the rule does not take."""
    assert "there are" in invoke("replay", "toy", "--rule", "none").stderr
    assert "no such metric" in invoke("replay", "toy", "--weights", "speed=1").stderr
    assert "no parameter colour" in invoke("replay", "toy", "--set", "colour=1").stderr
    assert "expected name=number" in invoke("replay", "toy", "--weights", "cost").stderr
    assert "every name once" in invoke("replay", "toy", "--weights", "a=1,a=2").stderr
    assert "expected name=value" in invoke("replay", "toy", "--set", "mei=big").stderr
    assert "every name once" in invoke("replay", "toy", "--set", "mei=1", "--set", "mei=2").stderr
    assert invoke("replay", "toy", "--campaign", "cmp-0009").exit_code == 2
    assert "--set pairs belongs to" in invoke("replay", "toy", "--set", "pairs=12").stderr
    level = invoke("replay", "toy", "--rule", "no-overlap", "--set", "alpha=0.1")
    assert "no-overlap has no level" in level.stderr
    few = invoke("replay", "toy", "--rule", "signed-rank", "--set", "pairs=1")
    assert few.exit_code == 2


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_replay_is_the_same_under_any_hash_seed(finished: Finished, words: tuple[str, ...]) -> None:
    """The same bytes whatever PYTHONHASHSEED is."""
    script = "from aiopt.cli import main; main()"
    found = {
        subprocess.run(
            [sys.executable, "-c", script, "replay", "toy", "--weights", "size=1,cost=2", *words],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(found) == 1


def test_verify_and_head(finished: Finished) -> None:
    """A good log is good, also against its own head; another head is a problem."""
    head = invoke("verify", "toy", "--head").stdout.strip()
    writer, number, hash_ = head.split(":")
    assert invoke("verify", "toy", "--expect-head", head).exit_code == 0
    assert invoke("verify", "toy", "--expect-head", hash_).exit_code == 0
    other = f"{writer}:{number}:{'0' * 64}"
    wrong = invoke("verify", "toy", "--expect-head", other, "--expect-head", "1" * 64)
    assert wrong.exit_code == 1
    assert wrong.stdout.count("head: ") == 2
    assert invoke("verify", "toy", "--expect-head", "abc").exit_code == 2
    report = json.loads(invoke("verify", "toy", "--json").stdout)
    assert report["ok"] is True
    assert report["heads"] == {writer: [int(number), hash_]}


def test_verify_lists_every_problem(finished: Finished, tmp_path: Path) -> None:
    """Exit code 1 and one line for each missing blob."""
    copy = tmp_path / "copy"
    shutil.copytree(finished.log.parent, copy, ignore=shutil.ignore_patterns(".work"))
    shutil.rmtree(copy / "blobs")
    result = invoke("verify", copy, "--json")
    assert result.exit_code == 1
    problems = json.loads(result.stdout)["problems"]
    assert len(problems) > 3
    assert {problem["kind"] for problem in problems} == {"blob"}


def test_merge_makes_short_names_ambiguous(finished: Finished, tmp_path: Path) -> None:
    """Logs of two machines are joined; a short name that both used needs to be written in full."""
    other = tmp_path / "other" / "events.db"
    shutil.copytree(finished.log.parent, other.parent, ignore=shutil.ignore_patterns(".work"))
    with Log.open(other) as log:
        log.append([(log.new_stream("cmp"), next(iter(log.read())).event)])
    both = tmp_path / "both" / "events.db"
    assert "new events" in invoke("merge", both, finished.log, other.parent).stdout
    report = json.loads(invoke("merge", both, finished.log, "--json").stdout)
    assert report == {"events": 0, "writers": 0, "blobs": 0, "log": str(both)}
    assert invoke("show", both).stdout.count("unfinished") == 1
    assert invoke("verify", both).exit_code == 0


def test_export(finished: Finished, tmp_path: Path) -> None:
    """Folders and tables, or the whole log as lines of JSON."""
    answer = json.loads(invoke("export", "toy", "--out", tmp_path, "--json").stdout)
    assert list(answer) == ["log", "folders", "tables", "notes"]
    assert all(Path(folder, "README.md").is_file() for folder in answer["folders"])
    text = invoke("export", "toy", "--out", tmp_path, "--campaign", "cmp-0001").stdout
    assert text.split() == [*answer["folders"], *answer["tables"]]
    file = tmp_path / "events.jsonl"
    assert "events" in invoke("export", "toy", "--jsonl", file).stdout
    assert invoke("export", "toy", "--jsonl", "-").stdout == file.read_text()
    count = json.loads(invoke("export", "toy", "--jsonl", file, "--json").stdout)["events"]
    assert count == len(file.read_text().splitlines()) - 1
    assert invoke("export", "toy", "--jsonl", "-", "--json").exit_code == 2
    assert invoke("export", "toy", "--jsonl", "-", "--out", tmp_path).exit_code == 2


def test_lines_become_the_same_log_again(finished: Finished, tmp_path: Path) -> None:
    """What was exported as lines can be merged, into nothing too, and replays alike."""
    file, again = tmp_path / "events.jsonl", tmp_path / "again" / "events.db"
    invoke("export", "toy", "--jsonl", file)
    assert " 1 new writers" in invoke("merge", again, file).stdout
    assert " 0 new events" in invoke("merge", again, file).stdout
    ours, theirs = (
        json.loads(invoke("replay", log, "--json").stdout) for log in (finished.log, again)
    )
    assert {**ours, "log": ""} == {**theirs, "log": ""}
    missing = invoke("merge", again, tmp_path / "none.jsonl")
    assert (missing.exit_code, "No such file" in missing.stderr) == (2, True)
    file.write_text("no lines of a log\n")
    assert invoke("merge", again, file).exit_code == 1
