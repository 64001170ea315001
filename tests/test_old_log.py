"""A log from before strategies recombined patches: `tests/data/logs/schema-1.tar.zst`, a campaign
on the toy target as commit 5ec3066 wrote it.

It knows no ProposalDeclined; CandidateProposed has no operator, and what is `pairs_needed` in a
verdict was called `needs`.
"""

import io
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

import aiopt
from aiopt.codec import SCHEMA_VERSIONS
from aiopt.events import EVENT_TYPES, ProposalDeclined
from aiopt.log import Log
from aiopt.replay import CampaignState
from aiopt.verify import verify
from aiopt.views import pareto_view, summary
from tests.factories import make
from tests.test_campaign import outcomes
from tests.toy import EXPECTED

PACKED = Path(__file__).parent / "data" / "logs" / "schema-1.tar.zst"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    data = zstandard.decompress(PACKED.read_bytes(), max_output_size=1 << 24)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            path = tmp_path / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    return tmp_path / "toy" / "events.db"


def campaign_of(log: Path) -> CampaignState:
    (campaign,) = aiopt.load_state(log).campaigns.values()
    return campaign


def test_it_is_an_old_one(log: Path) -> None:
    """One type of event fewer, and a field with another name."""
    with closing(sqlite3.connect(log)) as con:
        kinds = dict(con.execute("SELECT type, max(schema_version) FROM event GROUP BY type"))
        query = "SELECT payload FROM event WHERE type = ?"
        verdicts = [text for (text,) in con.execute(query, ["VerdictReached"])]
        proposed = [text for (text,) in con.execute(query, ["CandidateProposed"])]
    assert set(kinds.values()) == {1}
    assert "ProposalDeclined" in {cls.__name__ for cls in EVENT_TYPES} - kinds.keys()
    assert {SCHEMA_VERSIONS[name] for name in ("VerdictReached", "CandidateProposed")} == {2}
    assert all('"needs":' in text and '"pairs_needed":' not in text for text in verdicts)
    assert not any('"operator":' in text for text in proposed)


def test_it_replays(log: Path) -> None:
    campaign = campaign_of(log)
    found = outcomes(campaign)
    assert found == {name: EXPECTED[name] for name in found}
    assert len(found) == 14
    assert {proposal.proposed.operator for proposal in campaign.proposals.values()} == {"propose"}
    assert {p.proposed.patch for p in campaign.proposals.values()} == {
        p.proposed.genome[-1].digest for p in campaign.proposals.values()
    }
    same = aiopt.rescore(log)
    assert len(same.decisions) == 10
    assert [decision.logged for decision in same.decisions] == [
        decision.replayed for decision in same.decisions
    ]
    assert aiopt.rechoose(log).changed == ()
    assert len(summary(campaign).kept) == 2
    assert pareto_view(campaign).front
    assert len(aiopt.columns(log)) == campaign.runs


def test_it_is_whole_and_its_pairs_still_give_its_verdicts(log: Path) -> None:
    found = verify(log, log.parent / "blobs")
    assert found.problems == ()


def test_new_events_go_behind_the_old_ones(log: Path) -> None:
    """Of the type that it did not know, too; the old rows stay as they were written."""
    with closing(sqlite3.connect(log)) as con:
        before = con.execute("SELECT * FROM event ORDER BY seq").fetchall()
    old = campaign_of(log)
    assert old.declined == set()
    with Log.open(log) as opened:
        opened.append([(old.stream, make(ProposalDeclined, operator="propose", genome=()))])
    with closing(sqlite3.connect(log)) as con:
        after = con.execute("SELECT * FROM event ORDER BY seq").fetchall()
    assert after[:-1] == before
    assert campaign_of(log).declined == {"propose"}
    assert verify(log, log.parent / "blobs").problems == ()
