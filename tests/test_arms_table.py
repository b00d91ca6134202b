"""The tables of policies on arms, from results whose figures are known."""

import json

import pytest

from benchmarks import arms_table


def write(folder, label, outcomes, first=0):
    """A results folder; an outcome is (solved, periods touched, commands beyond)."""
    scene = dict(
        task="pick-place",
        policy="pick-place",
        embodiment="panda-gripper",
        placement="around",
        posts=3,
        slow=1.0,
        weak=1.0,
        attempts=3,
    )
    place = folder / "scene" / f"{label}{first}"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(dict(scene, sampler=label, label=label, first=first)))
    rows = [
        dict(
            key=str(i),
            seed=i,
            success=s,
            hits=h,
            beyond=b,
            touched=int(h > 0),
            beyond_planned=0,
            tracking=0.03,
            seam_jerk=100.0,
        )
        | dict(chunks={"planned": 4, "rest": 1}, latency=[0.04] * 5, reason="" if s else "not in time")
        for i, (s, h, b) in enumerate(outcomes)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tables_count_and_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(arms_table, "FOLDER", tmp_path / "arms")
    monkeypatch.setattr(arms_table, "FILE", tmp_path / "arms.json")
    write(tmp_path / "arms", "ogd", [(True, 0, 0)] * 8 + [(False, 0, 0)] * 2)
    write(tmp_path / "arms", "servo", [(True, 0, 0)] * 2 + [(True, 3, 0)] * 2 + [(True, 0, 1)] + [(False, 0, 0)] * 3)
    write(tmp_path / "arms", "servo", [(True, 0, 0)] * 5, first=5000)  # for choosing, not for reporting
    arms_table.collect()
    by = {(c["config"]["label"], c["config"]["first"]): c for c in json.loads(arms_table.FILE.read_text())["cells"]}
    ogd, servo = by["ogd", 0], by["servo", 0]
    assert arms_table.counts(ogd).sum() == 8 and arms_table.counts(servo).sum() == 2
    assert arms_table.against(servo, ogd) == "6 : 0, p = 0.03"  # 2 / 2^6, on the eight placements that both ran
    rows = {
        row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]]
        for row in arms_table.tables().splitlines()
        if row[:3] == "| `"
    }
    assert rows["`ogd`"][:3] == ["10", "80.0 [49.0, 94.3]", "80.0"] and rows["`ogd`"][7] == "80.0 (0 of 40)"
    assert rows["`servo`"][0] == "8" and rows["`servo`"][2] == "62.5" and rows["`servo`"][5] == "2, 1"
    assert rows["`servo`"][7] == "80.0 (2 of 32)"
    assert rows["`servo`"][-1].startswith("75.0 [") and rows["`ogd`"][-1] == ""  # six of the eight
    assert len(rows) == 2

    (tmp_path / "arms" / "scene" / "ogd0" / "rows.jsonl").unlink()  # what was gathered stays
    arms_table.collect()
    again = [c for c in json.loads(arms_table.FILE.read_text())["cells"] if c["config"]["label"] == "ogd"]
    assert len(again) == 1 and again[0]["seeds"] == ogd["seeds"]


def test_an_interrupted_cell_is_gathered_as_far_as_it_got(tmp_path):
    write(tmp_path, "ogd", [(True, 0, 0)] * 3)
    file = tmp_path / "scene" / "ogd0" / "rows.jsonl"
    file.write_text(file.read_text() + '{"key": "3", "se')
    cell = arms_table.gathered(file.parent)
    assert cell is not None and len(cell["seeds"]) == 3
    assert cell["latency_ms"] == pytest.approx([40.0, 40.0])
