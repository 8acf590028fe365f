"""The provider's batch interface: what reaches it, what comes back, what happens when it breaks, who has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from countersteer.cli import call
from countersteer.core.errors import InputError
from countersteer.judging.llm_model import load_model
from countersteer.judging.llm_redact import Redactor
from countersteer.judging.llm_settings import BATCHED, JudgeSettings
from countersteer.store.replies import Replies
from fake_openai import CONTENT, FakeOpenAI, pieces, score
from test_llm_judge import key, settings, texts, work  # noqa: F401


def asked(server: FakeOpenAI) -> list[list[dict]]:
    """The requests of every batch that was made, from the files that were sent."""
    sent = [[json.loads(line) for line in lines] for lines in server.files.values()]
    return [lines for lines in sent if "method" in lines[0]]


def test_a_batch_is_judged_like_single_calls_and_counted_once(tmp_path: Path) -> None:
    responses = texts(30)
    with FakeOpenAI(content=0.3) as server:
        ledger = Replies.shared(tmp_path / "batch")
        how = settings(server, connections=2, batch=True, batch_size=15, batch_seconds=0.2)
        grades = work(ledger, how, responses)
        assert server.requests == 0, "nothing goes to the endpoint of single calls"
        assert sum(map(len, asked(server))) == 30 == ledger.requests() and ledger.states() == {"ok": 30}
        assert max(map(len, asked(server))) >= 15, "connections do not keep a batch small"
        assert ledger.spent() == pytest.approx(server.billed)
        assert all(count == 1 for count in server.answered.values())
        body = asked(server)[0][0]["body"]
        assert body["max_tokens"] == how.max_tokens and body["temperature"] == 0 and "response_format" in body
        for response, grade in zip(responses, grades, strict=True):
            if server.content_fault(response) in CONTENT:
                assert grade.status == "unparsed"
            else:
                assert [a.score for a in grade.attempts] == [score(piece) for piece in pieces(response)]
        single = work(Replies.shared(tmp_path / "single"), settings(server), responses)
        assert server.requests == 30 and [g.to_dict() for g in single] == [g.to_dict() for g in grades]
        again = work(ledger, settings(server), responses)
        assert server.requests == 30 and again == single, "the batch's replies serve single calls too"


def test_a_batch_that_cannot_be_made_is_made_again(tmp_path: Path) -> None:
    with FakeOpenAI(broken_batches=2) as server:
        ledger = Replies.shared(tmp_path)
        grades = work(ledger, settings(server, batch=True, batch_size=20, batch_seconds=0.1), texts(8))
        assert [grade.status for grade in grades] == ["ok"] * 8
        assert server.in_batches == 8 and not server.broken_batches
        assert ledger.states()["ok"] == 8 and ledger.spent() >= server.billed


def test_what_inspect_is_told_and_that_it_is_told_nothing_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    config = load_model(JudgeSettings("openai/gpt-4o", batch=True, batch_size=40), Redactor.of()).config
    assert (config.batch.size, config.max_connections, config.attempt_timeout) == (40, 80, None)
    config = load_model(JudgeSettings("openai/gpt-4o", connections=7), Redactor.of()).config
    assert (config.batch, config.max_connections) == (None, 7)


@pytest.mark.parametrize("model", ["vllm/x", "openrouter/a/b", "openai/azure/gpt-4o", "anthropic/bedrock/claude"])
def test_a_judge_without_batches_is_refused_by_name(model: str) -> None:
    with pytest.raises(InputError, match=f"judge {model} cannot be asked in batches.*leave --judge-batch out"):
        JudgeSettings(model, batch=True)


def test_every_provider_named_has_a_batcher_in_inspect() -> None:
    import inspect_ai.model

    folder = Path(inspect_ai.model.__file__).parent / "_providers"
    found = {file.stem for file in folder.glob("*.py") if "normalized_batch_config" in file.read_text()}
    assert set(BATCHED) <= found


def test_a_batch_size_needs_the_batch_interface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.toml"
    (tmp_path / "p.txt").write_text("How?\nWhy?\nWhen?\nWhere?\nWho?\n")
    study.write_text(
        '[study]\nmodel = "organism"\nsae = "organism"\n[judge]\nmodel = "openai/gpt-4o"\n[trials]\n'
        'prompts = "p.txt"\n[arms.base]\nstrength = 1.0\n'
    )
    assert call(["run", str(study), "--out", str(tmp_path / "run"), "--judge-batch-size", "9"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "add --judge-batch" in said[-1]
    study.write_text(study.read_text().replace('model = "openai/gpt-4o"', ""))
    assert call(["run", str(study), "--out", str(tmp_path / "run"), "--judge-batch"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].endswith("the offline judge asks nobody, so --judge-batch cannot be honoured; leave it out")
    assert not (tmp_path / "run").exists(), "refused before anything is loaded or written"
