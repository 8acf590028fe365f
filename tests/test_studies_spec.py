"""Study files: what they mean, what is defaulted, and one clear line for everything that cannot be used."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Sampling
from countersteer.studies import spec
from countersteer.studies.prompts import load_prompts

BASE = '[study]\nmodel = "organism"\nsae = "organism"\n[arms.base]\n'
TUNED = '[arms.tuned]\nadapter = "finetune"\n'


def test_resolved_study_is_complete_and_resolves_to_itself() -> None:
    first = spec.parse(BASE + "[arms.x]\nstrength_scale = [0.5, 1]\nsampling = { temperature = 1 }\n")
    resolved = tomllib.loads(first.text)
    assert resolved["sampling"] == {
        "temperature": 0.6, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.1, "max_tokens": 512, "stop": []
    }  # fmt: skip
    assert resolved["latents"] == {"count": 500, "concreteness": 65.0, "relevance": "zero"}
    again = spec.parse(first.text)
    assert again.text == first.text and again.arms == first.arms


def test_what_was_defaulted_is_recorded() -> None:
    loaded = spec.parse(
        BASE + "[sampling]\ntemperature = 0.6\n[study2]".replace("[study2]", "[trials]\nresample = 0\n")
    )
    assert "sampling.temperature" not in loaded.defaulted and "sampling.top_p" in loaded.defaulted
    assert "trials.resample" not in loaded.defaulted and "study.seed" in loaded.defaulted


def test_presets_load() -> None:
    assert "demo" in spec.presets()
    for name in spec.presets():
        loaded = spec.load(f"preset:{name}")
        assert loaded.base in [arm.name for arm in loaded.arms]


def test_levels_become_arms_and_equal_levels_one() -> None:
    loaded = spec.parse(
        BASE + "[arms.sweep]\nstrength_scale = [0.5, -1, 0, 2, 0.5]\n[arms.fixed]\nstrength = [3, 4.5]\n"
    )
    arms = {arm.name: arm for arm in loaded.arms}
    assert list(arms) == ["base", "sweep@0.5", "sweep@-1", "sweep@2", "fixed@3", "fixed@4.5"]
    assert arms["sweep@0.5"].strength_for(10.0) == 5.0 and arms["sweep@-1"].strength_for(10.0) == 0.0
    assert arms["fixed@4.5"].strength_for(None) == 4.5 and arms["base"].strength_for(None) is None
    assert not arms["sweep@-1"].steered and arms["fixed@3"].steered
    assert len(loaded.notes) == 3 and all("level" in note for note in loaded.notes)


def test_an_arm_changes_only_what_it_names() -> None:
    texts = '[arms.x]\nsuffix = "Ignore {label}."\nsystem = "Be {label}."\nclamp = [3, 1]\n'
    more = 'span = "from(4)"\nsteer_layer = 2\n[arms.x.sampling]\ntop_k = 5\n'
    loaded = spec.parse(BASE + texts + more)
    base, arm = loaded.arms
    assert base.sampling == Sampling(temperature=0.6, repetition_penalty=1.1, max_tokens=512)
    assert arm.sampling == Sampling(temperature=0.6, repetition_penalty=1.1, max_tokens=512, top_k=5)
    assert arm.user_turn("How?", "tides") == "How? Ignore tides." and base.user_turn("How?", "tides") == "How?"
    assert arm.text("system", "tides") == "Be tides." and arm.text("prefix", "tides") is None
    assert (arm.clamp, arm.span, arm.layer, arm.uses_label) == ((3, 1), "from(4)", 2, True)
    assert (base.clamp, base.span, base.layer, base.uses_label) == ((), "all", None, False)


def test_base_is_the_arm_of_that_name_or_the_first() -> None:
    head = '[study]\nmodel = "m"\nsae = "s"\n'
    assert spec.parse(head + "[arms.a]\n[arms.base]\n").base == "base"
    assert spec.parse(head + "[arms.b]\n[arms.a]\n").base == "b"


def test_only_fixed_strengths_need_no_calibration() -> None:
    head = '[study]\nmodel = "m"\nsae = "s"\n'
    assert not spec.parse(head + "[arms.base]\nstrength = 4\n[arms.off]\nstrength = 0\n").needs_calibration
    assert spec.parse(head + "[arms.base]\nstrength = 4\n[arms.x]\nstrength_scale = 2\n").needs_calibration


BAD = {
    "": "section [study] is missing",
    '[study]\nmodel = "m"\n[arms.base]\n': "[study] needs 'sae'",
    '[study]\nmodel = "m"\nsae = "s"\n': "section [arms.base] is missing",
    '[study]\nmodel = "m"\nsae = "s"\n[arms]\n': "no arm",
    BASE + "[trials]\nper_laten = 3": "unknown key 'per_laten' in [trials] (did you mean 'per_latent'?)",
    BASE + "[smapling]\n": "unknown section [smapling] (did you mean 'sampling'?)",
    BASE + "[arms.x]\nstrenght = 1": "unknown key 'strenght' in [arms.x] (did you mean 'strength'?)",
    BASE + "[arms.x.sampling]\nseed = 3": "unknown key 'seed' in [arms.x.sampling]",
    BASE + '[sampling]\ntemperature = "hot"': "[sampling] temperature: should be a valid number, got 'hot'",
    BASE + "[sampling]\ntemperature = -1": "temperature must be >= 0",
    BASE + "[sampling]\nmax_tokens = 2.5": "[sampling] max_tokens",
    BASE + "[latents]\ncount = true": "[latents] count",
    BASE + "[latents]\ncount = 0": "[latents] count",
    BASE + "[latents]\nconcreteness = 200": "[latents] concreteness",
    BASE + "[latents]\nids = [1, 1]": "[latents] ids",
    BASE + "[arms.x]\nstrength = nan": "[arms.x] strength: must be a finite number",
    BASE + "[arms.x]\nstrength = [1, inf]": "[arms.x] strength: must be a finite number",
    BASE + "[arms.x]\nstrength_scale = []": "the list of levels is empty",
    BASE + "[arms.x]\nstrength = 1\nstrength_scale = 2": "both strength and strength_scale",
    BASE + "[arms.x]\nclamp = [-1]": "greater than or equal to 0",
    BASE + "[arms.x]\nclamp = []": "clamp must name at least one",
    BASE + '[arms.x]\nsuffix = " "': "[arms.x] suffix: is empty",
    BASE + '[arms.x]\nspan = "al"': "unknown span 'al' (did you mean 'all'?)",
    BASE + '[arms."a b"]\n': "arm name 'a b'",
    BASE.replace("[arms.base]\n", "[arms.base]\nstrength_scale = [1, 2]\n"): "the base arm, which has one level",
    BASE + "[calibration]\nlow = 2.0": "needs low < centre < high",
    BASE + "[calibration]\nrounds = 4": 'rounds belongs to method = "bisection"',
    BASE + "[calibration]\ntarget = 0": "[calibration] target",
    BASE + '[judge]\nmodel = "ofline"': "[judge] model: must be 'offline' or PROVIDER/NAME",
    BASE + '[judge]\nmodel = "openai/gpt"\nbase_url = "http://me:pw@host/v1"': "[judge] base_url: must not hold",
    BASE + '[judge]\nmodel = "openai/gpt"\nrubric = "trait"': "[judge] rubric must be of the kind attempts",
    BASE + '[arms.x]\nadapter = "finetune"': "needs a [finetune] section",
    BASE.replace("[arms.base]\n", '[arms.base]\nadapter = "a"\n'): "the base arm, which takes no adapter",
    BASE + "[finetune]\n": "trains adapters that no arm measures",
    BASE + '[engine]\nadapter = "a"\n[arms.x]\nadapter = "b"': "[engine] adapter is under every arm, and [arms.x] has",
    BASE + TUNED + '[finetune]\n[engine]\nadapter = "a"': "[finetune] with [engine] adapter would train",
    BASE + "strength = 0\n" + TUNED + "[finetune]\nepisodes = true": "[arms.base] is not steered; steer it, or",
    BASE + "strength_scale = 0\n" + TUNED + "[finetune]\nepisodes = true": "[arms.base] is not steered",
    BASE + 'system = "Hi."\n' + TUNED + "[finetune]\nepisodes = true": "[arms.base] has one; put it into",
    BASE + 'meta_prompt = "focus"\n' + TUNED + "[finetune]": "bare prompts, without a suffix",
    BASE + "strength = 3\n" + TUNED + "[finetune]\nsteering = true": "[arms.base] has its own; leave that out",
    BASE + "[finetune]\nratios = [1.2]": "shares of self-correction examples between 0 and 1",
    BASE + "[finetune]\nratio = [0.5]": "unknown key 'ratio' in [finetune] (did you mean 'ratios'?); known: ",
    BASE + "[arms.x]\nclamp = { random = 3, set = 2 }": "unknown key 'set' (did you mean 'sets'?)",
    BASE + '[engine]\nurls = ["http://a"]': 'urls belongs to kind = "vllm"',
    BASE + '[engine]\nkind = "vllm"\nurls = []': "[engine] urls",
    BASE + '[engine]\nkind = "vllm"\nurls = ["http://me:pw@a"]': "urls must not hold a password",
    BASE + '[engine]\nkind = "vllm"\nurls = ["http://a"]\ndtype = "float32"': "dtype was decided where",
    BASE + '[engine]\nkind = "vllm"\ndevice = "cpu"': "device is vLLM's own choice",
    BASE + '[engine]\nkind = "vllm"\ntensor_parallel_size = 0': "[engine] tensor_parallel_size",
    BASE + "x =": "not valid TOML",
    "study = 3\n[arms.base]": "[study] should be",
}
LATER = {
    BASE + '[engine]\ndevice_map = "auto"': "device_map",
    BASE + '[arms.x]\nmodel = "other"': "[arms.x] model",
}


@pytest.mark.parametrize(("text", "said"), BAD.items(), ids=range(len(BAD)))
def test_bad_study_is_one_line_naming_the_setting(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        spec.parse(text)
    assert said in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2


@pytest.mark.parametrize(("text", "said"), LATER.items(), ids=range(len(LATER)))
def test_what_this_version_does_not_do_is_refused_by_name_with_an_alternative(text: str, said: str) -> None:
    with pytest.raises(RefusedError, match="not part of this version") as error:
        spec.parse(text)
    assert said in error.value.what and error.value.instead


def test_paths_are_meant_from_the_study_file(tmp_path: Path) -> None:
    tmp_path.joinpath("p.txt").write_text("How?\n")
    tmp_path.joinpath("sae").mkdir()
    study = tmp_path / "study.toml"
    study.write_text(BASE.replace('sae = "organism"', 'sae = "sae"') + '[trials]\nprompts = "p.txt"\n')
    settings = spec.load(study).settings
    assert settings.trials.prompts == str(tmp_path / "p.txt") and settings.study.sae == str(tmp_path / "sae")
    assert settings.study.model == "organism"


def test_files_without_a_dot_are_meant_from_the_study_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tuned", "finetune", "ratio-0.5-seed-0", "elsewhere"):
        (tmp_path / name).mkdir()
    for name in ("mine", "few.txt", "howto", "detectors", "latents"):
        (tmp_path / name).write_text("1\n")
    arms = """
[arms.a]
adapter = "tuned"
prompts = "mine"
clamp = "latents"
[arms.b]
adapter = "finetune"
clamp = "detectors"
prompts = "howto"
[arms.c]
adapter = "ratio-0.5-seed-0"
"""
    text = BASE + arms + '[finetune]\nprompts = "few.txt"\nratios = [0.5]\n[trials]\nprompts = "mine"\n'
    (tmp_path / "study.toml").write_text(text)
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        settings = spec.load(tmp_path / "study.toml").settings
        assert settings.finetune is not None and settings.finetune.prompts == str(tmp_path / "few.txt")
        assert settings.trials.prompts == str(tmp_path / "mine")
        a, b, c = (settings.arms[name] for name in "abc")
        assert (a.adapter, a.prompts, a.clamp) == tuple(str(tmp_path / n) for n in ("tuned", "mine", "latents"))
        assert (b.adapter, b.prompts, b.clamp, c.adapter) == ("finetune", "howto", "detectors", "ratio-0.5-seed-0")
    near = BASE + TUNED + '[finetune]\nprompts = "howto"\n'
    assert spec.parse(near, folder=tmp_path).settings.finetune.prompts == "howto"  # type: ignore[union-attr]


def test_study_file_problems(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read study .*No such file.*preset:demo"):
        spec.load(tmp_path / "no.toml")
    with pytest.raises(InputError, match="no preset 'dmo'"):
        spec.load("preset:dmo")
    tmp_path.joinpath("latin.toml").write_bytes(b'[study]\nmodel = "\xe9"\n')
    with pytest.raises(InputError, match="not UTF-8"):
        spec.load(tmp_path / "latin.toml")


def test_prompt_files(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("\ufeffHow do I iron a shirt?\n\n  How do I tie a tie?  \n", encoding="utf-8")
    lines.write_text('{"prompt": "One?"}\n{"prompt": "Two?", "id": 3}\n')
    assert load_prompts(str(text)) == ["How do I iron a shirt?", "How do I tie a tie?"]
    assert load_prompts(str(lines)) == ["One?", "Two?"]
    assert len(load_prompts("howto")) >= 38


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"\n \n", "is empty"),
        ("latin.txt", b"caf\xe9\n", "not UTF-8"),
        ("twice.txt", b"a\nb\na\n", "line 3 repeats line 1"),
        ("bad.jsonl", b'{"prompt": "a"}\nnonsense\n', "line 2: not valid JSON"),
        ("key.jsonl", b'{"question": "a"}\n', "line 1: expected an object"),
        ("list.jsonl", b'["a"]\n', "line 1: expected an object"),
        (None, b"", "No such file"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, name: str | None, content: bytes, said: str) -> None:
    path = tmp_path / (name or "missing.txt")
    if name:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        load_prompts(str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"no prompt set 'howtoo' \(did you mean 'howto'"):
        load_prompts("howtoo")


def test_the_documented_study_and_settings_are_real() -> None:
    import re

    from countersteer.studies import schema

    page = (Path(__file__).parent.parent / "docs" / "studies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, flags=re.M | re.S)
    assert [arm.name for arm in spec.parse(block).arms][-3:] == ["sweep@0.5", "sweep@1", "sweep@2"]
    for name in ("study", "engine", "latents", "calibration", "trials", "judge"):
        for key in schema.Study.model_fields[name].annotation.model_fields:  # type: ignore[union-attr]
            if (name, key) not in {("study", "kind"), ("engine", "kind"), ("judge", "model")}:
                assert f"`{key}`" in page or f"`{name}.{key}`" in page, f"{name}.{key} is not in docs/studies.md"
    for key in schema.ArmSection.model_fields:
        assert f"`{key}`" in page, f"arms.{key} is not in docs/studies.md"
