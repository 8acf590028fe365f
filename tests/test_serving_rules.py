"""Keys, limits, rollout, policies and the audit log, each by itself."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import countersteer as cs
from countersteer.core.errors import InputError, RefusedError
from countersteer.edits.bundle import Bundle
from countersteer.engines.scripted import Shape
from countersteer.serving import audit as audit_module
from countersteer.serving import keys as keys_module
from countersteer.serving.audit import Audit, AuditOptions
from countersteer.serving.errors import Refusal
from countersteer.serving.jobs import Job, Ticket
from countersteer.serving.keys import ENV, LOCAL, Key, Keyring, Role, load_keys, make_key
from countersteer.serving.limits import Limits, Turnstile
from countersteer.serving.metrics import Metrics
from countersteer.serving.policies import Policies
from countersteer.serving.policy import Plan, Policy, load_policy, plan_of_bundles, plan_of_file
from countersteer.serving.rollout import conversation_of, decide, place
from countersteer.serving.run import is_local, listen
from countersteer.serving.server import Settings

SECRET = "0123456789abcdef0123"
FACTS = {"layers": 4, "d_model": 8, "model_fingerprint": "model-a", "template_hash": "template-a"}
USE, CHOOSE = Key("app", Role.USE), Key("lab", Role.CHOOSE)


def save(folder: Path, name: str = "warm", *, layer: int = 1, width: int = 8, **meta: Any) -> Path:
    steer = cs.add(cs.direction([1.0] * width, layer=layer), 1.0)
    facts = {"model_fingerprint": "model-a", "template_hash": "template-a", **meta}
    return cs.save_bundle(
        Bundle(name, steer, "3", {k: v for k, v in facts.items() if v}), folder / f"{name}.safetensors"
    )


# Keys


def test_a_key_is_found_by_its_secret_only() -> None:
    ring = Keyring([make_key("app", "use", secret=SECRET), make_key("boss", "admin", secret=SECRET + "x")])
    assert ring.find(f"Bearer {SECRET}").name == "app"
    assert ring.find(f"bearer  {SECRET}x").role is Role.ADMIN
    for wrong in (None, "", SECRET, f"Basic {SECRET}", f"Bearer {SECRET}y", "Bearer", "Bearer app"):
        assert ring.find(wrong) is None
    assert SECRET not in repr(ring.keys)


def test_every_key_is_compared_whatever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    plain = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append(a) or plain(a, b))
    ring = Keyring([make_key(f"k{i}", "use", secret=SECRET + str(i)) for i in range(5)])
    assert ring.find(f"Bearer {SECRET}0").name == "k0"
    assert len(compared) == 5


def test_keys_come_from_file_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    path.write_text(f'[[key]]\nname = "app"\nrole = "use"\nsha256 = "{digest}"\n')
    ring = load_keys(path, environment={ENV: f"boss:admin:{SECRET}:with:colons, lab:choose:{SECRET}2"})
    assert ring.find(f"Bearer {SECRET}").name == "app"
    assert ring.find(f"Bearer {SECRET}:with:colons").role is Role.ADMIN
    assert ring.find(f"Bearer {SECRET}2").role is Role.CHOOSE
    assert load_keys(environment={}).find(None) is LOCAL and LOCAL.role < Role.ADMIN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold"),
        ("key = 3", "must hold"),
        ("[[key]]\nname = 'a'\nrole = 'usr'\nkey = '0123456789abcdef'", "did you mean 'use'"),
        ("[[key]]\nname = 'a'\nrole = 'use'\nkey = 'short'", "shorter than 16"),
        ("[[key]]\nname = 'a'\nrole = 'use'", "needs either"),
        ("[[key]]\nname = 'a'\nrole = 'use'\nsha256 = 'zz'", "64 hexadecimal"),
        ("[[key]]\nname = 'a'\nrole = 'use'\nkey = '0123456789abcdef'\nmore = 'x'", "needs name, role"),
        ("[[key]]\nname = 'a'\nrole = 'use'\nkey = 5", "all of them texts"),
        ("[[key]]\nname = 'a'\nrole = 'use'\nkey = '0123456789abcdef'\n" * 2, "two keys"),
        ("0123456789abcdef-my-secret", "not valid TOML"),
    ],
)
def test_bad_key_files_are_refused_without_quoting_them(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match=said) as caught:
        load_keys(path, environment={})
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="file modes; 2026-11-21")
def test_a_file_of_secrets_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f"[[key]]\nname = 'a'\nrole = 'use'\nkey = '{SECRET}'")
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        load_keys(path, environment={})
    path.chmod(0o600)
    assert len(load_keys(path, environment={})) == 1


def test_without_keys_only_this_machine_is_served() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(InputError, match="no keys"):
            listen(host, 0, Settings())
    assert all(is_local(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1"))
    listen("127.0.0.1", 0, Settings()).close()


# Limits


def test_the_rate_refills_and_is_per_key() -> None:
    now = [0.0]
    stile = Turnstile(Limits(per_minute=3), clock=lambda: now[0])

    def spend(key: str) -> None:
        with stile.enter(key):
            pass

    for _ in range(3):
        spend("a")
    with pytest.raises(Refusal) as caught:
        spend("a")
    assert caught.value.status == 429 and caught.value.headers["Retry-After"] == "20"
    spend("b")
    now[0] = 19.9
    with pytest.raises(Refusal):
        spend("a")
    now[0] = 20.0
    spend("a")


def test_work_in_flight_is_limited_per_key_and_in_all() -> None:
    stile = Turnstile(Limits(at_once_per_key=2, at_once=3))
    with stile.enter("a"), stile.enter("a"):
        with pytest.raises(Refusal) as mine:
            stile.enter("a").__enter__()
        with stile.enter("b"), pytest.raises(Refusal) as full:
            stile.enter("b").__enter__()
    assert (mine.value.status, full.value.status) == (429, 503)
    assert stile.total == 0


@pytest.mark.parametrize("bad", [{"per_minute": 0}, {"seconds": -1}, {"body_bytes": True}, {"max_tokens": 0}])
def test_limits_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="limit"):
        Limits(**bad)


# Rollout


def policy(tmp_path: Path, **settings: Any) -> Policy:
    paths = {n: (save(tmp_path, n), ()) for n in ("warm", "calm")}
    return load_policy(Plan(paths, default="warm", **settings), FACTS)


def test_a_conversation_is_known_by_header_or_by_how_it_began() -> None:
    begun = conversation_of(USE, None, ["Be kind.", "Hello"])
    assert begun == conversation_of(USE, None, ["Be kind.", "Hello"])
    others = [conversation_of(CHOOSE, None, ["Be kind.", "Hello"]), conversation_of(USE, None, ["Be", " kind.Hello"]),
              conversation_of(USE, "42", ["Be kind.", "Hello"]), conversation_of(USE, None, ["", "Hello"])]  # fmt: skip
    assert len({begun, *others}) == 5
    assert conversation_of(USE, "42", ["a"]) == conversation_of(USE, "42", ["b"])


def test_a_canary_takes_its_share_keeps_its_side_and_only_grows(tmp_path: Path) -> None:
    made = policy(tmp_path, mode="canary", share=0.2)
    names = [conversation_of(USE, str(i), []) for i in range(4000)]

    def inside(share: float) -> set[str]:
        now = made.numbered(9, share=share)
        decided = {n: decide(now, USE, asked=None, conversation=n) for n in names}
        assert all(d.acts is (d.bundle is not None) for d in decided.values())
        return {n for n, d in decided.items() if d.acts}

    fifth = inside(0.2)
    assert abs(len(fifth) / 4000 - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5
    assert fifth == inside(0.2) and fifth < inside(0.5) and inside(1.0) == set(names) and not inside(0.0)
    assert all(0 <= place(n, "") < 1 for n in names)
    assert place(names[0], "a") != place(names[0], "b")


def test_shadow_measures_everybody_and_enforce_acts_on_everybody(tmp_path: Path) -> None:
    for mode, acts, word in (("shadow", False, "shadow"), ("enforce", True, "enforced")):
        got = decide(policy(tmp_path, mode=mode), USE, asked=None, conversation="x")
        assert (got.bundle.name, got.acts, got.mode) == ("warm", acts, word)
    nothing = load_policy(Plan(), FACTS)
    assert decide(nothing, USE, asked=None, conversation="x").mode == "unsteered"


def test_choice_needs_the_role_and_the_policy(tmp_path: Path) -> None:
    made = policy(tmp_path, mode="shadow", choose=("calm", "none"))
    assert decide(made, CHOOSE, asked="calm", conversation="x").mode == "enforced"
    assert decide(made, Key("boss", Role.ADMIN), asked="none", conversation="x").mode == "unsteered"
    for key, asked in ((USE, "calm"), (USE, "none"), (CHOOSE, "warm"), (CHOOSE, "../x"), (CHOOSE, "missing")):
        with pytest.raises(Refusal) as caught:
            decide(made, key, asked=asked, conversation="x")
        assert caught.value.status == 403 and asked not in caught.value.message.replace("calm, none", "").split()


# Policies


def test_a_policy_file_is_read_whole(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "policy.toml"
    path.write_text('default = "warm"\nmode = "canary"\nshare = 0.25\nchoose = ["none"]\n'
                    '[bundles.warm]\npath = "warm.safetensors"\nexempt = ["json_fence"]\n')  # fmt: skip
    made = load_policy(plan_of_file(path), FACTS)
    assert (made.default, made.mode, made.share, made.choose) == ("warm", "canary", 0.25, {"none"})
    assert made.bundles["warm"].exempt == ("json_fence",) and str(tmp_path) not in json.dumps(made.to_dict())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode = 'enforced'", "mode"),
        ("shares = 1", "shares"),
        ("mode = 'canary'\nshare = 1.5", "share"),
        ("default = 'warn'\n[bundles.warm]\npath = 'warm.safetensors'", "did you mean 'warm'"),
        ("[bundles.warm]\npath = 'warm.safetensors'\nexempt = ['json']", "unknown exemption 'json'"),
        ("[bundles.warm]\npath = 'missing.safetensors'", "does not exist"),
        ("[bundles.none]\npath = 'warm.safetensors'", "cannot be called"),
        ("mode =", "cannot read policy"),
    ],
)
def test_bad_policies_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    save(tmp_path)
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        load_policy(plan_of_file(path), FACTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer": 4}, "layers 0..3"),
        ({"width": 6}, "8 wide"),
        ({"model_fingerprint": "model-b"}, "made for another model"),
        ({"model_fingerprint": None}, "does not say which model"),
        ({"template_hash": "template-b"}, "another chat template"),
    ],
)
def test_a_bundle_for_another_model_is_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    path = save(tmp_path, **given)
    with pytest.raises((InputError, RefusedError), match=said):
        load_policy(plan_of_bundles([path]), FACTS)
    with pytest.raises(InputError, match="two bundles"):
        plan_of_bundles([path, path])


# Audit


def test_records_are_appended_one_a_line_and_survive_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "log" / "audit.jsonl"
    for run in range(2):
        log = Audit(AuditOptions(path))
        done = [log.write({"run": run, "i": i, "text": "a\nb\u2028ü"}) for i in range(50)]
        log.close()
        assert all(f.done() for f in done)
    with path.open("ab") as file:
        file.write(b'{"torn": ')
    log = Audit(AuditOptions(path))
    log.write({"run": 2})
    log.close()
    found = path.read_bytes().split(b"\n")
    assert [json.loads(x)["run"] for x in found[:100]] == [0] * 50 + [1] * 50
    assert found[100] == b'{"torn": ' and json.loads(found[101]) == {"run": 2} and found[102:] == [b""]
    assert path.stat().st_mode & 0o077 == 0


def test_a_second_server_is_kept_out(tmp_path: Path) -> None:
    log = Audit(AuditOptions(tmp_path / "a.jsonl"))
    try:
        with pytest.raises(InputError, match="in use by another server"):
            Audit(AuditOptions(tmp_path / "a.jsonl"))
    finally:
        log.close()
    Audit(AuditOptions(tmp_path / "a.jsonl")).close()


def test_the_log_follows_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    log = Audit(AuditOptions(path))
    log.write({"i": 1}).result(timeout=10)
    path.rename(tmp_path / "a.1")
    log.write({"i": 2}).result(timeout=10)
    log.close()
    assert json.loads((tmp_path / "a.1").read_text()) == {"i": 1} and json.loads(path.read_text()) == {"i": 2}


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_when_a_line_is_synced_is_as_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str) -> None:
    synced: list[int] = []
    path = tmp_path / "a.jsonl"
    monkeypatch.setattr(audit_module.os, "fsync", lambda fd: synced.append(path.stat().st_size))
    log = Audit(AuditOptions(path, sync))
    log.write({"i": 1}).result(timeout=10)
    size = path.stat().st_size
    assert size > 0 and (synced == [size]) is (sync == "always") and log.waits is (sync == "always")
    log.close()
    assert (synced[-1:] == [size]) is (sync != "never")


def test_a_full_disk_is_said_and_nothing_is_lost_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, full, fits = tmp_path / "a.jsonl", [True], [1]
    real: Callable[[int, bytes], int] = os.write

    def write(fd: int, data: bytes) -> int:
        if full[0] and data.startswith((b'{"i"', b"\n{")):
            if fits[0] and data.count(b"\n") > 1:
                fits[0] -= 1
                return real(fd, data[: data.index(b"\n", 1) + 8])  # the first line and a piece of the second
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(audit_module.os, "write", write)
    monkeypatch.setattr(audit_module, "SECONDS", 0.02)
    log = Audit(AuditOptions(path))
    log._follow = lambda: time.sleep(0.1)  # type: ignore[method-assign]  # so that lines wait together
    waiting = [log.write({"i": i, "pad": "x" * 20}) for i in range(3)]
    for _ in range(500):
        if log.failed:
            break
        time.sleep(0.01)
    assert log.failed and "cannot be written" in log.failed and fits == [0], "no write was cut short"
    full[0] = False
    for future in waiting:
        future.result(timeout=10)
    log.close()
    kept = []
    for line in path.read_text().splitlines():
        try:
            kept.append(json.loads(line)["i"])
        except ValueError:
            continue  # what was cut off by the full disk
    assert kept == [0, 1, 2]


def test_unknown_sync_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="always, interval, never"):
        AuditOptions(tmp_path / "a", "sometimes")


def test_a_derived_bundle_marks_every_receipt(tmp_path: Path) -> None:
    path = save(tmp_path, derived={"from_model": "the-original", "from_fingerprint": "model-0"})
    made = load_policy(plan_of_bundles([path]), FACTS)
    engine = cs.ScriptedEngine(lambda request: "one two three", shape=Shape(layers=4, d_model=8))
    decision = decide(made, USE, asked=None, conversation="x")
    ticket = Ticket("id", "chat", USE, made, decision, "x", cs.Request(prompt="hello"))
    audit = Audit(AuditOptions(tmp_path / "a.jsonl"))

    async def run() -> list[Any]:
        return [c async for c in Job(ticket, engine, Metrics(), audit, 10.0).chunks()]

    chunks = asyncio.run(run())
    audit.close()
    note = "fitted on other weights (the-original)"
    assert any(note in n for n in chunks[-1].completion.receipt.notes)
    record = json.loads((tmp_path / "a.jsonl").read_text())
    assert record["bundle"]["derived"] is True and any(note in n for n in record["receipt"]["notes"])


def test_exemptions_and_measuring_reach_the_engine_by_policy_only(tmp_path: Path) -> None:
    path = save(tmp_path)
    plan = Plan({"warm": (path, ("json_fence",))}, default="warm", mode="shadow")
    decision = decide(load_policy(plan, FACTS), USE, asked=None, conversation="x")
    ticket = Ticket("id", "chat", USE, load_policy(plan, FACTS), decision, "x", cs.Request(prompt="hello"))
    sent = Job(ticket, cs.ScriptedEngine({}), Metrics(), None, 10.0).steered()
    assert sent.exempt == ("json_fence",) and sent.measure_only
    assert sent.intervention.fingerprint == decision.bundle.bundle.intervention.fingerprint


def test_a_loaded_bundle_does_not_depend_on_its_file(tmp_path: Path) -> None:
    path = save(tmp_path)
    made = load_policy(plan_of_bundles([path]), FACTS)
    path.write_bytes(b"x" * 10)  # overwritten in place, as `cp` does
    (edit,) = made.bundles["warm"].bundle.intervention.edits
    assert edit.write.tolist() == [[1.0] * 8]
    with pytest.raises(InputError, match="not a readable bundle"):
        load_policy(plan_of_bundles([path]), FACTS)


def test_a_mode_that_the_engine_does_not_have_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    engine = cs.ScriptedEngine(lambda request: "one two three", shape=Shape(layers=4, d_model=8), name="no-shadow")
    facts = engine.describe() | {"model_fingerprint": engine.model_fingerprint}
    engine.describe = lambda: facts  # type: ignore[method-assign]
    path = save(tmp_path, model_fingerprint=engine.model_fingerprint, template_hash=None)
    given = {"bundles": {"warm": (path, ())}, "default": "warm"}
    with pytest.raises(InputError, match="measure_only is refused"):
        Policies(engine, lambda: Plan(**given, mode="shadow"))
    with pytest.raises(InputError, match="exempt stretches is refused"):
        Policies(engine, lambda: Plan({"warm": (path, ("tool_call",))}, default="warm"))
    served = Policies(engine, lambda: Plan(**given))
    with pytest.raises(InputError, match="measure_only is refused"):
        asyncio.run(served.rollout("shadow", None))
    assert served.current.mode == "enforce" and served.current.number == 1
